//! The entropy device (VIRTIO 1.2, 5.4).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::device_type::{Description, DeviceType, Progress};
use super::ring::{Ring, RingError};
use super::{VirtioDevice, VirtioError};
use crate::device::pci::MsiSender;
use crate::memory::{DeviceMemory, GuestMemory};

/// Entries in the one queue. Linux has one request under way.
const QUEUE_SIZES: &[u16] = &[16];
/// Most bytes given for one request. A device may fill a buffer in part (5.4.6.1); Linux asks for 64 bytes at
/// a time and seeds its own generator with 32. The host's generator does not run dry, so this is only about
/// time: a huge buffer must neither keep a pause waiting at the DMA gate nor occupy the host.
const REQUEST_MAX: usize = 256;
/// Most requests served in one batch, for the same reason.
const BATCH: usize = 16;
/// Base class 0xff: a device that fits no class.
const CLASS: u32 = 0xff_00_00;

/// An entropy device.
pub type RngDevice = VirtioDevice<RngCounters>;

/// What an entropy device counts.
#[derive(Debug, Default)]
pub struct RngCounters {
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// The [`RngCounters`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RngSnapshot {
    /// Buffers served.
    pub requests: u64,
    /// Random bytes given to the guest.
    pub bytes: u64,
}

impl RngCounters {
    /// The counts now.
    pub fn snapshot(&self) -> RngSnapshot {
        RngSnapshot {
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// Makes an entropy device fed by getrandom(2).
pub fn rng(memory: DeviceMemory, msi: Arc<dyn MsiSender>) -> Result<Arc<RngDevice>, VirtioError> {
    let description = Description {
        name: "virtio-rng",
        type_id: u16::try_from(VIRTIO_ID_RNG).unwrap_or(u16::MAX),
        class: CLASS,
        features: 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX,
        consistent: |_| true,
        queue_sizes: QUEUE_SIZES,
        config: Vec::new(),
    };
    let counters = Arc::new(RngCounters::default());
    let device = Rng { pool: [0; BATCH * REQUEST_MAX], left: 0, counters: Arc::clone(&counters) };
    VirtioDevice::new(description, device, counters, memory, msi)
}

/// The worker's part.
#[derive(Debug)]
struct Rng {
    /// Random bytes nobody has seen: the first `left` ones.
    pool: [u8; BATCH * REQUEST_MAX],
    left: usize,
    counters: Arc<RngCounters>,
}

impl DeviceType for Rng {
    fn start(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    fn stop(&mut self) {}

    fn fill(&mut self) -> io::Result<()> {
        getrandom::fill(&mut self.pool[self.left..]).map_err(io::Error::from)?;
        self.left = self.pool.len();
        Ok(())
    }

    fn serve(&mut self, rings: &mut [Ring], memory: &GuestMemory) -> Result<Progress, RingError> {
        let Some(ring) = rings.first_mut() else { return Ok(Progress::IDLE) };
        ring.disable_notification(memory)?;
        for _ in 0..BATCH {
            let Some(chain) = ring.pop(memory)? else {
                let again = ring.enable_notification(memory)?;
                return Ok(Progress { again, ..Progress::IDLE });
            };
            let len = chain.writable_len().min(REQUEST_MAX).min(self.left);
            let bytes = &self.pool[self.left - len..self.left];
            chain.write(memory, bytes)?;
            ring.complete(memory, &[chain.used(len)])?;
            self.left -= len;
            self.counters.requests.fetch_add(1, Ordering::Relaxed);
            self.counters.bytes.fetch_add(len as u64, Ordering::Relaxed);
        }
        Ok(Progress { again: true, ..Progress::IDLE })
    }

    fn drain(&mut self) {}
}
