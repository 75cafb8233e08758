//! Which MSI-X vector each event of a device raises (VIRTIO 1.2, 4.1.5.1.2), and the ISR status (4.1.4.5).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use crate::device::pci::Msix;

/// `VIRTIO_MSI_NO_VECTOR`: the event raises no interrupt.
const NO_VECTOR: u16 = 0xffff;
/// ISR status: a queue was used.
const ISR_QUEUE: u8 = 1;
/// ISR status: the configuration (here: the device status) changed.
const ISR_CONFIG: u8 = 2;

/// The interrupts of one device; vCPU threads set the vectors while the worker raises them.
#[derive(Debug)]
pub(super) struct Interrupts {
    msix: Arc<Msix>,
    /// How many vectors the MSI-X table has: one for the configuration and one for each queue.
    vectors: u16,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
    isr: AtomicU8,
}

impl Interrupts {
    /// No event raises anything yet; `msix` has `vectors` vectors.
    pub(super) fn new(msix: Arc<Msix>, vectors: u16, queues: usize) -> Self {
        let queues = (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect();
        Self { msix, vectors, config: AtomicU16::new(NO_VECTOR), queues, isr: AtomicU8::new(0) }
    }

    pub(super) fn msix(&self) -> &Msix {
        &self.msix
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config.load(Ordering::Relaxed)
    }

    /// Sets the vector; one that does not exist reads back as none, which tells the driver so.
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config.store(self.known(vector), Ordering::Relaxed);
    }

    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        self.queues.get(usize::from(queue)).map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed))
    }

    /// Sets the vector of a queue; a queue that does not exist has none.
    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(known) = self.queues.get(usize::from(queue)) {
            known.store(self.known(vector), Ordering::Relaxed);
        }
    }

    /// Queue number `queue` has used buffers.
    pub(super) fn raise_queue(&self, queue: usize) {
        self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        if let Some(vector) = self.queues.get(queue) {
            self.msix.notify(vector.load(Ordering::Relaxed));
        }
    }

    /// The device status changed.
    pub(super) fn raise_config(&self) {
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.msix.notify(self.config_vector());
    }

    /// The ISR status, which a read clears.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// Back to power-on; the MSI-X table belongs to PCI and stays.
    pub(super) fn reset(&self) {
        self.config.store(NO_VECTOR, Ordering::Relaxed);
        self.queues.iter().for_each(|vector| vector.store(NO_VECTOR, Ordering::Relaxed));
        self.isr.store(0, Ordering::Release);
    }

    fn known(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }
}
