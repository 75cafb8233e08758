//! PCI: one bus, configuration mechanism #1, memory BARs and MSI-X.
//!
//! Only what a stock Linux needs of it: no legacy interrupts (every device here has MSI-X), no I/O BARs, no
//! bridges, no memory-mapped configuration space.

mod bus;
mod config;
mod msix;

pub use bus::{CONFIG_PORTS, MMIO_WINDOW, PciBus, PciBusError};
pub use config::{BarMapping, ConfigSpace, Identity};
pub use msix::{MsiSender, Msix};

use std::sync::Mutex;

/// A function on the PCI bus.
///
/// Called by vCPU threads, by several at once, under the rules of [`crate::device::bus::BusDevice`].
pub trait PciDevice: Send + Sync {
    /// The configuration space; the bus reads and writes it under this lock.
    fn config_space(&self) -> &Mutex<ConfigSpace>;

    /// Told after each write to the configuration space, with its lock released.
    fn config_written(&self) {}

    /// Fills `data` (1 to 8 bytes) from `offset` in BAR number `bar`; the range lies inside the BAR.
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Takes `data` (1 to 8 bytes) written at `offset` in BAR number `bar`; the range lies inside the BAR.
    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]);
}
