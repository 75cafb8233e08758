//! The zero page: what the boot loader tells the kernel (Documentation/arch/x86/zero-page.rst).

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::GuestAddress;

use super::BootError;
use super::layout::{ACPI_TABLES, CMDLINE, HIGH_RAM, LOW_RAM_END, ZERO_PAGE};
use crate::memory::{GuestMemory, MemoryLayout};

/// e820 types (ACPI 6.5, table 15.5).
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// "Undefined" boot loader (boot.rst, `type_of_loader`).
const LOADER_UNDEFINED: u8 = 0xff;

/// Writes the zero page: the image's own setup header, completed, and the memory map.
pub(super) fn write(
    memory: &GuestMemory,
    header: setup_header,
    (initrd_start, initrd_len): (u64, u64),
    rsdp: u64,
    layout: &MemoryLayout,
) -> Result<(), BootError> {
    let low32 = |value: u64| u32::try_from(value).expect("boot data lies below 4 GiB");
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: rsdp, ..boot_params::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = low32(CMDLINE);
    params.hdr.ramdisk_image = low32(initrd_start);
    params.hdr.ramdisk_size = low32(initrd_len);

    let entries = memory_map(layout);
    params.e820_table[..entries.len()].copy_from_slice(&entries);
    params.e820_entries = u8::try_from(entries.len()).expect("five entries at most");
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, GuestAddress(ZERO_PAGE)), memory)
        .map_err(|error| BootError::ZeroPage(error.to_string()))
}

fn memory_map(layout: &MemoryLayout) -> Vec<boot_e820_entry> {
    let mut map = vec![
        (0, LOW_RAM_END, E820_RAM),
        (LOW_RAM_END, 0xa_0000, E820_RESERVED),
        (ACPI_TABLES, HIGH_RAM, E820_RESERVED),
    ];
    for range in layout.ranges() {
        map.push((range.start.max(HIGH_RAM), range.start + range.len, E820_RAM));
    }
    map.into_iter()
        .map(|(addr, end, kind)| boot_e820_entry { addr, size: end - addr, r#type: kind })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_leaves_out_the_holes() {
        let map = memory_map(&MemoryLayout::new(4 << 30));
        let ram: Vec<_> =
            map.iter().filter(|e| e.r#type == E820_RAM).map(|e| (e.addr, e.addr + e.size)).collect();
        assert_eq!(ram, [(0, 0x9_fc00), (0x10_0000, 0xc000_0000), (0x1_0000_0000, 0x1_4000_0000)]);
        for pair in map.windows(2) {
            assert!(pair[0].addr + pair[0].size <= pair[1].addr);
        }
    }
}
