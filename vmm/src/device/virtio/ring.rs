//! One split virtqueue (VIRTIO 1.2, 2.7) as a device sees it.
//!
//! `virtio_queue::Queue` reads the rings. What stands here on top: a chain is checked as a whole before
//! anybody uses it, several used buffers are published at once (a received frame over several buffers must
//! never be seen in part, 5.1.6.4), and interrupts honour both ways of suppressing them (2.7.7).

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory as _, GuestMemoryError, Permissions};

use super::common::QueueRegisters;
use crate::memory::GuestMemory;

/// How a driver misused a queue. The device stops and asks for a reset (2.1.1, `DEVICE_NEEDS_RESET`).
#[derive(Debug, thiserror::Error)]
pub(super) enum RingError {
    #[error("a queue of {size} entries: it takes a power of two up to {max}")]
    Size { size: u16, max: u16 },
    #[error(
        "rings at {descriptors:#x} (descriptors), {driver:#x} and {device:#x} are not aligned, or one is at 0"
    )]
    Alignment { descriptors: u64, driver: u64, device: u64 },
    #[error(
        "rings of {size} entries at {descriptors:#x} (descriptors), {driver:#x} and {device:#x} leave RAM"
    )]
    OutsideRam { size: u16, descriptors: u64, driver: u64, device: u64 },
    #[error("the available ring cannot be followed")]
    Available(#[source] virtio_queue::Error),
    #[error("descriptor chain {head} is empty, endless, or points outside its table")]
    Chain { head: u16 },
    #[error("descriptor chain {head} names a buffer outside RAM: {address:#x}+{len:#x}")]
    Buffer { head: u16, address: u64, len: u32 },
    #[error("all {held} buffers of the queue together are too short for one frame")]
    Buffers { held: usize },
    #[error("guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// A range of guest RAM that the driver gave the device, checked to be RAM.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: GuestAddress,
    len: usize,
}

/// A descriptor chain: buffers to read, then buffers to write.
#[derive(Debug)]
pub(super) struct Chain {
    head: u16,
    readable: Vec<Span>,
    writable: Vec<Span>,
}

impl Chain {
    /// Bytes the device may read.
    pub(super) fn readable_len(&self) -> usize {
        self.readable.iter().map(|span| span.len).sum()
    }

    /// Bytes the device may write.
    pub(super) fn writable_len(&self) -> usize {
        self.writable.iter().map(|span| span.len).sum()
    }

    /// Fills `to` from the readable buffers; `to` is not longer than they are.
    pub(super) fn read(&self, memory: &GuestMemory, to: &mut [u8]) -> Result<(), RingError> {
        let mut rest = to;
        for span in &self.readable {
            let (now, later) = rest.split_at_mut(span.len.min(rest.len()));
            memory.read_slice(now, span.start)?;
            rest = later;
        }
        Ok(())
    }

    /// Writes as much of `from` as the writable buffers take, and says how much that was.
    pub(super) fn write(&self, memory: &GuestMemory, from: &[u8]) -> Result<usize, RingError> {
        let mut rest = from;
        for span in &self.writable {
            let (now, later) = rest.split_at(span.len.min(rest.len()));
            memory.write_slice(now, span.start)?;
            rest = later;
        }
        Ok(from.len() - rest.len())
    }

    /// What to put in the used ring when `written` bytes were written.
    pub(super) fn used(&self, written: usize) -> Used {
        Used { head: self.head, written: u32::try_from(written).unwrap_or(u32::MAX) }
    }
}

/// A used ring entry (2.7.8).
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    head: u16,
    written: u32,
}

/// A virtqueue that a driver has set up.
#[derive(Debug)]
pub(super) struct Ring {
    queue: Queue,
    event_idx: bool,
    /// Used index at the last decision about an interrupt.
    signalled: u16,
}

impl Ring {
    /// The queue that `registers` describe, not yet checked against RAM. A queue that the driver left
    /// disabled never has a chain.
    pub(super) fn new(registers: &QueueRegisters, event_idx: bool) -> Result<Self, RingError> {
        let &QueueRegisters { max, size, enabled, descriptors, driver, device } = registers;
        let mut queue = Queue::new(max).map_err(|_| RingError::Size { size: max, max })?;
        if enabled {
            let misplaced = |_| RingError::Alignment { descriptors, driver, device };
            queue.try_set_size(size).map_err(|_| RingError::Size { size, max })?;
            queue.try_set_desc_table_address(GuestAddress(descriptors)).map_err(misplaced)?;
            queue.try_set_avail_ring_address(GuestAddress(driver)).map_err(misplaced)?;
            queue.try_set_used_ring_address(GuestAddress(device)).map_err(misplaced)?;
            if descriptors == 0 || driver == 0 || device == 0 {
                return Err(RingError::Alignment { descriptors, driver, device });
            }
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
        }
        Ok(Self { queue, event_idx, signalled: 0 })
    }

    /// Checks that all three rings lie in RAM; needed once, because RAM stays where it is.
    pub(super) fn check(&self, memory: &GuestMemory) -> Result<(), RingError> {
        if !self.queue.ready() || self.queue.is_valid(memory) {
            return Ok(());
        }
        Err(RingError::OutsideRam {
            size: self.queue.size(),
            descriptors: self.queue.desc_table(),
            driver: self.queue.avail_ring(),
            device: self.queue.used_ring(),
        })
    }

    /// Entries in the queue.
    pub(super) fn size(&self) -> usize {
        usize::from(self.queue.size())
    }

    /// Takes the next chain that the driver made available.
    ///
    /// A chain has at most as many descriptors as the queue has entries (2.7.5.3.1), so a loop among them
    /// ends. Every buffer is checked to be RAM.
    pub(super) fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, RingError> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let limit = self.size();
        let Some(descriptors) = self.queue.iter(memory).map_err(RingError::Available)?.next() else {
            return Ok(None);
        };
        let head = descriptors.head_index();
        let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new() };
        let mut complete = false;
        for (count, descriptor) in descriptors.enumerate() {
            if count == limit {
                complete = false;
                break;
            }
            // The iterator just ends where a chain leads nowhere; then the last descriptor still named a
            // next one.
            complete = !descriptor.has_next();
            let (start, len) = (descriptor.addr(), descriptor.len());
            let span = Span { start, len: len as usize };
            if len == 0 {
                continue;
            }
            let (list, access) = if descriptor.is_write_only() {
                (&mut chain.writable, Permissions::Write)
            } else {
                (&mut chain.readable, Permissions::Read)
            };
            if !memory.check_range(start, span.len, access) {
                return Err(RingError::Buffer { head, address: start.raw_value(), len });
            }
            list.push(span);
        }
        if complete { Ok(Some(chain)) } else { Err(RingError::Chain { head }) }
    }

    /// Gives `used` back to the driver, all at once: it sees all of them or none.
    pub(super) fn complete(&mut self, memory: &GuestMemory, used: &[Used]) -> Result<(), RingError> {
        if used.is_empty() {
            return Ok(());
        }
        // virtq_used: flags and idx of two bytes each, then entries of two double words (2.7.8).
        let ring = GuestAddress(self.queue.used_ring());
        let mut next = self.queue.next_used();
        for entry in used {
            let slot = u64::from(next % self.queue.size());
            let element = (u64::from(entry.written) << 32) | u64::from(entry.head);
            memory.write_slice(&element.to_le_bytes(), ring.unchecked_add(4 + slot * 8))?;
            next = next.wrapping_add(1);
        }
        memory.store(next.to_le(), ring.unchecked_add(2), Ordering::Release)?;
        self.queue.set_next_used(next);
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was completed since the last call (2.7.7.2).
    pub(super) fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        let (used, before) = (self.queue.next_used(), self.signalled);
        if used == before {
            return Ok(false);
        }
        self.signalled = used;
        // The used index has to be visible before the driver's wish is read, or both sides could miss it.
        fence(Ordering::SeqCst);
        // virtq_avail: flags and idx of two bytes each, an entry of two bytes per descriptor, used_event.
        let ring = GuestAddress(self.queue.avail_ring());
        if self.event_idx {
            let at = ring.unchecked_add(4 + 2 * u64::from(self.queue.size()));
            let event = u16::from_le(memory.load(at, Ordering::Relaxed)?);
            return Ok(used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(before));
        }
        let flags = u16::from_le(memory.load(ring, Ordering::Relaxed)?);
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver to notify the device of the next chain; `true` when there is one already.
    pub(super) fn enable_notification(&mut self, memory: &GuestMemory) -> Result<bool, RingError> {
        if !self.queue.ready() {
            return Ok(false);
        }
        self.queue.enable_notification(memory).map_err(RingError::Available)
    }

    /// Asks the driver to notify no more (a hint: it may still do).
    pub(super) fn disable_notification(&mut self, memory: &GuestMemory) -> Result<(), RingError> {
        if !self.queue.ready() {
            return Ok(());
        }
        self.queue.disable_notification(memory).map_err(RingError::Available)
    }
}
