//! What a 64-bit entry needs before the kernel has tables of its own: segments and an identity mapping.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout::{BOOT_GDT, BOOT_PAGE_TABLES};
use crate::memory::GuestMemory;

/// `__BOOT_CS` of the boot protocol (boot.rst, "64-bit boot protocol").
pub const CODE_SELECTOR: u16 = 0x10;
/// `__BOOT_DS`.
pub const DATA_SELECTOR: u16 = 0x18;

/// Flat 64-bit code segment, present, ring 0, execute and read (Intel SDM vol. 3A, 3.4.5).
const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
/// Flat data segment, present, ring 0, read and write.
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;

/// Page-table entry bits (Intel SDM vol. 3A, 4.5.4): present, writable, page size.
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
/// Page directories: one maps 1 GiB, so all that lies below 4 GiB is mapped.
const DIRECTORIES: u64 = 4;

/// Writes the GDT and page tables that map the first 4 GiB to themselves.
pub(crate) fn write(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    let gdt = [0, 0, CODE_DESCRIPTOR, DATA_DESCRIPTOR];
    for (index, descriptor) in (0_u64..).zip(gdt) {
        memory.write_obj(descriptor, GuestAddress(BOOT_GDT + index * 8))?;
    }
    let (pointers, first_directory) = (BOOT_PAGE_TABLES + PAGE, BOOT_PAGE_TABLES + 2 * PAGE);
    memory.write_obj(pointers | PRESENT_WRITABLE, GuestAddress(BOOT_PAGE_TABLES))?;
    for directory in 0..DIRECTORIES {
        let table = first_directory + directory * PAGE;
        memory.write_obj(table | PRESENT_WRITABLE, GuestAddress(pointers + directory * 8))?;
        for entry in 0..512 {
            let address = (directory * 512 + entry) * LARGE_PAGE;
            memory.write_obj(address | PRESENT_WRITABLE | LARGE, GuestAddress(table + entry * 8))?;
        }
    }
    Ok(())
}
