//! From frame to frame, as the kernel's own unwinder goes (`arch/x86/kernel/unwind_orc.c`, 6.1 and 6.12), and more suspicious:
//! what it takes for the end of knowledge, or for a good guess, is doubt here.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use super::bounds::Bounds;
use super::call;
use super::code::{Code, CodeKind};
use super::doubt::{Doubt, Outcome};
use super::flow;
use super::patched;
use super::probed::{self, Interrupted};
use super::stacks::CpuStacks;
use super::task::Task;
use super::{Found, Stack};
use crate::addr::Gva;
use crate::guest::{Memory, Registers, Vcpu};
use crate::image::{Base, FrameKind, NOP5, OrcEntry, Register};
use crate::kernel::hooks::{self, HookTrampoline};
use crate::kernel::modules::Module;
use crate::kernel::running::Running;
use crate::limits::{CENSUS_STEPS, FRAMES};

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Where it goes on.
    pub address: Gva,
    /// Whether that is behind a call; it is the next instruction of an interrupted frame otherwise.
    pub behind_call: bool,
    /// Where on the stack the address is; `None` for what is in a vCPU's registers.
    pub slot: Option<Gva>,
}

/// Bytes of a direct call.
const CALL_BYTES: u64 = 5;

/// How to walk on from a function's first instruction.
const AT_ENTRY: OrcEntry = OrcEntry {
    sp: Base::Sp,
    sp_offset: 8,
    bp: Base::Undefined,
    bp_offset: 0,
    kind: FrameKind::Call,
    signal: false,
};

/// How to walk on from registers that have just been saved.
const SAVED: OrcEntry = OrcEntry { sp_offset: 0, kind: FrameKind::Registers, signal: true, ..AT_ENTRY };

/// Where the user's registers are at the top of a stack: kernels that know FRED leave room for 16 bytes more.
fn bottoms(top: Gva, registers: u64) -> [Gva; 2] {
    [registers, registers + 16].map(|bytes| Gva(top.0.wrapping_sub(bytes)))
}

/// What a walk has found.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) frames: Vec<Frame>,
    pub(super) outcome: Outcome,
    /// The lower end of the task's stack that it ended on.
    pub(super) last_stack: Option<Gva>,
}

/// Registers as far as they are known in a frame.
#[derive(Debug, Clone, Copy)]
struct State {
    ip: Gva,
    sp: Gva,
    bp: Gva,
    signal: bool,
    /// Those of the last interruption, while they still hold: none behind a call.
    saved: Saved,
}

impl State {
    /// Whether the same frame is found from it.
    fn same(&self, other: &Self) -> bool {
        (self.ip, self.sp, self.bp, self.signal) == (other.ip, other.sp, other.bp, other.signal)
    }
}

#[derive(Debug, Clone, Copy)]
enum Saved {
    None,
    /// In a vCPU.
    Vcpu(Registers),
    /// In a `struct pt_regs` at this address.
    Stack(Gva),
    /// In the end of one that begins at this address; what is not in it may be in a whole one further in.
    Partial(Option<Gva>),
}

/// Walks stacks of one kernel.
#[derive(Debug)]
pub(super) struct Unwinder<'a, 'g, M> {
    kernel: &'a Running<'g, M>,
    code: &'a Code<'a, 'g, M>,
    /// How much more all walks together may look at.
    steps: Cell<u64>,
    /// What was found out about code that is not the kernel's own.
    known: RefCell<HashMap<Gva, OrcEntry>>,
}

impl<'a, 'g, M: Memory> Unwinder<'a, 'g, M> {
    pub(super) fn new(kernel: &'a Running<'g, M>, code: &'a Code<'a, 'g, M>) -> Self {
        Self { kernel, code, steps: Cell::new(CENSUS_STEPS), known: RefCell::default() }
    }

    /// The stack of a vCPU that stands still.
    pub(super) fn on_cpu(&self, vcpu: &Vcpu, cpu: &CpuStacks) -> Walk {
        if vcpu.cpl == 3 {
            return Walk { frames: Vec::new(), outcome: Outcome::Complete, last_stack: None };
        }
        let registers = vcpu.registers;
        let state = State {
            ip: Gva(vcpu.rip),
            sp: Gva(registers.rsp),
            bp: Gva(registers.rbp),
            signal: true,
            saved: Saved::Vcpu(registers),
        };
        let first = Frame { address: state.ip, behind_call: false, slot: None };
        self.walk(
            state,
            first,
            Bounds {
                cpu: Some(cpu),
                task: None,
                task_bytes: self.kernel.model().stack_bytes,
                task_struct: cpu.current,
            },
        )
    }

    /// The stack of a task that no vCPU runs.
    pub(super) fn switched_out(&self, task: Task) -> Stack {
        let (space, model) = (self.kernel.space(), self.kernel.model());
        let at = task.sp;
        let dead = task.stack.0 == 0;
        if dead {
            // Its last processor has let go of it; only what its parent wants to know is left.
            return Stack { task, found: Found::SwitchedOut, frames: Vec::new(), outcome: Outcome::Complete };
        }
        let top = task.stack.wrapping_add(model.stack_bytes);
        if task.idle_of.is_some() && bottoms(top, model.layout.registers_bytes).contains(&at) {
            // Its processor is about to be brought up, and it will begin with an empty stack.
            return Stack { task, found: Found::New, frames: Vec::new(), outcome: Outcome::Complete };
        }
        let layout = &model.layout.inactive;
        let slot = at.wrapping_add(layout.return_address);
        let read = (space.pointer(slot), space.pointer(at.wrapping_add(layout.rbp)));
        let (Ok(ip), Ok(bp)) = read else {
            let outcome = Outcome::Unprovable(Doubt::OffStack { at });
            return Stack { task, found: Found::SwitchedOut, frames: Vec::new(), outcome };
        };
        let new = ip == self.kernel.now(model.symbols.fork_return);
        let found = if new { Found::New } else { Found::SwitchedOut };
        let state = State {
            ip,
            sp: at.wrapping_add(model.layout.inactive_bytes),
            bp,
            signal: new,
            saved: Saved::None,
        };
        let first = Frame { address: ip, behind_call: !new, slot: Some(slot) };
        let bounds = Bounds {
            cpu: None,
            task: Some(task.stack),
            task_bytes: model.stack_bytes,
            task_struct: task.address,
        };
        let walk = self.walk(state, first, bounds);
        Stack { task, found, frames: walk.frames, outcome: walk.outcome }
    }

    fn walk(&self, mut state: State, first: Frame, mut bounds: Bounds<'_>) -> Walk {
        let mut frames = vec![first];
        let outcome = loop {
            if frames.len() > FRAMES {
                break Outcome::Unprovable(Doubt::TooDeep { limit: FRAMES });
            }
            if self.steps.replace(self.steps.get().saturating_sub(1)) == 0 {
                break Outcome::Unprovable(Doubt::TooMuch { limit: CENSUS_STEPS });
            }
            match self.step(&mut state, &mut bounds) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break Outcome::Complete,
                Err(doubt) => break Outcome::Unprovable(doubt),
            }
        };
        Walk { frames, outcome, last_stack: bounds.task }
    }

    /// Goes to the caller, or returns `None` at the outermost frame.
    fn step(&self, state: &mut State, bounds: &mut Bounds<'_>) -> Result<Option<Frame>, Doubt> {
        let before = Gva(state.ip.0.wrapping_sub(1));
        if !state.signal {
            return self.step_from(before, state, bounds);
        }
        // A vCPU stands where it stands; what has been interrupted may be in the hands of a probe.
        let interrupted = if matches!(state.saved, Saved::Vcpu(_)) {
            Interrupted::Before
        } else {
            probed::interrupted(self.code, state.ip)
        };
        match interrupted {
            Interrupted::Before => self.step_from(state.ip, state, bounds),
            Interrupted::Behind => self.step_from(before, state, bounds),
            Interrupted::Either => self.step_from_either([before, state.ip], state, bounds),
        }
    }

    /// Goes to the caller from one of two places. It is the right one that leads to a caller; the wrong one is a word off.
    fn step_from_either(
        &self,
        places: [Gva; 2],
        state: &mut State,
        bounds: &mut Bounds<'_>,
    ) -> Result<Option<Frame>, Doubt> {
        let (mut first, mut second) = ((*state, *bounds), (*state, *bounds));
        let frames = [
            self.step_from(places[0], &mut first.0, &mut first.1),
            self.step_from(places[1], &mut second.0, &mut second.1),
        ];
        let (frame, found) = match frames {
            [Ok(one), Ok(other)] if one == other && first.0.same(&second.0) => (one, first),
            [Ok(_), Ok(_)] => {
                let why = "a probe has run the instruction before it, or not yet".to_owned();
                return Err(Doubt::NoTable { at: state.ip, why });
            }
            [Ok(frame), Err(_)] => (frame, first),
            [Err(_), Ok(frame)] => (frame, second),
            [Err(doubt), Err(_)] => return Err(doubt),
        };
        (*state, *bounds) = found;
        Ok(frame)
    }

    /// Goes to the caller by what is said of the instruction at `at`.
    fn step_from(&self, at: Gva, state: &mut State, bounds: &mut Bounds<'_>) -> Result<Option<Frame>, Doubt> {
        if let Some(trampoline) = hooks::trampoline_at(self.kernel, at) {
            return self.leave_hook(state, bounds, &trampoline, at).map(Some);
        }
        let orc = self.orc(state, at)?;
        match orc.kind {
            FrameKind::Undefined => {
                let why = "the unwind table says that nobody knows".to_owned();
                return Err(Doubt::NoTable { at: state.ip, why });
            }
            FrameKind::End => return Ok(None),
            FrameKind::Call | FrameKind::Registers | FrameKind::Exception => {}
        }
        let before = *state;
        let offset = i64::from(orc.sp_offset);
        let sp = match orc.sp {
            Base::Sp => state.sp.wrapping_offset(offset),
            Base::Bp => state.bp.wrapping_offset(offset),
            Base::SpIndirect => self.word(state.sp, bounds)?.wrapping_offset(offset),
            Base::BpIndirect => self.word(state.bp.wrapping_offset(offset), bounds)?,
            Base::Register(register) => {
                self.register(state, register, bounds)?.ok_or(Doubt::LostRegister { at: state.ip })?
            }
            Base::PreviousSp | Base::Undefined => {
                let why = "the unwind table gives no base".to_owned();
                return Err(Doubt::NoTable { at: state.ip, why });
            }
        };
        let layout = &self.kernel.model().layout.registers;
        let frame = match orc.kind {
            FrameKind::Call => {
                let slot = sp.wrapping_offset(-8);
                let found = self.word(slot, bounds)?;
                let real = hooks::real_return(self.kernel, bounds.task_struct, found, slot, &self.steps);
                let ip = real.ok().flatten().ok_or(Doubt::Hooked { slot })?;
                *state = State { ip, sp, saved: Saved::None, ..*state };
                self.check_call(ip, slot, at)?;
                Frame { address: ip, behind_call: true, slot: Some(slot) }
            }
            kind => {
                // What the processor pushes is the end of `struct pt_regs`.
                let whole = kind == FrameKind::Registers;
                let start = if whole { sp } else { sp.wrapping_offset(-layout.rip.cast_signed()) };
                let field =
                    |offset: u64, bounds: &mut Bounds<'_>| self.word(start.wrapping_add(offset), bounds);
                let cs = field(layout.cs, bounds)?;
                let ip = field(layout.rip, bounds)?;
                if cs.0 & 3 == 3 {
                    return self.check_user_end(start, bounds).map(|()| None);
                }
                let inner = match state.saved {
                    Saved::Stack(inner) => Some(inner),
                    _ => None,
                };
                let saved = if whole { Saved::Stack(start) } else { Saved::Partial(inner) };
                *state = State { ip, sp: field(layout.rsp, bounds)?, saved, ..*state };
                Frame { address: ip, behind_call: false, slot: Some(start.wrapping_add(layout.rip)) }
            }
        };
        let bp_offset = i64::from(orc.bp_offset);
        state.bp = match orc.bp {
            Base::PreviousSp => self.word(sp.wrapping_offset(bp_offset), bounds)?,
            Base::Bp => self.word(before.bp.wrapping_offset(bp_offset), bounds)?,
            _ => match state.saved {
                Saved::Stack(start) => self.word(start.wrapping_add(layout.rbp), bounds)?,
                _ => state.bp,
            },
        };
        state.signal = orc.signal;
        bounds.check_direction(before.sp, state.sp)?;
        Ok(Some(frame))
    }

    /// Goes to the caller from the trampoline of a hooked return. The kernel's table says that the stack ends there, or as if the
    /// return address were still on it.
    fn leave_hook(
        &self,
        state: &mut State,
        bounds: &mut Bounds<'_>,
        trampoline: &HookTrampoline,
        at: Gva,
    ) -> Result<Frame, Doubt> {
        let no_table = |why: &str| Doubt::NoTable { at: state.ip, why: why.to_owned() };
        let (start, end) = (trampoline.text.start, trampoline.text.end);
        let code = flow::code(self.kernel.space(), start, end, &self.steps)
            .map_err(|_| no_table("a tracer's trampoline that cannot be read"))?;
        let depth = match flow::states(&code, start.0, at.0, &self.steps)[..] {
            [state] => state.depth(),
            _ => None,
        };
        let depth = depth.ok_or_else(|| no_table("a tracer's trampoline that cannot be followed"))?;
        // It was come to by a return: what the address was taken from is just below.
        let sp = state.sp.wrapping_offset(depth);
        let slot = sp.wrapping_offset(-8);
        let recorded = hooks::real_return(self.kernel, bounds.task_struct, start, slot, &self.steps);
        let ip = match recorded.ok().flatten() {
            Some(ip) => ip,
            // The tracer has put it back, and has forgotten it.
            None if trampoline.restores && depth > 0 => self.word(slot, bounds)?,
            None => return Err(Doubt::Hooked { slot }),
        };
        self.check_call(ip, slot, at)?;
        bounds.check(slot)?;
        *state = State { ip, sp, saved: Saved::None, signal: false, ..*state };
        Ok(Frame { address: ip, behind_call: true, slot: (depth > 0).then_some(slot) })
    }

    /// How to walk on from `at`. Where a vCPU stands in code that was patched, the table alone does not tell.
    fn orc(&self, state: &State, at: Gva) -> Result<OrcEntry, Doubt> {
        let mut found = self.entry(state.ip, at)?;
        if !matches!(state.saved, Saved::Vcpu(_) | Saved::Stack(_)) || !state.signal {
            return Ok(found);
        }
        if let Some((start, len)) = self.code.patched(at) {
            if self.registers_are_saved(start, at) {
                return Ok(SAVED);
            }
            let mut code = vec![0; len];
            let base = if found.kind == FrameKind::Undefined {
                // At its start a thunk's stack is as at that of a function.
                Some(AT_ENTRY)
            } else {
                self.code
                    .orc(start, &self.steps)
                    .ok()
                    .filter(|orc| orc.kind == FrameKind::Call && orc.sp == Base::Sp)
            };
            if let Some(base) = base
                && self.kernel.space().read(start, &mut code).is_ok()
                && let Some(depth) = patched::depth(&code, start.0, at.0)
                && let Ok(offset) = i16::try_from(i64::from(base.sp_offset) + depth)
            {
                found = OrcEntry { sp_offset: offset, ..base };
            }
        }
        Ok(found)
    }

    /// What is said of the frame at `at`, where the code at `ip` is: by the kernel's table, or by what is followed of code
    /// whose table may not be believed or that has none.
    fn entry(&self, ip: Gva, at: Gva) -> Result<OrcEntry, Doubt> {
        if let Some(known) = self.known.borrow().get(&at) {
            return Ok(*known);
        }
        let no_table = |why| Doubt::NoTable { at: ip, why };
        let kind = self.code.kind(at);
        let found = self.code.orc(at, &self.steps).map_err(no_table)?;
        match kind {
            CodeKind::Kernel => return Ok(found),
            CodeKind::Module(module) => self.check_module(module, at, found)?,
            _ => {}
        }
        // Many sleep in the same places. As each one takes a step, these are not many more.
        self.known.borrow_mut().insert(at, found);
        Ok(found)
    }

    /// Holds the entry of a module's table, which is in memory that the guest can write to, against the module's code.
    fn check_module(&self, module: &Module, at: Gva, orc: OrcEntry) -> Result<(), Doubt> {
        let contradicted = || Doubt::Contradicted { module: module.name.clone(), at };
        if orc.kind == FrameKind::End {
            return Err(contradicted());
        }
        // The second halves of functions have no entry to begin at.
        let Some((symbol, next)) =
            module.symbols.function(at).filter(|(symbol, _)| !symbol.name.contains(".cold"))
        else {
            return Ok(());
        };
        let text = if module.text().contains(&at) { module.text() } else { module.init_text() };
        if !text.contains(&symbol.address) {
            return Ok(());
        }
        let end = next.unwrap_or(text.end).min(text.end);
        let Ok(code) = flow::code(self.kernel.space(), symbol.address, end, &self.steps) else {
            return Ok(());
        };
        let states = flow::states(&code, symbol.address.0, at.0, &self.steps);
        let agrees = states.is_empty() || states.iter().any(|state| state.agrees(orc));
        if agrees { Ok(()) } else { Err(contradicted()) }
    }

    /// Whether `at` is behind the call that has just saved an interruption's registers, with the next instruction moving to
    /// the stack of its task. The table knows only what is before and behind both, which are one alternative
    /// (`idtentry_body` in `arch/x86/entry/entry_64.S`).
    fn registers_are_saved(&self, start: Gva, at: Gva) -> bool {
        let Ok([0xe8, distance @ ..]) = self.kernel.space().array::<5>(start) else { return false };
        let target = start.wrapping_add(CALL_BYTES).wrapping_offset(i64::from(i32::from_le_bytes(distance)));
        let saves = self.kernel.model().symbols.error_entry.map(|linked| self.kernel.now(linked));
        saves == Some(target) && at == start.wrapping_add(CALL_BYTES)
    }

    /// 64 bits of a stack.
    fn word(&self, at: Gva, bounds: &mut Bounds<'_>) -> Result<Gva, Doubt> {
        bounds.check(at)?;
        self.kernel.space().pointer(at).map_err(|_| Doubt::OffStack { at })
    }

    fn register(
        &self,
        state: &State,
        register: Register,
        bounds: &mut Bounds<'_>,
    ) -> Result<Option<Gva>, Doubt> {
        let layout = &self.kernel.model().layout.registers;
        let offset = match register {
            Register::Rdx => layout.rdx,
            Register::Rdi => layout.rdi,
            Register::R10 => layout.r10,
            Register::R13 => layout.r13,
        };
        match state.saved {
            Saved::Vcpu(registers) => Ok(Some(Gva(match register {
                Register::Rdx => registers.rdx,
                Register::Rdi => registers.rdi,
                Register::R10 => registers.r10,
                Register::R13 => registers.r13,
            }))),
            Saved::Stack(start) | Saved::Partial(Some(start)) => {
                self.word(start.wrapping_add(offset), bounds).map(Some)
            }
            Saved::Partial(None) | Saved::None => Ok(None),
        }
    }

    /// Whether the processor was in user space at the only place where a stack may say so: its top.
    fn check_user_end(&self, start: Gva, bounds: &Bounds<'_>) -> Result<(), Doubt> {
        let registers = self.kernel.model().layout.registers_bytes;
        let tops = bounds.tops();
        let is_end = tops.into_iter().any(|top| bottoms(top, registers).contains(&start));
        if is_end { Ok(()) } else { Err(Doubt::WrongEnd { at: start }) }
    }

    /// Whether `address`, found at `slot` by the code at `from`, was left there by a call (Intel SDM vol. 2A, CALL). Where a
    /// function called a BPF trampoline there may be a NOP again: whoever is in it stays there when it is detached.
    fn check_call(&self, address: Gva, slot: Gva, from: Gva) -> Result<(), Doubt> {
        let mut bytes = [0; 7];
        let before = Gva(address.0.wrapping_sub(7));
        let readable = self.kernel.space().read(before, &mut bytes).is_ok();
        // What called init code, and was init code, is no longer in memory.
        let (model, linked) = (self.kernel.model(), self.kernel.linked(before));
        let image = model.image().bytes(linked, bytes.len()).and_then(|bytes| bytes.try_into().ok());
        let detached = bytes.ends_with(&NOP5) && matches!(self.code.kind(from), CodeKind::Bpf(_));
        let called = readable && (call::is_last(bytes) || detached) || image.is_some_and(call::is_last);
        let (start, end) = model.symbols.secondary_start;
        let begun = address == self.kernel.now(model.symbols.fork_return)
            || address > self.kernel.now(start) && address < self.kernel.now(end);
        if called || begun { Ok(()) } else { Err(Doubt::NoCall { address, slot }) }
    }
}
