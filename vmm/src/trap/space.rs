//! What a vCPU's registers say of its addresses.

use iced_x86::Register;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use update_server::addr::Gva;
use update_server::kernel::paging::{PageTables, Walk};

use crate::sys::vcpu::VcpuState;

/// Control register bits (Intel SDM vol. 3A, 2.5): paging; writes of the kernel to read-only pages fault; protection keys for user
/// pages and for the kernel's, and shadow stacks; the kernel may not touch user pages.
const CR0_PG: u64 = 1 << 31;
const CR0_WP: u64 = 1 << 16;
const CR4_CET: u64 = 1 << 23;
const CR4_PKE: u64 = 1 << 22;
const CR4_PKS: u64 = 1 << 24;
/// `IA32_EFER.LMA` (Intel SDM vol. 3A, 2.2.1).
const EFER_LMA: u64 = 1 << 10;
/// CR0.AM and RFLAGS.AC: user space may ask for aligned accesses.
const CR0_AM: u64 = 1 << 18;
const RFLAGS_AC: u64 = 1 << 18;

/// A vCPU's registers, as far as they say where its accesses go. Only of one in long mode, with paging: in others, as in the first
/// moments of a processor, nothing is foreseen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space<'a> {
    pub(super) regs: &'a kvm_regs,
    pub(super) sregs: &'a kvm_sregs,
    pub(super) tables: PageTables,
    /// How code is decoded: 64, or 32 and 16 in compatibility mode.
    pub(super) bits: u32,
    /// The privilege level.
    pub(super) cpl: u8,
}

impl<'a> Space<'a> {
    pub(super) fn of(state: &'a VcpuState) -> Option<Self> {
        let VcpuState { regs, sregs, .. } = state;
        if sregs.efer & EFER_LMA == 0 || sregs.cr0 & CR0_PG == 0 {
            return None;
        }
        let bits = match (sregs.cs.l, sregs.cs.db) {
            (1, _) => 64,
            (_, 1) => 32,
            _ => 16,
        };
        Some(Self { regs, sregs, tables: PageTables::new(sregs.cr3, sregs.cr4), bits, cpl: sregs.ss.dpl })
    }

    /// The linear address of the next instruction.
    pub(super) fn rip(&self) -> Gva {
        if self.bits == 64 {
            Gva(self.regs.rip)
        } else {
            Gva(self.sregs.cs.base.wrapping_add(self.regs.rip) & 0xffff_ffff)
        }
    }

    /// The linear address that `offset` in the stack's segment is.
    pub(super) fn linear(&self, address: u64) -> Gva {
        Gva(if self.bits == 64 { address } else { address & 0xffff_ffff })
    }

    /// A register as part of an address: its value, or a segment's base.
    pub(super) fn value(&self, register: Register) -> Option<u64> {
        let base =
            |segment: &kvm_segment, always: bool| if always || self.bits != 64 { segment.base } else { 0 };
        Some(match register {
            Register::FS => base(&self.sregs.fs, true),
            Register::GS => base(&self.sregs.gs, true),
            Register::CS => base(&self.sregs.cs, false),
            Register::DS => base(&self.sregs.ds, false),
            Register::ES => base(&self.sregs.es, false),
            Register::SS => base(&self.sregs.ss, false),
            register if register.is_gpr() => {
                let whole = general(self.regs, register.full_register())?;
                match register.size() {
                    8 => whole,
                    4 => whole & 0xffff_ffff,
                    2 => whole & 0xffff,
                    // Of the one-byte ones only AL is part of an address: that of XLAT.
                    _ => whole & 0xff,
                }
            }
            _ => return None,
        })
    }

    /// Whether the processor can go on there.
    pub(super) fn is_canonical(&self, at: Gva) -> bool {
        self.tables.is_canonical(at)
    }

    /// Whether a call or an interrupt may do more than push to the stack.
    pub(super) fn has_shadow_stacks(&self) -> bool {
        self.sregs.cr4 & CR4_CET != 0
    }

    /// Whether a write by way of `walk` raises no exception, and the processor has nothing to note in the tables. `false` in doubt:
    /// where protection keys or alignment checks are on.
    pub(super) fn may_write(&self, walk: &Walk, aligned: bool) -> bool {
        let write = walk.rights.write || self.cpl != 3 && self.sregs.cr0 & CR0_WP == 0;
        write && walk.dirty && self.may_read(walk, aligned)
    }

    /// The same of a read.
    pub(super) fn may_read(&self, walk: &Walk, aligned: bool) -> bool {
        let keys = if walk.rights.user { CR4_PKE } else { CR4_PKS };
        let level = if self.cpl == 3 { walk.rights.user } else { !walk.rights.user };
        let checks = self.cpl == 3 && self.sregs.cr0 & CR0_AM != 0 && self.regs.rflags & RFLAGS_AC != 0;
        level && self.sregs.cr4 & keys == 0 && walk.accessed && (aligned || !checks)
    }
}

/// A general register of eight bytes.
pub(super) fn general(regs: &kvm_regs, register: Register) -> Option<u64> {
    Some(match register {
        Register::RAX => regs.rax,
        Register::RBX => regs.rbx,
        Register::RCX => regs.rcx,
        Register::RDX => regs.rdx,
        Register::RSI => regs.rsi,
        Register::RDI => regs.rdi,
        Register::RBP => regs.rbp,
        Register::RSP => regs.rsp,
        Register::R8 => regs.r8,
        Register::R9 => regs.r9,
        Register::R10 => regs.r10,
        Register::R11 => regs.r11,
        Register::R12 => regs.r12,
        Register::R13 => regs.r13,
        Register::R14 => regs.r14,
        Register::R15 => regs.r15,
        _ => return None,
    })
}
