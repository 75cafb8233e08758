//! What a type of device adds to the transport.

use std::io;
use std::os::fd::RawFd;

use super::ring::{Ring, RingError};
use crate::memory::GuestMemory;

/// What the transport shows of a type of device.
#[derive(Debug)]
pub(super) struct Description {
    /// Name for logs, errors and the worker thread.
    pub(super) name: &'static str,
    /// Device type number (VIRTIO 1.2, 5).
    pub(super) type_id: u16,
    /// PCI class code.
    pub(super) class: u32,
    /// Feature bits on offer, without `VERSION_1`.
    pub(super) features: u64,
    /// Whether accepted features fit each other.
    pub(super) consistent: fn(u64) -> bool,
    /// Largest size of each queue.
    pub(super) queue_sizes: &'static [u16],
    /// The device-specific configuration structure; drivers only read it.
    pub(super) config: Vec<u8>,
}

/// What a worker should do after a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Serve again at once: the batch ended at its limit, or a driver was faster than the notification.
    pub(super) again: bool,
    /// Wake up when the host's side ([`DeviceType::source`]) has something.
    pub(super) watch_source: bool,
}

impl Progress {
    /// Sleep until notified.
    pub(super) const IDLE: Self = Self { again: false, watch_source: false };
}

/// The part of a device that its worker thread owns. A round is `fill`, `serve`, `drain`.
pub(super) trait DeviceType: Send + 'static {
    /// The host descriptor that [`Progress::watch_source`] is about.
    fn source(&self) -> Option<RawFd> {
        None
    }

    /// A driver with these features took over: nothing of the one before is left.
    fn start(&mut self, features: u64) -> io::Result<()>;

    /// Forgets all work under way; the rings are gone.
    fn stop(&mut self);

    /// Takes from the host what the next batch may need, without blocking and outside the DMA gate.
    fn fill(&mut self) -> io::Result<()>;

    /// Serves one bounded batch: data, then used entries. Interrupts follow under the same access.
    fn serve(&mut self, rings: &mut [Ring], memory: &GuestMemory) -> Result<Progress, RingError>;

    /// Hands to the host what the batch produced, without blocking and outside the DMA gate.
    fn drain(&mut self);
}
