//! Doorbells: how the guest says that a queue has moved (3.1.24, 3.1.25, and 5.7 for the shadow).
//!
//! A write to a doorbell register is an exit of the guest, the dearest part of a small transfer. With the
//! Doorbell Buffer Config command the guest keeps the values in its own memory instead, and writes the
//! register only when the value passes the one in the event index: the worker sets that before it sleeps,
//! so a busy queue has no exits at all.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use vm_memory::{Bytes, GuestAddress};

use super::bell::Bell;
use super::queue::Fault;
use crate::memory::GuestMemory;

/// No shadow; cannot be a page's address.
const NONE: u64 = u64::MAX;
/// Bytes of one queue pair, in the registers (CAP.DSTRD = 0) and in the shadow alike.
const STRIDE: u64 = 8;

/// The doorbells of one queue ID.
#[derive(Debug, Default)]
pub(super) struct Pair {
    tail: AtomicU32,
    head: AtomicU32,
    /// Wakes the worker of the submission queue; that of ID 0 is the controller thread.
    pub(super) bell: Bell,
    /// Somebody waits for room in the completion queue.
    starved: AtomicBool,
}

/// All doorbells of a controller.
#[derive(Debug)]
pub(super) struct Doorbells {
    pairs: Box<[Pair]>,
    shadow: AtomicU64,
    events: AtomicU64,
}

impl Doorbells {
    /// Doorbells of the admin queue and `queues` I/O queues.
    pub(super) fn new(queues: u16) -> Self {
        Self {
            pairs: (0..=queues).map(|_| Pair::default()).collect(),
            shadow: AtomicU64::new(NONE),
            events: AtomicU64::new(NONE),
        }
    }

    /// The pair of queue `id`, if there is one.
    pub(super) fn pair(&self, id: u16) -> Option<&Pair> {
        self.pairs.get(usize::from(id))
    }

    /// A write to the register at `offset` from the first: stores the value and wakes who cares.
    ///
    /// Called by vCPU threads. Whether the value makes sense only the worker knows; it ignores nonsense.
    pub(super) fn write(&self, offset: u64, value: u32) {
        let pair = usize::try_from(offset / STRIDE).ok().and_then(|id| self.pairs.get(id));
        let Some(pair) = pair else { return };
        if offset.is_multiple_of(STRIDE) {
            pair.tail.store(value, Ordering::SeqCst);
            pair.bell.ring();
        } else {
            pair.head.store(value, Ordering::SeqCst);
            if pair.starved.swap(false, Ordering::SeqCst) {
                self.ring_all();
            }
        }
    }

    /// Wakes every worker, to look at what has changed.
    pub(super) fn ring_all(&self) {
        for pair in &self.pairs {
            pair.bell.ring();
        }
    }

    /// Back to the values that a queue starts with.
    pub(super) fn reset_tail(&self, id: u16) {
        if let Some(pair) = self.pair(id) {
            pair.tail.store(0, Ordering::SeqCst);
        }
    }

    /// Back to the values that a queue starts with.
    pub(super) fn reset_head(&self, id: u16) {
        if let Some(pair) = self.pair(id) {
            pair.head.store(0, Ordering::SeqCst);
            pair.starved.store(false, Ordering::SeqCst);
        }
    }

    /// Forgets the shadow.
    pub(super) fn remove_shadow(&self) {
        self.shadow.store(NONE, Ordering::SeqCst);
        self.events.store(NONE, Ordering::SeqCst);
    }

    /// Moves the doorbells of the I/O queues to the page at `shadow`, with event indices at `events`; the
    /// values so far go there.
    ///
    /// The admin queue stays with its registers: Linux leaves it out of the buffers, against the letter of
    /// 5.7, and admin commands are rare.
    pub(super) fn set_shadow(&self, memory: &GuestMemory, shadow: u64, events: u64) -> Result<(), Fault> {
        for (id, pair) in (0..).zip(&self.pairs).skip(1) {
            let (tail, head) = (pair.tail.load(Ordering::SeqCst), pair.head.load(Ordering::SeqCst));
            for page in [shadow, events] {
                store(memory, page + id * STRIDE, tail)?;
                store(memory, page + id * STRIDE + 4, head)?;
            }
        }
        self.events.store(events, Ordering::SeqCst);
        self.shadow.store(shadow, Ordering::SeqCst);
        self.ring_all();
        Ok(())
    }

    /// What the guest last wrote as the tail of submission queue `id`.
    pub(super) fn tail(&self, memory: &GuestMemory, id: u16) -> Result<u32, Fault> {
        let register = self.pair(id).map_or(0, |pair| pair.tail.load(Ordering::SeqCst));
        self.value(memory, id, 0, register)
    }

    /// What the guest last wrote as the head of completion queue `id`.
    pub(super) fn head(&self, memory: &GuestMemory, id: u16) -> Result<u32, Fault> {
        let register = self.pair(id).map_or(0, |pair| pair.head.load(Ordering::SeqCst));
        self.value(memory, id, 4, register)
    }

    fn value(&self, memory: &GuestMemory, id: u16, half: u64, register: u32) -> Result<u32, Fault> {
        let shadow = self.shadow.load(Ordering::SeqCst);
        if id == 0 || shadow == NONE {
            return Ok(register);
        }
        let address = shadow + u64::from(id) * STRIDE + half;
        memory.load(GuestAddress(address), Ordering::SeqCst).map_err(|_| Fault)
    }

    /// Asks for an exit when the tail of queue `id` moves on from `seen`. Look at the tail once more after.
    pub(super) fn arm_tail(&self, memory: &GuestMemory, id: u16, seen: u16) -> Result<(), Fault> {
        self.arm(memory, id, 0, seen)
    }

    /// Asks to be woken when the head of completion queue `id` moves on from `seen`. Look at the head once
    /// more after.
    pub(super) fn arm_head(&self, memory: &GuestMemory, id: u16, seen: u16) -> Result<(), Fault> {
        if let Some(pair) = self.pair(id) {
            pair.starved.store(true, Ordering::SeqCst);
        }
        self.arm(memory, id, 4, seen)
    }

    fn arm(&self, memory: &GuestMemory, id: u16, half: u64, seen: u16) -> Result<(), Fault> {
        let events = self.events.load(Ordering::SeqCst);
        if id != 0 && events != NONE {
            store(memory, events + u64::from(id) * STRIDE + half, u32::from(seen))?;
        }
        // Pairs with the guest's barrier between its store of the value and its load of the event index.
        fence(Ordering::SeqCst);
        Ok(())
    }
}

fn store(memory: &GuestMemory, address: u64, value: u32) -> Result<(), Fault> {
    memory.store(value, GuestAddress(address), Ordering::SeqCst).map_err(|_| Fault)
}
