//! What wakes a worker.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Thread};

/// Rung by any thread, waited for by one.
///
/// Parking rather than an eventfd or a condition variable: ringing a worker that is awake costs one atomic
/// exchange and no system call, and that is the common case on a busy queue.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: AtomicBool,
    /// Held for the length of an `unpark` at most, so a vCPU thread may take it.
    sleeper: Mutex<Option<Thread>>,
}

impl Bell {
    /// Wakes the worker, or keeps it from falling asleep.
    pub(super) fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst)
            && let Some(sleeper) = &*self.sleeper.lock().unwrap_or_else(PoisonError::into_inner)
        {
            sleeper.unpark();
        }
    }

    /// Makes the calling thread the one that waits. A ring before this is not lost.
    pub(super) fn attach(&self) {
        *self.sleeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
    }

    /// Waits until the bell has been rung since the last wait.
    pub(super) fn wait(&self) {
        while !self.rung.swap(false, Ordering::SeqCst) {
            thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn no_ring_is_lost() {
        let (bell, back) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
        let count = Arc::new(AtomicU32::new(0));
        let worker = {
            let (bell, back, count) = (Arc::clone(&bell), Arc::clone(&back), Arc::clone(&count));
            thread::spawn(move || {
                bell.attach();
                for _ in 0..10_000 {
                    bell.wait();
                    count.fetch_add(1, Ordering::SeqCst);
                    back.ring();
                }
            })
        };
        back.attach();
        for _ in 0..10_000 {
            bell.ring();
            back.wait();
        }
        worker.join().unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 10_000);
    }
}
