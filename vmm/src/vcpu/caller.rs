//! The registers of a vCPU that makes a hypercall.

use kvm_ioctls::VcpuFd;

use crate::agent::Caller;
use crate::sys::kvm::KvmError;

/// Reads them; on the vCPU's own thread, with the exit for the port not completed yet.
///
/// KVM writes what its emulator holds back to the vCPU first, so that they are those of the instruction (`KVM_GET_REGS`,
/// arch/x86/kvm/x86.c, `__get_regs`: "in the middle of instruction emulation").
pub(super) fn caller(fd: &VcpuFd) -> Result<Caller, KvmError> {
    let regs = fd.get_regs().map_err(KvmError::of("KVM_GET_REGS"))?;
    let sregs = fd.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?;
    Ok(Caller {
        rbx: regs.rbx,
        rcx: regs.rcx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        cr0: sregs.cr0,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
        code_is_64_bit: sregs.cs.l != 0,
        // As in a snapshot: that of the stack's segment.
        cpl: sregs.ss.dpl,
    })
}
