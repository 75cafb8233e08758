//! The boot processor's first state: 64-bit mode, flat segments, identity mapping.

use kvm_bindings::{kvm_regs, kvm_segment};

use crate::boot::{BOOT_GDT, BOOT_PAGE_TABLES, BootEntry, CODE_SELECTOR, DATA_SELECTOR};
use crate::sys::kvm::KvmError;
use kvm_ioctls::VcpuFd;

/// CR0: protection, monitor coprocessor, extension type, numeric error, paging (Intel SDM vol. 3A, 2.5).
const CR0: u64 = (1 << 0) | (1 << 1) | (1 << 4) | (1 << 5) | (1 << 31);
/// CR4: physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled and active (Intel SDM vol. 3A, 2.2.1).
const EFER: u64 = (1 << 8) | (1 << 10);
/// RFLAGS bit 1 is always set; interrupts are off (boot.rst, "64-bit boot protocol").
const RFLAGS: u64 = 1 << 1;
/// Four descriptors of eight bytes.
const GDT_LIMIT: u16 = 31;

/// Segment types (Intel SDM vol. 3A, 3.4.5.1): execute and read, read and write, both accessed.
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;

/// Puts the boot processor at `entry`. The others wait for INIT and SIPI by themselves.
pub(crate) fn set_boot_state(vcpu: &VcpuFd, entry: BootEntry) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?;
    let flat = |selector, type_, long: bool| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    let data = flat(DATA_SELECTOR, TYPE_DATA, false);
    sregs.cs = flat(CODE_SELECTOR, TYPE_CODE, true);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = BOOT_GDT;
    sregs.gdt.limit = GDT_LIMIT;
    sregs.cr0 = CR0;
    sregs.cr3 = BOOT_PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER;
    vcpu.set_sregs(&sregs).map_err(KvmError::of("KVM_SET_SREGS"))?;
    let regs = kvm_regs { rip: entry.rip, rsi: entry.zero_page, rflags: RFLAGS, ..kvm_regs::default() };
    vcpu.set_regs(&regs).map_err(KvmError::of("KVM_SET_REGS"))
}
