//! Putting a Linux kernel into guest memory the way its boot protocol asks (Documentation/arch/x86/boot.rst).
//!
//! Both kinds of image are entered at their 64-bit entry point with a zero page. A bzImage unpacks and
//! relocates itself, so KASLR works as on any machine; a vmlinux runs where it was linked.

mod acpi;
mod image;
mod initrd;
mod layout;
mod tables;
mod zero_page;

pub use image::{ImageError, KernelImage, KernelKind};
pub use layout::{BOOT_GDT, BOOT_PAGE_TABLES, REBOOT_MODE, ZERO_PAGE};
pub(crate) use tables::write as write_tables;
pub use tables::{CODE_SELECTOR, DATA_SELECTOR};

use std::io;
use std::path::PathBuf;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::{GuestMemory, GuestRam};

/// What to boot.
#[derive(Debug)]
pub struct BootSource<'a> {
    /// The kernel.
    pub kernel: &'a KernelImage,
    /// The initramfs, if any.
    pub initrd: Option<&'a PathBuf>,
    /// The whole kernel command line.
    pub cmdline: &'a str,
    /// Number of vCPUs.
    pub cpus: u8,
}

/// Where the boot processor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootEntry {
    /// Guest physical (and, by the boot page tables, linear) address of the first instruction.
    pub rip: u64,
    /// Guest physical address of the zero page, for `rsi`.
    pub zero_page: u64,
}

/// Why a guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel image is none that can boot.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The initramfs cannot be read.
    #[error("cannot read the initramfs {path}: {source}; check --initrd")]
    Initrd {
        /// Its path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The command line is longer than the kernel takes, or not plain text.
    #[error(
        "the kernel command line has {len} bytes and this kernel takes {max} without a NUL; shorten --cmdline"
    )]
    Cmdline {
        /// Its length in bytes.
        len: usize,
        /// The most that fits.
        max: usize,
    },
    /// Kernel and initramfs do not fit.
    #[error(
        "the guest needs at least {needed} MiB of memory for this kernel{with_initrd} and has {available} MiB; \
         raise --memory"
    )]
    TooLittleMemory {
        /// MiB below the MMIO hole that are needed.
        needed: u64,
        /// MiB there are.
        available: u64,
        /// " and initramfs", or nothing.
        with_initrd: &'static str,
    },
    /// The zero page could not be written.
    #[error("cannot write the zero page: {0}")]
    ZeroPage(String),
    /// A write to guest memory failed although the size was checked.
    #[error("cannot write the boot data to guest memory: {0}")]
    Write(#[from] GuestMemoryError),
}

/// Loads kernel, initramfs, command line, ACPI tables and boot tables; checks everything that can be checked
/// before it writes the first byte.
pub fn load(ram: &GuestRam, source: &BootSource<'_>) -> Result<BootEntry, BootError> {
    let low_end = ram.layout().ranges()[0].len;
    let initrd = source.initrd.map(initrd::Initrd::open).transpose()?;
    let max_cmdline = source.kernel.max_cmdline();
    if source.cmdline.len() > max_cmdline || source.cmdline.contains('\0') {
        return Err(BootError::Cmdline { len: source.cmdline.len(), max: max_cmdline });
    }
    let kernel_end = source.kernel.memory_end();
    let initrd_start =
        initrd::place(initrd.as_ref(), low_end, source.kernel.max_initrd_address(), kernel_end)?;

    let memory: &GuestMemory = ram.memory();
    let rip = source.kernel.load(memory)?;
    if let Some(initrd) = &initrd {
        initrd.load(memory, initrd_start)?;
    }
    memory.write_slice(source.cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    memory.write_slice(&[0], GuestAddress(layout::CMDLINE + source.cmdline.len() as u64))?;
    let rsdp = acpi::write_tables(memory, source.cpus)?;
    tables::write(memory)?;
    let initrd = initrd.map_or((0, 0), |initrd| (initrd_start, initrd.len()));
    zero_page::write(memory, source.kernel.setup_header(), initrd, rsdp, ram.layout())?;
    Ok(BootEntry { rip, zero_page: ZERO_PAGE })
}
