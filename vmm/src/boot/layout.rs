//! Where boot data lies in low guest memory. All of it is below 1 MiB and above the BIOS data area.

/// Segment descriptors of the boot processor's first instructions.
pub const BOOT_GDT: u64 = 0x500;
/// The zero page, `struct boot_params` (Documentation/arch/x86/zero-page.rst).
pub const ZERO_PAGE: u64 = 0x7000;
/// Top of the identity-mapping page tables; six pages.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// The kernel command line, NUL-terminated; up to 64 KiB are free here.
pub(super) const CMDLINE: u64 = 0x2_0000;
/// End of usable conventional memory; what follows belongs to the extended BIOS data area on a PC.
pub(super) const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables, where an operating system scans for the RSDP (ACPI 6.5, 5.2.5.1).
pub(super) const ACPI_TABLES: u64 = 0xe_0000;
/// First byte of high memory; a bzImage is loaded here (boot.rst, "loading the rest of the kernel").
pub(super) const HIGH_RAM: u64 = 0x10_0000;
/// The word in the BIOS data area that holds the reboot mode: 0x1234 for warm.
///
/// Linux writes it on its way to a reset (arch/x86/kernel/reboot.c, `native_machine_emergency_restart`,
/// 6.1 and 6.12). The default command line has `reboot=panic_warm`, so that it tells a panic from a reboot.
pub const REBOOT_MODE: u64 = 0x472;
