//! What keeps a step from reaching other vCPUs by way of their interrupt controllers.
//!
//! While any vCPU of a machine keeps interrupts away for a step (`KVM_GUESTDBG_BLOCKIRQ`), KVM runs all of them without the
//! processor's virtual interrupt controller, and it calls every vCPU out of the guest whenever that changes (arch/x86/kvm/x86.c,
//! `kvm_arch_vcpu_guestdbg_update_apicv_inhibit`). Each step would do so twice. So while pages are watched, a vCPU that never runs
//! keeps interrupts away from itself, and steps change nothing.

use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE};

use super::trip::guest_debug;
use crate::sys::kvm::{GuestVm, KvmError};
use crate::sys::vcpu::VcpuRun;

/// That vCPU. No table of the guest names it; it waits for a start that never comes.
#[derive(Debug)]
pub(super) struct QuietVcpu(VcpuRun);

impl QuietVcpu {
    /// `id` is the first that none of the guest's vCPUs has.
    pub(super) fn new(vm: &Arc<GuestVm>, id: u8) -> Result<Self, KvmError> {
        Ok(Self(vm.create_vcpu(id)?))
    }

    /// Keeps interrupts away from it, or no longer.
    pub(super) fn hold(&self, on: bool) -> io::Result<()> {
        let control = if on { KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_BLOCKIRQ } else { 0 };
        guest_debug(self.0.fd(), control)
    }
}
