//! Virtio devices on PCI: the modern transport (VIRTIO 1.2, 4.1) without its legacy interface, and the
//! types behind it.
//!
//! A device lives on both sides of one lock:
//!
//! ```text
//!   vCPU threads                      shared                        worker thread, one for each device
//!   BAR and configuration accesses -> registers
//!   notify, DRIVER_OK             --> eventfd ------------------->  wakes, enters the DMA gate, takes the lock,
//!   status 0 (takes the lock)     --> the rings <---------------->  serves one bounded batch, leaves
//! ```
//!
//! The rings belong to whoever holds the lock. The worker serves them only inside the gate and holds the lock
//! for one batch at most, so that a vCPU thread waits for it no longer than that, and a reset is complete
//! when the write of 0 to the device status returns: no DMA happens after that. Work on the host's side
//! (reading a tap, gathering entropy) happens outside of both.
//!
//! Why a thread for each device and plain epoll: there are two descriptors to wait for, a device that is
//! busy must not delay another, and an event manager would add a layer between exactly two parties.
//!
//! Left out on purpose: the legacy interface, `INTx`, `VIRTIO_PCI_CAP_PCI_CFG` (an access window for firmware
//! without memory-mapped I/O), packed rings, `VIRTIO_F_RING_RESET`.

mod common;
mod device;
mod device_type;
mod frames;
mod interrupts;
mod net;
mod ring;
mod rng;
mod shared;
mod tap;
#[cfg(test)]
mod tests;
mod worker;

pub use device::VirtioDevice;
pub use net::{NetCounters, NetDevice, NetSnapshot, net};
pub use rng::{RngCounters, RngDevice, RngSnapshot, rng};
pub use tap::{Tap, TapError};

use std::io;

/// Why a virtio device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VirtioError {
    /// The host refused an eventfd or an epoll instance.
    #[error("{device}: cannot create what its worker waits on")]
    Wait {
        /// Name of the device.
        device: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host refused a thread.
    #[error("{device}: cannot start its worker thread")]
    Thread {
        /// Name of the device.
        device: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host has no random bytes for a MAC address.
    #[error("cannot make up a MAC address; give one with mac=")]
    Entropy {
        /// What the kernel said.
        source: getrandom::Error,
    },
}
