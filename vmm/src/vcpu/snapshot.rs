//! What a parked vCPU was doing.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED,
    Msrs, kvm_msr_entry, kvm_regs, kvm_sregs,
};
use update_server::guest::{Registers, Vcpu};

use crate::sys::kvm::KvmError;
use crate::sys::vcpu::VcpuPeer;

/// MSRs (Intel SDM vol. 4, 2.1): where SYSCALL enters the kernel, and what SWAPGS exchanges GS with.
const LSTAR: u32 = 0xc000_0082;
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// Reads the registers of vCPU `id`, which is parked; those that it has `left` when it was need not be asked for.
pub(super) fn snapshot(
    id: u32,
    vcpu: &VcpuPeer,
    left: Option<&(kvm_regs, kvm_sregs)>,
) -> Result<Vcpu, KvmError> {
    let fd = vcpu.fd();
    let (regs, sregs) = match left {
        Some(left) => *left,
        None => (
            fd.get_regs().map_err(KvmError::of("KVM_GET_REGS"))?,
            fd.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?,
        ),
    };
    let state = fd.get_mp_state().map_err(KvmError::of("KVM_GET_MP_STATE"))?.mp_state;
    let entries = [LSTAR, KERNEL_GS_BASE].map(|index| kvm_msr_entry { index, ..kvm_msr_entry::default() });
    let mut msrs = Msrs::from_entries(&entries).expect("two entries fit");
    fd.get_msrs(&mut msrs).map_err(KvmError::of("KVM_GET_MSRS"))?;
    let msr = |index| msrs.as_slice().iter().find(|entry| entry.index == index).map_or(0, |entry| entry.data);
    let waiting = [KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_SIPI_RECEIVED];
    Ok(Vcpu {
        id,
        started: !waiting.contains(&state),
        halted: state == KVM_MP_STATE_HALTED,
        rip: regs.rip,
        rflags: regs.rflags,
        registers: Registers {
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            rbp: regs.rbp,
            rsp: regs.rsp,
            r8: regs.r8,
            r9: regs.r9,
            r10: regs.r10,
            r11: regs.r11,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
        },
        // The privilege level is that of the stack's segment (KVM x86.c; Intel SDM vol. 3A, 5.5).
        cpl: sregs.ss.dpl,
        cr0: sregs.cr0,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        lstar: msr(LSTAR),
        gs_base: sregs.gs.base,
        kernel_gs_base: msr(KERNEL_GS_BASE),
        idt_base: sregs.idt.base,
        gdt_base: sregs.gdt.base,
    })
}
