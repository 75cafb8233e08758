//! Devices: what a stock Linux needs to boot and run.

pub mod acpi_pm;
pub mod bus;
pub mod i8042;
pub mod nvme;
pub mod pci;
pub mod power;
pub mod serial;
pub mod virtio;
