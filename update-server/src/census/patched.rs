//! The depth of the stack within code that the kernel has patched into itself.
//!
//! The unwind table describes one of several alternatives, and says of the thunks for indirect calls that nobody knows. Both
//! are a few instructions without a branch that is not certain, so they can be followed from their start.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Mnemonic, OpKind, Register};

/// More than any of them takes.
const STEPS: usize = 64;

/// How many bytes more are on the stack at `ip` than at the start of `code`, which begins at `start`; `None` if the way from
/// there to `ip` is not certain.
pub(super) fn depth(code: &[u8], start: u64, ip: u64) -> Option<i64> {
    let within = start..start.checked_add(code.len() as u64)?;
    let (mut at, mut depth) = (start, 0);
    for _ in 0..STEPS {
        if at == ip {
            return Some(depth);
        }
        let offset = usize::try_from(at.checked_sub(start)?).ok()?;
        let mut decoder = Decoder::with_ip(64, code.get(offset..)?, at, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let target = instruction.near_branch_target();
        at = instruction.next_ip();
        match instruction.flow_control() {
            // A call to the next instructions leaves its return address there; another one comes back.
            FlowControl::Call if within.contains(&target) => {
                depth += 8;
                at = target;
            }
            FlowControl::UnconditionalBranch if within.contains(&target) => at = target,
            // A loop ends as deep as it begins.
            FlowControl::Next | FlowControl::Call | FlowControl::ConditionalBranch => {}
            _ => return None,
        }
        depth += match instruction.mnemonic() {
            Mnemonic::Push => 8,
            Mnemonic::Pop => -8,
            Mnemonic::Add | Mnemonic::Sub if instruction.op0_register() == Register::RSP => {
                if matches!(instruction.op1_kind(), OpKind::Register | OpKind::Memory) {
                    return None;
                }
                let bytes = instruction.immediate(1).cast_signed();
                if instruction.mnemonic() == Mnemonic::Add { -bytes } else { bytes }
            }
            _ if instruction.code() == Code::INVALID => return None,
            _ => 0,
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fills the return stack buffer when tasks switch:
    /// `mov $16,%r12d; 1: call 2f; int3; 2: call 3f; int3; 3: add $16,%rsp; dec %r12; jnz 1b; lfence`.
    const FILL: [u8; 28] = [
        0x41, 0xbc, 16, 0, 0, 0, 0xe8, 1, 0, 0, 0, 0xcc, 0xe8, 1, 0, 0, 0, 0xcc, 0x48, 0x83, 0xc4, 0x10,
        0x49, 0xff, 0xcc, 0x75, 0xeb, 0x90,
    ];
    /// An indirect jump that nothing speculates past: `call 2f; 1: pause; lfence; jmp 1b; 2: mov %rax,(%rsp); ret`.
    const THUNK: [u8; 17] =
        [0xe8, 7, 0, 0, 0, 0xf3, 0x90, 0x0f, 0xae, 0xe8, 0xeb, 0xf9, 0x48, 0x89, 0x04, 0x24, 0xc3];

    #[test]
    fn calls_that_do_not_return_are_counted() {
        let at = |offset: u64| depth(&FILL, 0x1000, 0x1000 + offset);
        assert_eq!([at(0), at(6), at(12), at(18), at(22), at(27)], [0, 0, 8, 16, 0, 0].map(Some));
        let at = |offset: u64| depth(&THUNK, 0x1000, 0x1000 + offset);
        assert_eq!([at(0), at(12), at(16)], [0, 8, 8].map(Some));
    }

    #[test]
    fn what_is_never_reached_has_no_depth() {
        // The instructions that only speculation reaches, the middle of one, and what lies behind the end.
        assert_eq!([11, 7, 100].map(|offset| depth(&FILL, 0x1000, 0x1000 + offset)), [None; 3]);
        assert_eq!(depth(&THUNK, 0x1000, 0x1005), None);
        assert_eq!(depth(&[], 0x1000, 0x1001), None);
    }
}
