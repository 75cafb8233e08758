//! What the register side and the workers of one controller have in common.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::counters::Counters;
use super::disk::Disk;
use super::doorbell::Doorbells;
use super::queue::CompletionQueue;
use super::regs::Registers;
use crate::device::pci::Msix;
use crate::log_limit::LogLimit;
use crate::memory::DeviceMemory;

/// One controller's state. Each lock in it is held for a few instructions, never across I/O or the gate,
/// so that vCPU threads may take them.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) disk: Arc<Disk>,
    pub(super) serial: String,
    /// I/O queues offered, of each kind.
    pub(super) queues: u16,
    pub(super) memory: DeviceMemory,
    pub(super) msix: Arc<Msix>,
    pub(super) doorbells: Doorbells,
    pub(super) counters: Counters,
    /// Feature Volatile Write Cache (5.21.1.6): when off, each write reaches stable storage by itself.
    pub(super) write_cache: AtomicBool,
    registers: Mutex<Registers>,
    /// The PCI Bus Master bit: without it a function may not touch memory.
    bus_master: AtomicBool,
    quit: AtomicBool,
    failures: LogLimit,
    /// Flushes at a shutdown that the host refused.
    pub(super) failed_flushes: LogLimit,
}

impl Shared {
    pub(super) fn new(
        disk: Arc<Disk>,
        serial: String,
        queues: u16,
        memory: DeviceMemory,
        msix: Arc<Msix>,
    ) -> Self {
        Self {
            disk,
            serial,
            queues,
            memory,
            msix,
            doorbells: Doorbells::new(queues),
            counters: Counters::default(),
            write_cache: AtomicBool::new(true),
            registers: Mutex::default(),
            bus_master: AtomicBool::new(false),
            quit: AtomicBool::new(false),
            failures: LogLimit::default(),
            failed_flushes: LogLimit::default(),
        }
    }

    pub(super) fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the controller thread.
    pub(super) fn ring_controller(&self) {
        if let Some(pair) = self.doorbells.pair(0) {
            pair.bell.ring();
        }
    }

    /// Makes the controller report a fatal error (3.1.6, CFS): it takes no admin command and the queue at fault
    /// none at all until the guest resets it.
    pub(super) fn fail(&self, why: &str) {
        if let Some(count) = self.failures.pass() {
            let disk = self.disk.path().display();
            tracing::warn!(%disk, why, count, "NVMe controller failed: CSTS.CFS set");
        }
        self.registers().fail();
        self.ring_controller();
    }

    /// Raises the interrupt of a completion queue, once for all that was just posted.
    pub(super) fn interrupt(&self, queue: &CompletionQueue) {
        if let Some(vector) = queue.vector() {
            self.counters.interrupt();
            self.msix.notify(vector);
        }
    }

    pub(super) fn bus_master(&self) -> bool {
        self.bus_master.load(Ordering::SeqCst)
    }

    /// Takes over the Bus Master bit; workers that found it clear look again.
    pub(super) fn set_bus_master(&self, allowed: bool) {
        if self.bus_master.swap(allowed, Ordering::SeqCst) != allowed {
            self.doorbells.ring_all();
        }
    }

    pub(super) fn quitting(&self) -> bool {
        self.quit.load(Ordering::SeqCst)
    }

    /// Asks the controller thread to stop everything and end.
    pub(super) fn quit(&self) {
        self.quit.store(true, Ordering::SeqCst);
        self.ring_controller();
    }
}
