//! The vCPU that makes a hypercall.

use update_server::kernel::paging::PageTables;

/// CR0.PG: paging is on (Intel SDM vol. 3A, 2.5).
const PAGING: u64 = 1 << 31;
/// EFER.LMA: long mode is active (Intel SDM vol. 3A, 2.2.1).
const LONG_MODE: u64 = 1 << 10;

/// What a call needs of the vCPU's registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caller {
    /// The number of the call and the version.
    pub rbx: u64,
    /// The buffer.
    pub rcx: u64,
    /// Its length.
    pub rsi: u64,
    /// The rest.
    pub rdi: u64,
    /// Control registers: paging, its root, and its extensions.
    pub cr0: u64,
    /// See `cr0`.
    pub cr3: u64,
    /// See `cr0`.
    pub cr4: u64,
    /// Extended features, long mode among them.
    pub efer: u64,
    /// Whether the code segment is one of 64-bit mode (Intel SDM vol. 3A, 5.2.1: CS.L).
    pub code_is_64_bit: bool,
    /// Privilege level: 0 in the kernel, 3 in user space.
    pub cpl: u8,
}

impl Caller {
    /// Whether it runs in 64-bit mode, where the registers have 64 bits and the page tables 4 or 5 levels.
    pub(super) fn is_in_64_bit_mode(&self) -> bool {
        self.cr0 & PAGING != 0 && self.efer & LONG_MODE != 0 && self.code_is_64_bit
    }

    /// Its page tables.
    pub(super) fn tables(&self) -> PageTables {
        PageTables::new(self.cr3, self.cr4)
    }

    /// Whether it has the rights of user space only (Intel SDM vol. 3A, 5.6: "user-mode accesses").
    pub(super) fn is_user(&self) -> bool {
        self.cpl == 3
    }
}
