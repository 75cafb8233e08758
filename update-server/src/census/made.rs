//! Frames of code that the kernel has made while it runs, which no unwind table tells of. The guest's own unwinder guesses
//! there; here the code itself is followed, and what it does not say is doubt.

use super::code::{Code, CodeKind};
use super::flow;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::{Base, FrameKind, OrcEntry};
use crate::kernel::bpf::BpfText;
use crate::kernel::probes::{Detour, Probe};
use crate::kernel::running::Running;
use crate::steps::Steps;

/// Each half of a dispatcher's page is used while the other is rewritten (`kernel/bpf/dispatcher.c`, `bpf_dispatcher_update`).
const DISPATCHER: &str = "bpf_dispatcher_";
const HALF_PAGE: u64 = 0x800;

/// What `of` makes of the state in which the instruction at `at` is reached in the code from `start` to `end`, if there is one
/// answer only.
fn state<T: PartialEq + Copy>(
    kernel: &Running<'_, impl Memory>,
    start: Gva,
    end: Gva,
    at: Gva,
    steps: &Steps,
    of: impl Fn(flow::State) -> T,
) -> Result<T, String> {
    let code = flow::code(kernel.space(), start, end, steps).map_err(|error| error.to_string())?;
    let states = flow::states(&code, start.0, at.0, steps);
    let mut answers = states.into_iter().map(of);
    let first = answers.next().ok_or("no way was found from its first instruction")?;
    // A program that may go on to others takes its registers from the stack for that, and does not always go.
    if answers.any(|answer| answer != first) {
        return Err("it is reached with different stacks".to_owned());
    }
    Ok(first)
}

/// In a BPF program, or what calls one: they begin like any function, and keep a frame pointer
/// (`arch/x86/net/bpf_jit_comp.c`, `emit_prologue`, `arch_prepare_bpf_trampoline`; 6.1 and 6.12). Dispatchers only jump.
pub(super) fn bpf(
    kernel: &Running<'_, impl Memory>,
    piece: &BpfText,
    at: Gva,
    steps: &Steps,
) -> Result<OrcEntry, String> {
    let half = piece.text.start.wrapping_add(HALF_PAGE);
    let start = if piece.name.starts_with(DISPATCHER) && at >= half { half } else { piece.text.start };
    let entry = state(kernel, start, piece.text.end, at, steps, flow::State::orc)?;
    entry.ok_or_else(|| "it keeps its frame in another register".to_owned())
}

/// In the copy of one instruction: as in the original.
pub(super) fn slot<M: Memory>(
    code: &Code<'_, '_, M>,
    probe: &Probe,
    at: Gva,
    steps: &Steps,
) -> Result<OrcEntry, String> {
    let start = probe.slot.as_ref().map_or(at, |slot| slot.start);
    original(code, probe.at.wrapping_add(at.0 - start.0), steps)
}

/// In a detour: as in the original, with what the detour has put on the stack.
pub(super) fn detour<M: Memory>(
    code: &Code<'_, '_, M>,
    probe: &Probe,
    detour: &Detour,
    at: Gva,
    steps: &Steps,
) -> Result<OrcEntry, String> {
    if let Some(offset) = at.offset_from(detour.copied_at) {
        // Behind the copied instructions is the jump back.
        return original(code, probe.at.wrapping_add(offset.min(detour.copied)), steps);
    }
    let entry = original(code, probe.at, steps)?;
    let depth = state(code.kernel(), detour.text.start, detour.copied_at, at, steps, flow::State::depth)?;
    let depth = depth.ok_or("it does not keep the frame pointer")?;
    match (entry.kind, entry.sp) {
        // A frame that is found from the frame pointer is where it was.
        (FrameKind::Call, Base::Bp) => Ok(entry),
        (FrameKind::Call, Base::Sp) => i16::try_from(i64::from(entry.sp_offset) + depth)
            .map(|sp_offset| OrcEntry { sp_offset, ..entry })
            .map_err(|_| "it has too much on the stack".to_owned()),
        _ => Err("the probe is where no function's frame is".to_owned()),
    }
}

/// The entry for an instruction that was copied. It cannot be in code that was made in turn: no probe may be there
/// (`kernel/kprobes.c`, `check_kprobe_address_safe`).
fn original<M: Memory>(code: &Code<'_, '_, M>, at: Gva, steps: &Steps) -> Result<OrcEntry, String> {
    match code.kind(at) {
        CodeKind::Kernel | CodeKind::Module(_) => code.orc(at, steps),
        _ => Err("it is said to be a copy of what is no function of the kernel or a module".to_owned()),
    }
}
