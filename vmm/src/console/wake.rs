//! Waking a thread that sits in poll(2).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// A request to stop that poll(2) can see. It stays set.
#[derive(Debug, Clone)]
pub(super) struct StopSignal {
    stopped: Arc<AtomicBool>,
    event: Arc<OwnedFd>,
}

impl StopSignal {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { stopped: Arc::default(), event: Arc::new(event) })
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        if let Err(error) = rustix::io::write(&*self.event, &1_u64.to_ne_bytes()) {
            tracing::debug!("stop event: {error}");
        }
    }

    pub(super) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

impl AsFd for StopSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
