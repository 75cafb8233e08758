//! What KVM says about itself, asked of a VM made for the purpose.

use kvm_bindings::{KVM_CAP_MULTI_ADDRESS_SPACE, KVM_CAP_SET_GUEST_DEBUG2, KVM_GUESTDBG_BLOCKIRQ};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::facts::{KvmFacts, KvmState, VmError, VmFacts};
use super::host::group_of;
use crate::config::Trapping;
use crate::trap::{Means, Proof};

pub(super) fn observe() -> KvmState {
    match Kvm::new() {
        Ok(kvm) => KvmState::Open(KvmFacts { api_version: kvm.get_api_version(), vm: vm(&kvm) }),
        Err(error) => match error.errno() {
            // No device file, or one with no driver behind it.
            libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmState::Missing,
            libc::EACCES | libc::EPERM => KvmState::Denied { group: group_of("/dev/kvm") },
            _ => KvmState::Broken { error: error.to_string() },
        },
    }
}

/// Lets a tiny guest be trapped.
pub(super) fn traps() -> Result<Means, String> {
    let kvm = Kvm::new().map_err(|error| error.to_string())?;
    Proof::of(&kvm, Trapping::Best).means()
}

fn vm(kvm: &Kvm) -> Result<VmFacts, VmError> {
    let vm = kvm
        .create_vm()
        .map_err(|error| VmError { busy: error.errno() == libc::EBUSY, error: error.to_string() })?;
    let debug = number(vm.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into()));
    Ok(VmFacts {
        max_vcpus: number(vm.check_extension_int(Cap::MaxVcpus)),
        irqchip: vm.check_extension(Cap::Irqchip),
        immediate_exit: vm.check_extension(Cap::ImmediateExit),
        eventfds: vm.check_extension(Cap::Irqfd) && vm.check_extension(Cap::Ioeventfd),
        tsc_deadline: vm.check_extension(Cap::TscDeadlineTimer),
        sync_regs: vm.check_extension(Cap::SyncRegs),
        address_spaces: number(vm.check_extension_raw(KVM_CAP_MULTI_ADDRESS_SPACE.into())),
        smm: vm.check_extension(Cap::X86Smm),
        single_step: vm.check_extension(Cap::SetGuestDebug),
        step_without_interrupts: debug & u64::from(KVM_GUESTDBG_BLOCKIRQ) != 0,
        vcpu: can_make_vcpu(&vm),
    })
}

/// A capability's value; what KVM does not know it answers with zero or an error, both "no".
fn number(value: i32) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn can_make_vcpu(vm: &VmFd) -> bool {
    vm.create_vcpu(0).is_ok()
}
