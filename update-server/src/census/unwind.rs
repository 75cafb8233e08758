//! From frame to frame, as the kernel's own unwinder goes (`arch/x86/kernel/unwind_orc.c`, 6.1 and 6.12), and more suspicious:
//! what it takes for the end of knowledge, or for a good guess, is doubt here.

use super::bounds::Bounds;
use super::call;
use super::code::{Code, CodeKind};
use super::doubt::{Doubt, Outcome};
use super::flow;
use super::probed::{self, Interrupted};
use super::said::Said;
use super::stacks::CpuStacks;
use super::state::{Frame, Saved, State};
use super::task::Task;
use super::{Found, Stack};
use crate::addr::Gva;
use crate::guest::{Memory, Vcpu};
use crate::image::{Base, FrameKind, NOP5, Register};
use crate::kernel::hooks::{self, HookTrampoline};
use crate::kernel::running::Running;
use crate::limits::{CENSUS_STEPS, FRAMES};
use crate::steps::Steps;
use crate::x86::stub;

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

/// Walks stacks of one kernel.
#[derive(Debug)]
pub(super) struct Unwinder<'a, 'g, M> {
    kernel: &'a Running<'g, M>,
    code: &'a Code<'a, 'g, M>,
    /// How much more all walks together may look at.
    steps: Steps,
    said: Said<'a, 'g, M>,
}

impl<'a, 'g, M: Memory> Unwinder<'a, 'g, M> {
    pub(super) fn new(kernel: &'a Running<'g, M>, code: &'a Code<'a, 'g, M>) -> Self {
        Self { kernel, code, steps: Steps::new(CENSUS_STEPS), said: Said::new(kernel, code) }
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
            callee: None,
            saved: Saved::Vcpu(registers),
        };
        let first = Frame { address: state.ip, behind_call: false, slot: None, stub: None };
        self.walk(
            state,
            first,
            Bounds {
                cpu: Some(cpu),
                task: None,
                task_bytes: self.kernel.model().stack_bytes,
                owners: [cpu.current, cpu.queue_current],
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
            callee: None,
            saved: Saved::None,
        };
        let first = Frame { address: ip, behind_call: !new, slot: Some(slot), stub: None };
        let bounds = Bounds {
            cpu: None,
            task: Some(task.stack),
            task_bytes: model.stack_bytes,
            owners: [task.address; 2],
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
            if !self.steps.take() {
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
        if let Some(stub) = self.stub(stub::of_rip(state.ip)) {
            return self.leave_stub(state, stub).map(Some);
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
        let orc = self.said.orc(state, at, &self.steps)?;
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
                let ip = self.real_return(found, slot, bounds).ok_or(Doubt::Hooked { slot })?;
                let (ip, stub) = self.behind_stub(ip);
                *state = State { ip, sp, callee: Some(at), saved: Saved::None, ..*state };
                self.check_call(ip, slot, at)?;
                Frame { address: ip, behind_call: true, slot: Some(slot), stub }
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
                *state = State { ip, sp: field(layout.rsp, bounds)?, callee: None, saved, ..*state };
                let slot = Some(start.wrapping_add(layout.rip));
                Frame { address: ip, behind_call: false, slot, stub: None }
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
        let ip = match self.real_return(start, slot, bounds) {
            Some(ip) => ip,
            // The tracer has put it back, and has forgotten it.
            None if trampoline.restores && depth > 0 => self.word(slot, bounds)?,
            None => return Err(Doubt::Hooked { slot }),
        };
        let (ip, stub) = self.behind_stub(ip);
        self.check_call(ip, slot, at)?;
        bounds.check(slot)?;
        *state = State { ip, sp, signal: false, callee: None, saved: Saved::None, ..*state };
        Ok(Frame { address: ip, behind_call: true, slot: (depth > 0).then_some(slot), stub })
    }

    /// Goes to the caller from a stub, which was come to by a return and leaves the stack as it is.
    fn leave_stub(&self, state: &mut State, (_, to): (Gva, Gva)) -> Result<Frame, Doubt> {
        self.check_call(to, state.sp.wrapping_offset(-8), state.ip)?;
        *state = State { ip: to, signal: false, callee: None, saved: Saved::None, ..*state };
        Ok(Frame { address: to, behind_call: true, slot: None, stub: None })
    }

    /// Where a return to `address` comes to in the end, and the stub that it goes through. What is said of a stub by the unwind table is
    /// a copy of what is said of there.
    fn behind_stub(&self, address: Gva) -> (Gva, Option<Gva>) {
        match self.stub(stub::of_return(address)) {
            Some((stub, to)) => (to, Some(stub)),
            None => (address, None),
        }
    }

    /// The stub that may be at `at`, and where it goes on to. Whoever has written these instructions into a module: that is what
    /// they do.
    fn stub(&self, at: Option<Gva>) -> Option<(Gva, Gva)> {
        let at = at.filter(|at| matches!(self.code.kind(*at), CodeKind::Module(_)))?;
        Some((at, stub::target(at, self.kernel.space().array(at).ok()?)?))
    }

    /// Where a return from `slot` leads to, where `found` is; `None` if a tracer has taken it over and no record says from where.
    fn real_return(&self, found: Gva, slot: Gva, bounds: &Bounds<'_>) -> Option<Gva> {
        let [first, second] = bounds.owners;
        let recorded = |task| hooks::real_return(self.kernel, task, found, slot, &self.steps).ok().flatten();
        recorded(first).or_else(|| if second == first { None } else { recorded(second) })
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
