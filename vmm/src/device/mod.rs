//! Devices: what a stock Linux needs to boot and run.

pub mod acpi_pm;
pub mod bus;
pub mod i8042;
pub mod nvme;
pub mod pci;
pub mod power;
pub mod serial;
pub mod virtio;

/// Stack of a device's thread. Its larger buffers are on the heap. The usual 2 MiB would be a huge page, all of it
/// resident, wherever one happens to fit.
const STACK: usize = 256 << 10;
