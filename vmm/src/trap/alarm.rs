//! Who looks after what nobody else comes back to: a step that does not end, and what devices have written to a page at which no vCPU
//! is trapped.
//!
//! A step ends by itself within microseconds. One that runs away, because the processor did not stop where it should have, runs where
//! nothing is trapped: that must not last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use parking_lot::{Condvar, FairMutex, Mutex, MutexGuard};

use super::order::Order;
use crate::sys::kick::Kick;

/// How long one step may take. An emulated host that is short of processors takes some milliseconds.
pub(super) const LIMIT: Duration = Duration::from_secs(2);
/// How often is looked, and how late devices' writes are told at most. Only while pages are watched.
const LOOK: Duration = Duration::from_millis(100);
/// Stack of the thread, which does next to nothing.
const STACK: usize = 64 << 10;
/// The vCPU's number has this many of the lowest bits; the time, in milliseconds, the rest.
const VCPU_BITS: u32 = 16;

struct Shared {
    kicks: Vec<Arc<Kick>>,
    order: Arc<FairMutex<Order>>,
    since: Instant,
    /// Who steps since when; 0 is nobody.
    step: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    watching: bool,
    ended: bool,
}

/// A thread, until dropped.
pub(super) struct Alarm {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Alarm {
    pub(super) fn start(kicks: &[Arc<Kick>], order: &Arc<FairMutex<Order>>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            kicks: kicks.to_vec(),
            order: Arc::clone(order),
            since: Instant::now(),
            step: AtomicU64::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("trap-alarm".into()).stack_size(STACK).spawn(move || own.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Says whether there can be steps.
    pub(super) fn watch(&self, watching: bool) {
        self.shared.state.lock().watching = watching;
        self.shared.changed.notify_all();
    }

    /// A step of `vcpu` begins. There is one at a time.
    pub(super) fn begin(&self, vcpu: usize) {
        let value = (self.shared.now() + 1) << VCPU_BITS | vcpu as u64;
        self.shared.step.store(value, Ordering::Relaxed);
    }

    /// Whether it has lasted too long.
    pub(super) fn is_over(&self) -> bool {
        self.shared.over(self.shared.step.load(Ordering::Relaxed))
    }

    /// It has ended.
    pub(super) fn end(&self) {
        self.shared.step.store(0, Ordering::Relaxed);
    }
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX >> VCPU_BITS)
    }

    fn over(&self, step: u64) -> bool {
        let limit = u64::try_from(LIMIT.as_millis()).unwrap_or(u64::MAX);
        step != 0 && self.now().saturating_sub((step >> VCPU_BITS) - 1) >= limit
    }

    fn run(&self) {
        let mut state = self.state.lock();
        while !state.ended {
            if !state.watching {
                self.changed.wait(&mut state);
                continue;
            }
            self.changed.wait_for(&mut state, LOOK);
            if state.ended || !state.watching {
                continue;
            }
            // Whoever holds it tells them, and may be in a step that has to be ended.
            MutexGuard::unlocked(&mut state, || {
                if let Some(mut order) = self.order.try_lock() {
                    order.pages.tell_marks();
                }
            });
            let step = self.step.load(Ordering::Relaxed);
            if self.over(step)
                && let Some(kick) =
                    usize::try_from(step & ((1 << VCPU_BITS) - 1)).ok().and_then(|at| self.kicks.get(at))
                && let Err(error) = kick.send()
            {
                tracing::error!("cannot signal a vCPU thread: {error}");
            }
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.shared.state.lock().ended = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that watches steps panicked; this is a bug");
        }
    }
}

impl std::fmt::Debug for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Alarm").finish_non_exhaustive()
    }
}
