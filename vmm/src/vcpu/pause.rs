//! Stopping all vCPUs at once.
//!
//! ```text
//!            pause()                 all parked
//!  running ----------> stopping --------------------> paused
//!     ^                                                  |
//!     +--------------------- resume() -------------------+
//! ```
//!
//! A pause is requested by a flag, and a kick signal gets each vCPU to look at it. A vCPU parks only once the
//! I/O of its last exit is complete (its registers can be read) and holds no lock of a device.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a vCPU may take to park before it is kicked again.
///
/// A kick cannot be lost (see `sys::vcpu`), so this only bounds the harm of an unforeseen way to miss one.
const KICK_AGAIN: Duration = Duration::from_millis(20);
/// How long all vCPUs together may take. A vCPU is at most one exit away from parking, and no exit handler waits for I/O, or for another
/// vCPU but at traps, where a step is ended after two seconds; a host so overloaded that this takes longer has worse problems.
const LIMIT: Duration = Duration::from_secs(10);

/// Why the vCPUs could not be stopped.
#[derive(Debug, thiserror::Error)]
#[error("{missing} of {total} vCPUs did not stop within {limit:?}; the host is overloaded or this is a bug")]
pub struct PauseError {
    /// vCPUs that did not.
    pub missing: usize,
    /// All of them.
    pub total: usize,
    /// How long the pause waited.
    pub limit: Duration,
}

#[derive(Debug, Default)]
struct State {
    /// How many pauses are held.
    depth: usize,
    /// vCPU threads that exist and have not left for good.
    alive: usize,
    /// vCPU threads that wait.
    parked: usize,
    stopping: bool,
}

/// Where vCPU threads and whoever stops them meet.
#[derive(Debug, Default)]
pub struct Rendezvous {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether any vCPU should come out; looked at after each exit.
    requested: AtomicBool,
}

impl Rendezvous {
    /// A vCPU thread begins; before it starts to run.
    pub fn enlist(&self) {
        self.lock().alive += 1;
    }

    /// A vCPU thread ends for good.
    pub fn leave(&self) {
        self.lock().alive -= 1;
        self.changed.notify_all();
    }

    /// Whether a vCPU thread must [`Rendezvous::park`] now.
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Waits while a pause is held. Returns whether the thread may run on; `false` means that it must end.
    pub fn park(&self) -> bool {
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        while state.depth > 0 && !state.stopping {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        !state.stopping
    }

    /// Waits until this machine is told to stop: for a vCPU that cannot run on but whose state may be asked for.
    pub fn park_until_stopped(&self) {
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        while !state.stopping {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
    }

    /// Requests a pause and waits until every vCPU is parked; `kick` gets them all out of the guest.
    ///
    /// Pauses nest: the vCPUs run again after as many calls of [`Rendezvous::resume`].
    pub fn pause(&self, kick: impl Fn()) -> Result<(), PauseError> {
        let mut state = self.lock();
        state.depth += 1;
        self.requested.store(true, Ordering::SeqCst);
        drop(state);
        let deadline = Instant::now() + LIMIT;
        loop {
            kick();
            state = self.lock();
            let kick_at = Instant::now() + KICK_AGAIN;
            while state.parked < state.alive {
                let wait = kick_at.saturating_duration_since(Instant::now());
                if wait.is_zero() {
                    break;
                }
                (state, _) = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
            }
            if state.parked >= state.alive {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let error =
                    PauseError { missing: state.alive - state.parked, total: state.alive, limit: LIMIT };
                drop(state);
                self.resume();
                return Err(error);
            }
            drop(state);
        }
    }

    /// Ends one pause.
    pub fn resume(&self) {
        let mut state = self.lock();
        state.depth = state.depth.saturating_sub(1);
        if state.depth == 0 {
            self.requested.store(state.stopping, Ordering::SeqCst);
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Tells every vCPU thread to end; they also need a kick.
    pub fn stop(&self) {
        self.lock().stopping = true;
        self.requested.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Waits until every vCPU thread has left, kicking those that have not again and again; after
    /// [`Rendezvous::stop`].
    ///
    /// Without a limit: to go on while a vCPU might still run would be to free its memory under it.
    pub fn wait_until_left(&self, kick: impl Fn()) {
        let begin = Instant::now();
        let mut told = false;
        let mut state = self.lock();
        while state.alive > 0 {
            drop(state);
            kick();
            (state, _) = self
                .changed
                .wait_timeout_while(self.lock(), KICK_AGAIN, |state| state.alive > 0)
                .unwrap_or_else(PoisonError::into_inner);
            if begin.elapsed() > LIMIT && !told {
                told = true;
                tracing::error!(
                    "{} vCPUs do not end; the host is overloaded, or this is a bug: kill -9 ends the VMM",
                    state.alive
                );
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
