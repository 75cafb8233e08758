//! The gate through which devices reach guest memory.
//!
//! A paused guest must not change under the eyes of whoever paused it, and half of what changes guest
//! memory is not a vCPU: disk completions, received packets, random bytes. So a device thread can touch guest
//! memory only while it holds a [`DmaAccess`], and closing the gate waits until none is held. What a device
//! does under one access is one completed piece of I/O: data first, then the completion entry, then the
//! interrupt, so that a pause never falls between them.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ram::GuestMemory;

/// How long a pause waits for device accesses under way. One of them takes a millisecond; a disk on a network
/// that is down, seconds and more, and the pause is then better given up than the operator kept waiting. Once one has lasted that
/// long, pauses are given up at once: they would only keep all other devices waiting, each time again.
const LIMIT: Duration = Duration::from_secs(5);

/// Why the gate could not be closed.
#[derive(Debug, thiserror::Error)]
#[error(
    "{inside} device accesses to guest memory were still under way after {limit:?}; the host's storage or \
     network may hang"
)]
pub struct GateError {
    /// How many.
    pub inside: usize,
    /// How long the pause waited for them.
    pub limit: Duration,
}

#[derive(Debug, Default)]
struct GateState {
    /// How many pauses hold the gate closed.
    closed: usize,
    /// Accesses that are under way, by number, and since when.
    inside: BTreeMap<u64, Instant>,
    /// The number of the last one.
    last: u64,
    /// No pause can close it any more.
    abandoned: bool,
}

/// The gate itself: closed by a pause, passed by device threads.
#[derive(Debug, Default)]
pub struct DmaGate {
    state: Mutex<GateState>,
    changed: Condvar,
}

impl DmaGate {
    /// Closes the gate and returns once no device is inside.
    ///
    /// Every access is one bounded piece of device work, so the wait is as long as the longest of them
    /// (for a disk: one command's transfer to or from the page cache; flushes wait outside the gate). Only a
    /// host whose storage hangs makes it longer than [`LIMIT`]; then the gate is open again.
    pub fn close(&self) -> Result<(), GateError> {
        self.close_within(LIMIT)
    }

    fn close_within(&self, limit: Duration) -> Result<(), GateError> {
        let mut state = self.lock();
        if state.abandoned {
            return Ok(());
        }
        // The lowest number is the oldest.
        if state.inside.first_key_value().is_some_and(|(_, since)| since.elapsed() >= limit) {
            return Err(GateError { inside: state.inside.len(), limit });
        }
        state.closed += 1;
        let (mut state, timeout) = self
            .changed
            .wait_timeout_while(state, limit, |state| !state.inside.is_empty() && !state.abandoned)
            .unwrap_or_else(PoisonError::into_inner);
        if !timeout.timed_out() {
            return Ok(());
        }
        let inside = state.inside.len();
        state.closed = state.closed.saturating_sub(1);
        drop(state);
        self.changed.notify_all();
        Err(GateError { inside, limit })
    }

    /// Opens the gate again; each [`DmaGate::close`] needs one.
    pub fn open(&self) {
        let mut state = self.lock();
        state.closed = state.closed.saturating_sub(1);
        drop(state);
        self.changed.notify_all();
    }

    /// Opens the gate for good, whoever holds it closed: the machine ends, and devices that wait here must end
    /// with it.
    pub fn abandon(&self) {
        let mut state = self.lock();
        state.closed = 0;
        state.abandoned = true;
        drop(state);
        self.changed.notify_all();
    }

    fn enter(&self) -> u64 {
        let mut state = self.lock();
        while state.closed > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.last += 1;
        let number = state.last;
        state.inside.insert(number, Instant::now());
        number
    }

    fn leave(&self, number: u64) {
        let mut state = self.lock();
        state.inside.remove(&number);
        let last = state.inside.is_empty() && state.closed > 0;
        drop(state);
        if last {
            self.changed.notify_all();
        }
    }

    /// A panic elsewhere must not take the gate with it: the counts stay true, every change is one statement.
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Guest memory as a device holds it: unreachable but through the gate.
#[derive(Debug, Clone)]
pub struct DeviceMemory {
    memory: GuestMemory,
    gate: Arc<DmaGate>,
}

impl DeviceMemory {
    /// Puts `gate` in front of `memory`.
    pub fn new(memory: GuestMemory, gate: Arc<DmaGate>) -> Self {
        Self { memory, gate }
    }

    /// Enters the gate, waiting while it is closed.
    ///
    /// Only device threads may call this. A vCPU thread that waited here could never be parked by the pause
    /// that closed the gate; it hands its work to a device thread instead. Never enter twice in one thread.
    pub fn enter(&self) -> DmaAccess<'_> {
        DmaAccess { device: self, number: self.gate.enter() }
    }
}

/// The right to touch guest memory, until dropped.
#[derive(Debug)]
pub struct DmaAccess<'a> {
    device: &'a DeviceMemory,
    number: u64,
}

impl Deref for DmaAccess<'_> {
    type Target = GuestMemory;

    fn deref(&self) -> &GuestMemory {
        &self.device.memory
    }
}

impl Drop for DmaAccess<'_> {
    fn drop(&mut self) {
        self.device.gate.leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn a_closed_gate_stops_every_device() {
        let ram = GuestRam::new(2 << 20).unwrap();
        let gate = Arc::new(DmaGate::default());
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for device in 0..4_u64 {
                let memory = DeviceMemory::new(ram.memory().clone(), Arc::clone(&gate));
                let stop = &stop;
                scope.spawn(move || {
                    let (first, second) = (GuestAddress(device * 64), GuestAddress(device * 64 + 8));
                    let mut count = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        count += 1;
                        let access = memory.enter();
                        access.write_obj(count, first).unwrap();
                        access.write_obj(count, second).unwrap();
                    }
                });
            }
            for _ in 0..200 {
                gate.close().unwrap();
                let snapshot = |at: u64| ram.memory().read_obj::<u64>(GuestAddress(at)).unwrap();
                let before: Vec<u64> = (0..4).map(|device| snapshot(device * 64)).collect();
                thread::sleep(Duration::from_micros(50));
                for device in 0..4 {
                    // Nothing moved while closed, and no access was cut in two.
                    assert_eq!(snapshot(device * 64), before[usize::try_from(device).unwrap()]);
                    assert_eq!(snapshot(device * 64), snapshot(device * 64 + 8));
                }
                gate.open();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn two_pauses_need_two_openings() {
        let ram = GuestRam::new(2 << 20).unwrap();
        let gate = Arc::new(DmaGate::default());
        let memory = DeviceMemory::new(ram.memory().clone(), Arc::clone(&gate));
        gate.close().unwrap();
        gate.close().unwrap();
        gate.open();
        let entered = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _access = memory.enter();
                entered.store(true, Ordering::SeqCst);
            });
            thread::sleep(Duration::from_millis(20));
            assert!(!entered.load(Ordering::SeqCst));
            gate.open();
        });
        assert!(entered.load(Ordering::SeqCst));
    }

    #[test]
    fn a_device_that_hangs_fails_the_pause_and_leaves_the_gate_open() {
        let ram = GuestRam::new(2 << 20).unwrap();
        let gate = Arc::new(DmaGate::default());
        let memory = DeviceMemory::new(ram.memory().clone(), Arc::clone(&gate));
        let hanging = memory.enter();
        let error = gate.close_within(Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.inside, 1);
        drop(memory.enter());
        // From then on nobody is kept waiting for it.
        let limit = Duration::from_millis(500);
        thread::sleep(limit);
        let begin = Instant::now();
        gate.close_within(limit).unwrap_err();
        assert!(begin.elapsed() < limit);
        drop(memory.enter());
        drop(hanging);
        gate.close().unwrap();
    }
}
