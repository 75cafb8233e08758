//! A vCPU in real mode, as it is after a reset, with a few bytes of code: for what one exit after the other is.

use std::sync::Arc;

use lucos_vmm::sys::kvm::GuestVm;
use lucos_vmm::sys::vcpu::VcpuRun;
use vm_memory::{Bytes, GuestAddress};

/// Where the code is.
const START: u64 = 0x1000;

/// vCPU 0 of `vm`, about to run `code`, with `port` in DX.
pub(crate) fn real_mode(vm: &Arc<GuestVm>, code: &[u8], port: u16) -> VcpuRun {
    vm.ram().memory().write_slice(code, GuestAddress(START)).unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut sregs = vcpu.fd().get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.fd().set_sregs(&sregs).unwrap();
    let mut regs = vcpu.fd().get_regs().unwrap();
    (regs.rip, regs.rdx, regs.rflags) = (START, u64::from(port), 2);
    vcpu.fd().set_regs(&regs).unwrap();
    vcpu
}
