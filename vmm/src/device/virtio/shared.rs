//! What the vCPU threads and the worker of a device share.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device_type::{DeviceType, Progress};
use super::interrupts::Interrupts;
use super::ring::{Ring, RingError};
use crate::memory::{DeviceMemory, DmaAccess, GuestMemory};

/// Everything that DMA needs; whoever holds the lock around it decides whether DMA happens.
#[derive(Debug, Default)]
pub(super) struct Dma {
    /// Counts up whenever the rings come or go.
    generation: u64,
    /// The PCI command register lets the function access memory.
    bus_master: bool,
    stopped: bool,
    active: Option<Active>,
}

/// The rings of a driver between `DRIVER_OK` and reset.
#[derive(Debug)]
struct Active {
    features: u64,
    rings: Vec<Ring>,
    /// The rings were found to lie in RAM.
    checked: bool,
}

/// What a worker has to know before it starts a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) generation: u64,
    /// Features of the driver, if one is there.
    pub(super) features: Option<u64>,
    pub(super) stopped: bool,
}

/// One device, as its two sides share it.
///
/// Lock order: registers (in [`super::VirtioDevice`]), `turn`, `dma`, the MSI-X table. The worker enters the
/// DMA gate before `dma` and waits for nothing while it holds either.
#[derive(Debug)]
pub(super) struct Shared {
    memory: DeviceMemory,
    pub(super) interrupts: Interrupts,
    /// Held by a vCPU thread while it waits for `dma`; the worker passes through it before each batch, so
    /// that a busy worker cannot take `dma` again and again in front of a waiting vCPU.
    turn: Mutex<()>,
    dma: Mutex<Dma>,
    kick: EventFd,
    /// Notifications are worth a wake-up.
    running: AtomicBool,
    /// `DEVICE_NEEDS_RESET`.
    broken: AtomicBool,
}

impl Shared {
    pub(super) fn new(memory: DeviceMemory, interrupts: Interrupts) -> io::Result<Self> {
        Ok(Self {
            memory,
            interrupts,
            turn: Mutex::default(),
            dma: Mutex::default(),
            kick: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            running: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        })
    }

    // What vCPU threads call.

    /// A queue was notified; ignored while no driver runs.
    pub(super) fn notify(&self) {
        if self.running.load(Ordering::Acquire) {
            self.wake();
        }
    }

    /// Whether `DEVICE_NEEDS_RESET` is set.
    pub(super) fn broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// A driver took over.
    pub(super) fn start(&self, features: u64, rings: Vec<Ring>) {
        let mut dma = self.dma_in_turn();
        // A driver that never reset a broken device does not get it back.
        if dma.stopped || self.broken() {
            return;
        }
        dma.generation += 1;
        dma.active = Some(Active { features, rings, checked: false });
        self.running.store(true, Ordering::Release);
        drop(dma);
        self.wake();
    }

    /// The driver is gone; once this returns, no DMA happens.
    pub(super) fn reset(&self) {
        let mut dma = self.dma_in_turn();
        self.deactivate(&mut dma);
        self.broken.store(false, Ordering::Release);
        self.interrupts.reset();
        drop(dma);
        self.wake();
    }

    /// The driver misused the device from a vCPU thread.
    pub(super) fn fail(&self) {
        let mut dma = self.dma_in_turn();
        self.fail_locked(&mut dma);
        drop(dma);
        self.wake();
    }

    /// The PCI command register was written.
    pub(super) fn set_bus_master(&self, enabled: bool) {
        let mut dma = self.dma_in_turn();
        let changed = dma.bus_master != enabled;
        dma.bus_master = enabled;
        drop(dma);
        if changed {
            self.wake();
        }
    }

    /// Ends the worker; once this returns, no DMA happens.
    pub(super) fn stop(&self) {
        let mut dma = self.dma_in_turn();
        self.deactivate(&mut dma);
        dma.stopped = true;
        drop(dma);
        self.wake();
    }

    // What the worker calls.

    /// What the worker waits on.
    pub(super) fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The state of affairs before a round.
    pub(super) fn live(&self) -> Live {
        drop(self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        let dma = self.dma();
        Live {
            generation: dma.generation,
            features: dma.active.as_ref().map(|active| active.features),
            stopped: dma.stopped,
        }
    }

    /// Serves one batch of the driver of `generation`, all of it under one access to guest memory.
    ///
    /// `None` when that driver is gone, because of this batch or before it.
    pub(super) fn serve(
        &self,
        generation: u64,
        device: &mut impl DeviceType,
    ) -> Result<Option<Progress>, RingError> {
        let memory: DmaAccess<'_> = self.memory.enter();
        let mut dma = self.dma();
        if dma.generation != generation {
            return Ok(None);
        }
        if !dma.bus_master {
            return Ok(Some(Progress::IDLE));
        }
        let Some(active) = dma.active.as_mut() else { return Ok(None) };
        let outcome = active.serve(device, &memory, &self.interrupts);
        if outcome.is_err() {
            self.fail_locked(&mut dma);
        }
        outcome.map(Some)
    }

    /// The host failed the driver of `generation`, if that is still there.
    pub(super) fn fail_driver(&self, generation: u64) {
        // It raises an interrupt, and a paused guest gets none.
        let _access = self.memory.enter();
        let mut dma = self.dma();
        if dma.generation == generation {
            self.fail_locked(&mut dma);
        }
    }

    fn wake(&self) {
        // Fails only when the counter is at its limit, and then the worker is awake.
        let _ = self.kick.write(1);
    }

    fn deactivate(&self, dma: &mut Dma) {
        dma.generation += 1;
        dma.active = None;
        self.running.store(false, Ordering::Release);
    }

    /// Sets `DEVICE_NEEDS_RESET` and says so (2.1.1).
    fn fail_locked(&self, dma: &mut Dma) {
        self.deactivate(dma);
        self.broken.store(true, Ordering::Release);
        if dma.bus_master {
            self.interrupts.raise_config();
        }
    }

    fn dma_in_turn(&self) -> MutexGuard<'_, Dma> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.dma()
    }

    fn dma(&self) -> MutexGuard<'_, Dma> {
        self.dma.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Active {
    fn serve(
        &mut self,
        device: &mut impl DeviceType,
        memory: &GuestMemory,
        interrupts: &Interrupts,
    ) -> Result<Progress, RingError> {
        if !self.checked {
            self.rings.iter().try_for_each(|ring| ring.check(memory))?;
            self.checked = true;
        }
        let progress = device.serve(&mut self.rings, memory)?;
        for (number, ring) in self.rings.iter_mut().enumerate() {
            if ring.wants_interrupt(memory)? {
                interrupts.raise_queue(number);
            }
        }
        Ok(progress)
    }
}
