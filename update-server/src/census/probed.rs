//! Interruptions in what kprobes have put in the place of instructions (`arch/x86/kernel/kprobes/core.c`, 6.1 and 6.12).
//!
//! A probe is INT3 in the place of an instruction. Its handler lets the task go on in a copy of that, behind which is another
//! INT3, whose handler lets it go on behind the original. INT3 leaves the address behind itself.

use iced_x86::{Decoder, DecoderOptions};

use super::code::{Code, CodeKind};
use crate::addr::Gva;
use crate::guest::Memory;
use crate::kernel::probes::Probe;
use crate::x86::INT3;

/// Bytes of an instruction, at most (Intel SDM vol. 2A, 2.3.11).
const LONGEST: usize = 15;

/// Where a task stands that was interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interrupted {
    /// Before the instruction at its address, as it seems.
    Before,
    /// Before the one that ends there: INT3 is in its place.
    Behind,
    /// Either. The instruction that a probe is on has one byte, like INT3, and may have been run in the copy.
    Either,
}

/// Where the task is that was interrupted with `ip` as its next instruction.
pub(super) fn interrupted<M: Memory>(code: &Code<'_, '_, M>, ip: Gva) -> Interrupted {
    if let CodeKind::Slot(probe) = code.kind(ip) {
        let behind = probe.slot.as_ref().and_then(|slot| ip.offset_from(slot.start));
        return match (behind, copy(code, probe)) {
            (Some(behind), Some((len, INT3))) if behind == len + 1 => Interrupted::Behind,
            _ => Interrupted::Before,
        };
    }
    // In a longer one the address is in the middle of it, where the frame is as at its start.
    let probe = code.probe_on(Gva(ip.0.wrapping_sub(1)));
    match probe.and_then(|probe| copy(code, probe)) {
        Some((1, _)) => Interrupted::Either,
        _ => Interrupted::Before,
    }
}

/// How long the copy of a probe's instruction is, and the byte behind it; `None` where ftrace's call is the probe.
fn copy<M: Memory>(code: &Code<'_, '_, M>, probe: &Probe) -> Option<(u64, u8)> {
    let start = probe.slot.as_ref()?.start;
    measure(&code.kernel().space().array(start).ok()?)
}

fn measure(copy: &[u8; LONGEST + 1]) -> Option<(u64, u8)> {
    let instruction = Decoder::new(64, copy, DecoderOptions::NONE).decode();
    let behind = *copy.get(instruction.len())?;
    (!instruction.is_invalid()).then_some((instruction.len() as u64, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_measured() {
        let copy = |bytes: &[u8]| {
            let mut all = [0x90; LONGEST + 1];
            all[..bytes.len()].copy_from_slice(bytes);
            measure(&all)
        };
        assert_eq!(copy(&[0x53, INT3]), Some((1, INT3)));
        assert_eq!(copy(&[0x41, 0x57, INT3]), Some((2, INT3)));
        assert_eq!(copy(&[0x53, 0xe9, 0, 0, 0, 0]), Some((1, 0xe9)));
        assert_eq!(copy(&[0x06]), None);
    }
}
