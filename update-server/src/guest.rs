//! The seam: all that this crate asks of a virtual machine monitor.
//!
//! Memory may be read while the guest runs; what is read then may be half of one state and half of another, and whoever reads
//! it says how that is found out. Registers exist only for a guest that stands still, and only such a one is written to.

use crate::addr::Gpa;

/// There is no RAM at some of the addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest has no RAM at {at} (+{len:#x})")]
pub struct NoRam {
    /// The first address that was asked for.
    pub at: Gpa,
    /// How many bytes were.
    pub len: usize,
}

/// The guest's RAM.
pub trait Memory {
    /// Fills `into` with the bytes from `at` on.
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), NoRam>;
}

/// A guest that stands still: no vCPU runs, and no device writes to memory.
pub trait Paused: Memory {
    /// Every vCPU, by number.
    fn vcpus(&self) -> &[Vcpu];

    /// Puts `bytes` at `at`: all of them, or none. The guest sees them as soon as it runs on, in its code as in its data.
    fn write(&self, at: Gpa, bytes: &[u8]) -> Result<(), NoRam>;
}

impl<M: Memory + ?Sized> Memory for &M {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), NoRam> {
        (**self).read(at, into)
    }
}

/// What is needed of a vCPU that stands still (Intel SDM vol. 3A, 2.1; vol. 4, 2.1 for the MSRs).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vcpu {
    /// Its number, from 0.
    pub id: u32,
    /// Whether it has begun to run, as opposed to waiting for INIT or SIPI.
    pub started: bool,
    /// Whether it waits for an interrupt, behind HLT.
    pub halted: bool,
    /// The next instruction.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// General registers.
    pub registers: Registers,
    /// Privilege level: 0 in the kernel, 3 in user space.
    pub cpl: u8,
    /// Control registers: paging, its root, and its extensions.
    pub cr0: u64,
    /// See `cr0`.
    pub cr3: u64,
    /// See `cr0`.
    pub cr4: u64,
    /// Where SYSCALL enters the kernel (MSR LSTAR, 0xc0000082).
    pub lstar: u64,
    /// Base of GS: in the kernel this processor's per-CPU area.
    pub gs_base: u64,
    /// What SWAPGS exchanges it with (MSR `KERNEL_GS_BASE`, 0xc0000102).
    pub kernel_gs_base: u64,
    /// Where the descriptor table of interrupts is.
    pub idt_base: u64,
    /// Where the descriptor table of segments is.
    pub gdt_base: u64,
}

/// The general registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what the processor's manual says of the register with its name")]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}
