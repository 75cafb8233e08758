//! From frame to frame, as the kernel's own unwinder goes (`arch/x86/kernel/unwind_orc.c`, 6.1 and 6.12), and more suspicious:
//! what it takes for the end of knowledge, or for a good guess, is doubt here.

use super::code::Code;
use super::doubt::{Doubt, Outcome};
use super::stacks::{CpuStacks, StackKind};
use super::tasks::Task;
use super::{Found, Stack};
use crate::addr::Gva;
use crate::guest::{Memory, Registers, Vcpu};
use crate::image::{Base, FrameKind, Register};
use crate::kernel::running::Running;
use crate::limits::FRAMES;

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
}

impl<'a, 'g, M: Memory> Unwinder<'a, 'g, M> {
    pub(super) fn new(kernel: &'a Running<'g, M>, code: &'a Code<'a, 'g, M>) -> Self {
        Self { kernel, code }
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
            Bounds { cpu: Some(cpu), task: None, task_bytes: self.kernel.model().stack_bytes },
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
        let bounds = Bounds { cpu: None, task: Some(task.stack), task_bytes: model.stack_bytes };
        let walk = self.walk(state, first, bounds);
        Stack { task, found, frames: walk.frames, outcome: walk.outcome }
    }

    fn walk(&self, mut state: State, first: Frame, mut bounds: Bounds<'_>) -> Walk {
        let mut frames = vec![first];
        let outcome = loop {
            if frames.len() > FRAMES {
                break Outcome::Unprovable(Doubt::TooDeep { limit: FRAMES });
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
        let at = if state.signal { state.ip } else { Gva(state.ip.0.wrapping_sub(1)) };
        let orc = self.code.orc(at).map_err(|why| Doubt::NoTable { at: state.ip, why })?;
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
                let ip = self.word(slot, bounds)?;
                *state = State { ip, sp, saved: Saved::None, ..*state };
                self.check_call(ip, slot)?;
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

    /// Whether the processor was in user space at the only place where a task's stack may say so: its top.
    fn check_user_end(&self, start: Gva, bounds: &Bounds<'_>) -> Result<(), Doubt> {
        let end = start.wrapping_add(self.kernel.model().layout.registers_bytes);
        if bounds.ends_at(end) { Ok(()) } else { Err(Doubt::WrongEnd { at: start }) }
    }

    /// Whether `address`, found at `slot`, was left there by a call (Intel SDM vol. 2A, CALL).
    fn check_call(&self, address: Gva, slot: Gva) -> Result<(), Doubt> {
        let mut bytes = [0; 7];
        let before = Gva(address.0.wrapping_sub(7));
        let readable = self.kernel.space().read(before, &mut bytes).is_ok();
        let new = address == self.kernel.now(self.kernel.model().symbols.fork_return);
        if new || readable && ends_with_call(bytes) { Ok(()) } else { Err(Doubt::NoCall { address, slot }) }
    }
}

/// Whether the last of these bytes are those of a near call: E8 with 32 bits, or FF /2 in any of its forms.
fn ends_with_call(bytes: [u8; 7]) -> bool {
    let indirect = |len: usize| {
        let instruction = &bytes[7 - len..];
        let [0xff, form, rest @ ..] = instruction else { return false };
        let (mode, digit, base) = (form >> 6, form >> 3 & 7, form & 7);
        let sib = usize::from(mode != 3 && base == 4);
        let displacement = match mode {
            0 if base == 5 => 4,
            0 if sib == 1 && rest.first().is_some_and(|sib| sib & 7 == 5) => 4,
            1 => 1,
            2 => 4,
            _ => 0,
        };
        digit == 2 && len == 2 + sib + displacement
    };
    bytes[2] == 0xe8 || [2, 3, 4, 6, 7].into_iter().any(indirect)
}

/// The stacks that a walk may be on.
#[derive(Debug)]
struct Bounds<'c> {
    cpu: Option<&'c CpuStacks>,
    /// The lower end of the task's stack, once it is known.
    task: Option<Gva>,
    task_bytes: u64,
}

impl Bounds<'_> {
    /// Whether 8 bytes at `at` are on one of the stacks.
    fn check(&mut self, at: Gva) -> Result<(), Doubt> {
        match self.stack_of(at) {
            Some(_) => Ok(()),
            // A vCPU's task is told by its stack, which is where its processor's own stacks lead to.
            None if self.task.is_none() && at.0 >> 63 == 1 => {
                self.task = Some(Gva(at.0 & !(self.task_bytes - 1)));
                Ok(())
            }
            None => Err(Doubt::OffStack { at }),
        }
    }

    fn stack_of(&self, at: Gva) -> Option<(StackKind, Gva)> {
        let fits = |start: Gva, end: Gva| at >= start && at.0 <= end.0.wrapping_sub(8);
        if let Some(start) = self.task.filter(|&start| fits(start, start.wrapping_add(self.task_bytes))) {
            return Some((StackKind::Task, start));
        }
        let ranges = self.cpu.into_iter().flat_map(|cpu| &cpu.ranges);
        ranges
            .into_iter()
            .find(|(_, range)| fits(range.start, range.end))
            .map(|(kind, range)| (*kind, range.start))
    }

    /// A frame further out is further up on the same stack.
    fn check_direction(&self, before: Gva, now: Gva) -> Result<(), Doubt> {
        let same = self.stack_of(before).is_some() && self.stack_of(before) == self.stack_of(now);
        if same && now <= before { Err(Doubt::Circle { at: before }) } else { Ok(()) }
    }

    /// Whether the task's stack ends at `end`, or close to it: kernels that know FRED leave room for 16 bytes more.
    fn ends_at(&self, end: Gva) -> bool {
        let top = self.task.map(|start| start.wrapping_add(self.task_bytes));
        top.is_some_and(|top| top == end || top.0 == end.0.wrapping_add(16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_by_their_last_bytes() {
        let calls: [&[u8]; 8] = [
            &[0xe8, 1, 2, 3, 4],
            &[0xff, 0xd0],
            &[0x41, 0xff, 0xd3],
            &[0xff, 0x15, 1, 2, 3, 4],
            &[0xff, 0x14, 0x25, 1, 2, 3, 4],
            &[0xff, 0x50, 0x18],
            &[0xff, 0x54, 0x24, 8],
            &[0xff, 0x90, 1, 2, 3, 4],
        ];
        let padded = |bytes: &[u8]| {
            let mut all = [0x90; 7];
            all[7 - bytes.len()..].copy_from_slice(bytes);
            all
        };
        for call in calls {
            assert!(ends_with_call(padded(call)), "{call:x?}");
        }
        for other in
            [&[0xe9, 1, 2, 3, 4][..], &[0xff, 0xe0], &[0xff, 0x25, 1, 2, 3, 4], &[0xff, 0x0d, 1, 2, 3, 4]]
        {
            assert!(!ends_with_call(padded(other)), "{other:x?}");
        }
    }
}
