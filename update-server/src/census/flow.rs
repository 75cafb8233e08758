//! What a function's instructions say of its frame, for holding an unwind table against them that may not be believed.
//!
//! From the function's first instruction on every path is followed, as objtool follows them when it makes the table
//! (tools/objtool/check.c); here only the stack pointer and the frame pointer matter.

use std::collections::HashMap;

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpAccess, OpKind, Register,
};
use iced_x86::{InstructionInfoFactory, InstructionInfoOptions};

use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::{Base, FrameKind, OrcEntry};
use crate::kernel::space::{AddressSpace, ReadError};
use crate::limits::{BYTES_PER_STEP, FOLLOWED_INSTRUCTIONS, FUNCTION_BYTES};
use crate::steps::Steps;

/// More ways to be at one instruction than compilers make: one, or a second behind a call that does not return.
const WAYS: usize = 4;

/// Where the stack and the frame are at an instruction. Offsets are from the stack pointer that the caller has after the
/// return, which ORC calls the previous one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    sp: i64,
    bp: FramePointer,
    /// Where the caller's frame pointer was saved.
    saved: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FramePointer {
    /// Still the caller's.
    Caller,
    /// This offset.
    Frame(i64),
    /// Something else.
    Other,
}

const AT_ENTRY: State = State { sp: -8, bp: FramePointer::Caller, saved: None };

impl State {
    /// How to walk on from there.
    pub(super) fn orc(self) -> Option<OrcEntry> {
        let narrow = |offset: i64| i16::try_from(offset).ok();
        let (sp, sp_offset) = match self.bp {
            // The stack may have grown by more than is known here; the frame stays.
            FramePointer::Frame(frame) => (Base::Bp, narrow(-frame)?),
            // It has skipped its own return address and returns to its caller's caller, as that caller would have at its
            // entry. What was skipped is no longer on the stack.
            FramePointer::Caller if self.sp == 0 => (Base::Sp, 8),
            _ => (Base::Sp, narrow(-self.sp)?),
        };
        let (bp, bp_offset) = match (self.bp, self.saved) {
            (FramePointer::Caller, _) => (Base::Undefined, 0),
            (_, Some(saved)) => (Base::PreviousSp, narrow(saved)?),
            _ => return None,
        };
        Some(OrcEntry { sp, sp_offset, bp, bp_offset, kind: FrameKind::Call, signal: false })
    }

    /// How many bytes are on the stack besides the return address, if the frame pointer is still the caller's.
    pub(super) fn depth(self) -> Option<i64> {
        (self.bp == FramePointer::Caller).then_some(-8 - self.sp)
    }

    /// Whether `orc` says the same.
    pub fn agrees(self, orc: OrcEntry) -> bool {
        let sp = match orc.sp {
            Base::Sp => self.sp + i64::from(orc.sp_offset) == 0,
            Base::Bp => self.bp == FramePointer::Frame(-i64::from(orc.sp_offset)),
            // What is in another register or in memory is not followed.
            _ => true,
        };
        let bp = match orc.bp {
            Base::Undefined => self.bp == FramePointer::Caller,
            Base::PreviousSp => self.saved == Some(i64::from(orc.bp_offset)),
            _ => true,
        };
        orc.kind == FrameKind::Call && sp && bp
    }
}

/// The code from `start` to `end`, or what can be followed of it; it takes its share from `steps`.
pub(super) fn code(
    space: &AddressSpace<'_, impl Memory>,
    start: Gva,
    end: Gva,
    steps: &Steps,
) -> Result<Vec<u8>, ReadError> {
    let len = end.offset_from(start).unwrap_or(0).min(FUNCTION_BYTES);
    steps.take_up_to(len / BYTES_PER_STEP);
    let mut code = vec![0; usize::try_from(len).unwrap_or(0)];
    space.read(start, &mut code)?;
    Ok(code)
}

/// The states in which the instruction that has the byte at `at` can be reached in the function `code`, which begins at
/// `start`. There is none if no path to it is known: it is behind an exception or a switch that is off. Each instruction
/// that is followed takes one from `steps`; with nothing left there is none either.
pub fn states(code: &[u8], start: u64, at: u64, steps: &Steps) -> Vec<State> {
    let mut seen: HashMap<u64, Vec<State>> = HashMap::new();
    let mut left = vec![(start, AT_ENTRY)];
    let mut found = Vec::new();
    let mut info = InstructionInfoFactory::new();
    let mut decoder = Decoder::with_ip(64, code, start, DecoderOptions::NONE);
    for _ in 0..FOLLOWED_INSTRUCTIONS {
        let Some((ip, state)) = left.pop() else { return found };
        if !steps.take() {
            break;
        }
        let Some(offset) = ip.checked_sub(start).and_then(|offset| usize::try_from(offset).ok()) else {
            continue;
        };
        let ways = seen.entry(ip).or_default();
        if offset >= code.len() || ways.len() >= WAYS || ways.contains(&state) {
            continue;
        }
        ways.push(state);
        if decoder.set_position(offset).is_err() {
            continue;
        }
        decoder.set_ip(ip);
        let instruction = decoder.decode();
        if instruction.code() == Code::INVALID {
            continue;
        }
        if (ip..instruction.next_ip()).contains(&at) {
            found.push(state);
        }
        let target = instruction.near_branch_target();
        let (next, branches) = match instruction.flow_control() {
            // A call to the instruction behind it is a way to find its address, and no call.
            FlowControl::Call if target == instruction.next_ip() => (false, false),
            FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => (true, false),
            FlowControl::ConditionalBranch => (true, true),
            FlowControl::UnconditionalBranch => (false, true),
            _ => (false, false),
        };
        let Some(after) = step(&instruction, state, &mut info) else { continue };
        if branches {
            left.push((target, after));
        }
        if next {
            left.push((instruction.next_ip(), after));
        }
    }
    // Too long to say anything about.
    Vec::new()
}

/// What an instruction makes of a state; `None` if the stack pointer is anywhere afterwards.
fn step(instruction: &Instruction, state: State, info: &mut InstructionInfoFactory) -> Option<State> {
    let State { sp, bp, saved } = state;
    let first = instruction.op0_register();
    let immediate = || match instruction.op1_kind() {
        OpKind::Register | OpKind::Memory => None,
        _ => Some(instruction.immediate(1).cast_signed()),
    };
    let memory = || {
        let displacement = instruction.memory_displacement64().cast_signed();
        let plain = instruction.memory_index() == Register::None;
        match instruction.memory_base() {
            Register::RSP if plain => Some(sp + displacement),
            Register::RBP if plain => match bp {
                FramePointer::Frame(frame) => Some(frame + displacement),
                _ => None,
            },
            _ => None,
        }
    };
    let restored = |from: Option<i64>| match from {
        Some(place) if Some(place) == saved => (FramePointer::Caller, None),
        _ => (FramePointer::Other, saved),
    };
    let after = match (instruction.mnemonic(), first) {
        (Mnemonic::Push | Mnemonic::Pushfq, _) => {
            let saves = first == Register::RBP && bp == FramePointer::Caller;
            State { sp: sp - 8, saved: if saves { Some(sp - 8) } else { saved }, ..state }
        }
        (Mnemonic::Pop, Register::RBP) => {
            let (bp, saved) = restored(Some(sp));
            State { sp: sp + 8, bp, saved }
        }
        (Mnemonic::Pop, Register::RSP) => return None,
        (Mnemonic::Pop | Mnemonic::Popfq, _) => State { sp: sp + 8, ..state },
        (Mnemonic::Add, Register::RSP) => State { sp: sp + immediate()?, ..state },
        (Mnemonic::Sub, Register::RSP) => State { sp: sp - immediate()?, ..state },
        (Mnemonic::Lea, Register::RSP) => State { sp: memory()?, ..state },
        (Mnemonic::Mov, Register::RSP) if instruction.op1_register() == Register::RBP => match bp {
            FramePointer::Frame(frame) => State { sp: frame, ..state },
            _ => return None,
        },
        (Mnemonic::Mov, Register::RBP) if instruction.op1_register() == Register::RSP => {
            State { bp: FramePointer::Frame(sp), ..state }
        }
        (Mnemonic::Mov, Register::RBP) if instruction.op1_kind() == OpKind::Memory => {
            let (bp, saved) = restored(memory());
            State { bp, saved, ..state }
        }
        (Mnemonic::Mov, _)
            if instruction.op0_kind() == OpKind::Memory
                && instruction.op1_register() == Register::RBP
                && bp == FramePointer::Caller =>
        {
            State { saved: memory().or(saved), ..state }
        }
        (Mnemonic::Leave, _) => {
            let FramePointer::Frame(frame) = bp else { return None };
            let (bp, saved) = restored(Some(frame));
            State { sp: frame + 8, bp, saved }
        }
        // A call comes back as it went.
        (Mnemonic::Call, _) => state,
        _ => {
            let used = info.info_options(instruction, InstructionInfoOptions::NO_MEMORY_USAGE);
            let writes = |register: Register| {
                let written = |access| {
                    matches!(
                        access,
                        OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
                    )
                };
                let mut all = used.used_registers().iter();
                all.any(|other| other.register().full_register() == register && written(other.access()))
            };
            if writes(Register::RSP) {
                return None;
            }
            if writes(Register::RBP) { State { bp: FramePointer::Other, ..state } } else { state }
        }
    };
    Some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `push rbp; mov rbp,rsp; push rbx; sub rsp,0x10; test edi,edi; jz 1f; call 0; 1: add rsp,0x10; pop rbx; pop rbp; ret`,
    /// and behind it what no path leads to.
    const FRAMED: [u8; 27] = [
        0x55, 0x48, 0x89, 0xe5, 0x53, 0x48, 0x83, 0xec, 0x10, 0x85, 0xff, 0x74, 0x05, 0xe8, 0, 0, 0, 0, 0x48,
        0x83, 0xc4, 0x10, 0x5b, 0x5d, 0xc3, 0x90, 0x90,
    ];

    fn orc(sp: Base, sp_offset: i16, bp: Base, bp_offset: i16) -> OrcEntry {
        OrcEntry { sp, sp_offset, bp, bp_offset, kind: FrameKind::Call, signal: false }
    }

    fn agree(at: u64, orc: OrcEntry) -> bool {
        let states = states(&FRAMED, 0x1000, 0x1000 + at, &Steps::new(1000));
        assert!(!states.is_empty());
        states.iter().any(|state| state.agrees(orc))
    }

    #[test]
    fn a_true_table_agrees_at_every_instruction() {
        assert!(agree(0, orc(Base::Sp, 8, Base::Undefined, 0)));
        assert!(agree(1, orc(Base::Sp, 16, Base::PreviousSp, -16)));
        for at in [4, 5, 9, 11, 13, 17, 18, 22] {
            assert!(agree(at, orc(Base::Bp, 16, Base::PreviousSp, -16)), "{at}");
        }
        assert!(agree(13, orc(Base::Sp, 40, Base::PreviousSp, -16)));
        assert!(agree(23, orc(Base::Sp, 16, Base::PreviousSp, -16)));
        assert!(agree(24, orc(Base::Sp, 8, Base::Undefined, 0)));
    }

    #[test]
    fn a_forged_table_does_not() {
        // One return address too far out; the caller's frame pointer taken for saved elsewhere, and for still there.
        assert!(!agree(17, orc(Base::Sp, 48, Base::PreviousSp, -16)));
        assert!(!agree(17, orc(Base::Bp, 24, Base::PreviousSp, -16)));
        assert!(!agree(17, orc(Base::Bp, 16, Base::PreviousSp, -24)));
        assert!(!agree(17, orc(Base::Bp, 16, Base::Undefined, 0)));
        let end = OrcEntry { kind: FrameKind::End, ..orc(Base::Bp, 16, Base::PreviousSp, -16) };
        assert!(!agree(17, end));
    }

    #[test]
    fn a_skipped_return_address_is_looked_for_no_more() {
        // `push rbp; mov rbp,rsp; sub rsp,0x10; leave; add rsp,8; ret`.
        const SKIPS: [u8; 14] =
            [0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10, 0xc9, 0x48, 0x83, 0xc4, 0x08, 0xc3];
        let orc_at = |at: u64| match states(&SKIPS, 0x1000, 0x1000 + at, &Steps::new(1000))[..] {
            [state] => state.orc(),
            _ => None,
        };
        assert_eq!(orc_at(8), Some(orc(Base::Bp, 16, Base::PreviousSp, -16)));
        assert_eq!(orc_at(9), Some(orc(Base::Sp, 8, Base::Undefined, 0)));
        assert_eq!(orc_at(13), Some(orc(Base::Sp, 8, Base::Undefined, 0)));
    }

    #[test]
    fn nothing_is_said_where_no_path_leads() {
        let states = |code, start, at| states(code, start, at, &Steps::new(1000));
        assert_eq!(states(&FRAMED, 0x1000, 0x1019), []);
        assert_eq!(states(&[], 0x1000, 0x1000), []);
        assert_eq!(states(&FRAMED, u64::MAX - 8, 3), []);
        // A loop that pushes without an end.
        assert_eq!(states(&[0x55, 0xeb, 0xfd], 0x1000, 0x1003), []);
        assert_eq!(super::states(&FRAMED, 0x1000, 0x1018, &Steps::new(3)), []);
    }
}
