//! One step of one vCPU, on the ground where watched pages are open.

use std::io;

use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, kvm_guest_debug, kvm_regs,
};
use kvm_ioctls::VcpuFd;

use super::alarm::{Alarm, LIMIT};
use super::armed::ArmedPages;
use super::frame;
use super::ground::{Ground, Plan};
use super::in_place::{RF, TF};
use crate::sys::vcpu::{Attached, VcpuState};
use crate::vcpu::{ExitCounters, VmExit};

/// How often a step that has changed nothing is begun again: Bochs 2.7 notes a step before the instruction is carried out, and when
/// that leaves the guest keeps the note for the next entry, where a processor forgets it (Intel SDM vol. 3C, "Saving Non-Register
/// State"). An instruction that jumps to itself changes nothing, either.
const AGAIN: usize = 8;
/// How often everything is opened in one step: a second time something may have been closed meanwhile.
const OPENED: usize = 2;

/// How it ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The instruction, or one iteration of it, was carried out.
    Done {
        /// What it left.
        regs: Box<kvm_regs>,
        /// The debug conditions that were met, its end among them: DR6.
        dr6: u64,
    },
    /// The event was delivered, or the kernel was entered or left; the vCPU is in front of what comes then.
    Delivered(Box<kvm_regs>),
    /// An event comes first, or the vCPU is to begin anew: the guest has to be entered for it. What the instruction did before is done.
    Before,
    /// It left for something that is served outside, as any other exit.
    Outside,
    /// It was RSM, which another vCPU has put in its way after it was looked at: KVM takes the vCPU for one in system management mode.
    /// Registers may be what was found in memory; a processor would have raised an exception.
    Resumed,
    /// It did not end where it should have.
    Escaped {
        /// What was seen of it.
        why: String,
        /// Whether it left for something that is served outside.
        serve: bool,
    },
}

/// What a step is to do.
#[derive(Debug)]
pub(super) struct Trip<'a> {
    pub(super) vcpu: usize,
    /// The state in front of it.
    pub(super) state: &'a VcpuState,
    /// Whether it delivers an event to its handler, or carries out an instruction that does.
    pub(super) delivers: bool,
    /// Whether the processor stops behind one instruction. Otherwise what comes then is closed.
    pub(super) steps: bool,
    pub(super) plan: Plan<'a>,
    /// Whether KVM can keep interrupts away meanwhile.
    pub(super) blocks_interrupts: bool,
    /// Where its exits are counted, as those outside of steps are.
    pub(super) exits: &'a ExitCounters,
}

impl Trip<'_> {
    /// Makes it. The vCPU has left the ground afterwards, however it ended, and nothing is being debugged.
    pub(super) fn make(
        &self,
        vcpu: &mut Attached<'_>,
        ground: &mut Ground,
        pages: &ArmedPages,
        alarm: &Alarm,
    ) -> io::Result<Ended> {
        let mut control = KVM_GUESTDBG_ENABLE;
        if self.blocks_interrupts {
            control |= KVM_GUESTDBG_BLOCKIRQ;
        }
        if self.steps {
            control |= KVM_GUESTDBG_SINGLESTEP;
        }
        guest_debug(vcpu.fd(), control)?;
        let ended = ground.enter(vcpu, self.plan, pages).and_then(|entered| {
            if !entered {
                return Ok(None);
            }
            // Other vCPUs are out by now: only the step counts.
            alarm.begin(self.vcpu);
            self.run(vcpu, ground, pages, alarm).map(Some)
        });
        let left = ground.leave(vcpu, pages);
        let still = guest_debug(vcpu.fd(), 0);
        alarm.end();
        let Some(ended) = ended? else { return Ok(Ended::Before) };
        let by_itself = left?;
        still?;
        // Behind a triple fault KVM resets it on AMD (arch/x86/kvm/svm/svm.c, `shutdown_interception`).
        Ok(if by_itself && !is_reset(vcpu)? { Ended::Resumed } else { ended })
    }

    /// Whether nothing was carried out, as far as registers tell. Those that KVM shows meanwhile have no trap flag, though the guest
    /// may have set it; and the resume flag is not the guest's doing.
    fn is_where_it_was(&self, regs: &kvm_regs) -> bool {
        let bare = |regs: &kvm_regs| kvm_regs { rflags: regs.rflags & !(TF | RF), ..*regs };
        bare(regs) == bare(&self.state.regs)
    }

    fn run(
        &self,
        vcpu: &mut Attached<'_>,
        ground: &mut Ground,
        pages: &ArmedPages,
        alarm: &Alarm,
    ) -> io::Result<Ended> {
        let (mut again, mut opened, mut extended) = (0, 0, false);
        // What a single step does not stop at is stopped at there.
        let keep = if self.steps { &[] } else { self.plan.close };
        loop {
            let exit = vcpu.step()?;
            self.exits.count(exit.kind());
            match exit {
                VmExit::Stepped { dr6 } => {
                    // So Linux 6.12 says that RSM has no state to resume, and goes on behind it (arch/x86/kvm/emulate.c, `em_rsm`).
                    // The processor's own shutdowns come as an exit.
                    if vcpu.take_back_shutdown()? {
                        return Ok(Ended::Resumed);
                    }
                    let regs = vcpu.general_registers()?;
                    if self.is_where_it_was(&regs) && again < AGAIN {
                        again += 1;
                        continue;
                    }
                    return Ok(Ended::Done { regs: Box::new(regs), dr6 });
                }
                VmExit::Interrupted if alarm.is_over() => {
                    // Perhaps it was this process that stood still: a step that has done nothing has harmed nobody.
                    if extended || !self.is_where_it_was(&vcpu.general_registers()?) {
                        return Ok(Ended::Escaped { why: format!("it ran on for {LIMIT:?}"), serve: false });
                    }
                    extended = true;
                    alarm.begin(self.vcpu);
                }
                // Whoever wants the vCPU out has said so where it will be looked for after the step.
                VmExit::Interrupted => {}
                VmExit::Trapped => {
                    let injected = frame::injected(&vcpu.events()?).is_some();
                    let regs = vcpu.general_registers()?;
                    let before = &self.state.regs;
                    let moved = (regs.rip, regs.rsp) != (before.rip, before.rsp);
                    if !self.steps && !injected && moved {
                        return Ok(Ended::Delivered(Box::new(regs)));
                    }
                    if !self.delivers && injected {
                        return Ok(Ended::Before);
                    }
                    if opened == OPENED {
                        let why = "a page that it needs cannot be opened, or the host has none".into();
                        return Ok(Ended::Escaped { why, serve: false });
                    }
                    // Something that is closed is needed by more than a handler.
                    opened += 1;
                    ground.open_all(pages, keep)?;
                }
                VmExit::NotEmulated { data } if is_rsm(&data) => return Ok(Ended::Resumed),
                // KVM's emulator may need a page that is closed, too.
                VmExit::NotEmulated { .. } if opened < OPENED => {
                    opened += 1;
                    ground.open_all(pages, keep)?;
                }
                VmExit::Shutdown
                | VmExit::NotEmulated { .. }
                | VmExit::InternalError { .. }
                | VmExit::FailEntry { .. } => {
                    return Ok(Ended::Outside);
                }
                _ if self.steps => return Ok(Ended::Outside),
                // No event is delivered by way of a device.
                exit => {
                    let why = format!("it ran on behind an event ({:?})", exit.kind());
                    return Ok(Ended::Escaped { why, serve: true });
                }
            }
        }
    }
}

/// Whether what KVM failed to emulate was RSM: for want of a state to resume.
fn is_rsm(data: &[u64]) -> bool {
    let [flags, rest @ ..] = data else { return false };
    let bytes: Vec<u8> = rest.iter().flat_map(|word| word.to_le_bytes()).collect();
    // How many they are comes first (KVM api.rst 5, `KVM_EXIT_INTERNAL_ERROR`).
    let instruction = bytes.split_first().and_then(|(len, bytes)| bytes.get(..usize::from(*len)));
    flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0
        && instruction.is_some_and(|bytes| {
            Decoder::new(64, bytes, DecoderOptions::NONE).decode().mnemonic() == Mnemonic::Rsm
        })
}

/// Whether a vCPU is as after a reset, when it begins at the topmost 16 bytes below 4 GiB (Intel SDM vol. 3A, 10.1.1).
fn is_reset(vcpu: &Attached<'_>) -> io::Result<bool> {
    let VcpuState { regs, sregs, .. } = vcpu.state()?;
    Ok(sregs.cs.base.wrapping_add(regs.rip) == 0xffff_fff0 && sregs.cr0 & 1 == 0)
}

/// Has KVM step a vCPU, or keep interrupts away from it (KVM api.rst 4.87); 0 for neither.
pub(super) fn guest_debug(vcpu: &VcpuFd, control: u32) -> io::Result<()> {
    let debug = kvm_guest_debug { control, ..kvm_guest_debug::default() };
    Ok(vcpu.set_guest_debug(&debug)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rsm_is_known_by_what_kvm_says_of_it() {
        // As KVM of Linux 6.1 says it on AMD: two bytes, with what was there before behind them.
        assert!(is_rsm(&[1, 0x9090_9090_90aa_0f02, 0x9090_9090_9090_9090, 73]));
        assert!(!is_rsm(&[1, 0x9090_9090_90aa_0f01, 0]) && !is_rsm(&[0, 0x9090_9090_90aa_0f02, 0]));
        assert!(!is_rsm(&[1, 0xc00b_0f02, 0]) && !is_rsm(&[1, 0xff]) && !is_rsm(&[]));
    }
}
