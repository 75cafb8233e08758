//! Model-specific registers that firmware would have set.

use std::io;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::sys::kvm::KvmError;

/// `IA32_MISC_ENABLE` (Intel SDM vol. 4, 2.1): fast strings.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// `IA32_MTRR_DEF_TYPE` (Intel SDM vol. 3A, 12.11.2.1): MTRRs on, all memory write-back.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, (1 << 11) | 6);

/// `IA32_SMBASE` (Intel SDM vol. 4, 2.1): a place where no RAM can be (`memory::MMIO_HOLE`) and no device is.
///
/// KVM takes every SMI that a guest sends itself, by its local APIC or by an MSI, and there is no way to refuse
/// them. With this base the first instruction in system management mode already leaves to the VMM, so that a
/// guest can neither run where page protection does not reach nor spin there unseen. The guest itself cannot
/// write this MSR, and INIT leaves it alone (KVM x86.c, `kvm_set_msr_common`, `kvm_vcpu_reset`; Linux 6.1).
const SMBASE: (u32, u64) = (0x9e, 0xfef0_0000);

/// Sets them on one vCPU; its CPUID must be set already.
pub(super) fn set_boot_msrs(vcpu: &VcpuFd) -> Result<(), KvmError> {
    set(vcpu, &[MISC_ENABLE, MTRR_DEF_TYPE])
}

/// Leaves nothing to run in system management mode; for a KVM that has it.
pub(super) fn close_system_management(vcpu: &VcpuFd) -> Result<(), KvmError> {
    set(vcpu, &[SMBASE])
}

fn set(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), KvmError> {
    for &(index, data) in values {
        let entry = kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
        let msrs = Msrs::from_entries(&[entry]).expect("one entry fits");
        let written = vcpu.set_msrs(&msrs).map_err(KvmError::of("KVM_SET_MSRS"))?;
        if written != 1 {
            // KVM answers with the number it took, not with an error.
            let source = io::Error::other(format!("MSR {index:#x} cannot be set to {data:#x}"));
            return Err(KvmError { call: "KVM_SET_MSRS", source });
        }
    }
    Ok(())
}
