//! The thread of a device: waits, and serves the rings in bounded batches.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::device_type::DeviceType;
use super::shared::Shared;

/// Epoll data: a vCPU thread has something.
const KICK: u64 = 0;
/// Epoll data: the host's side has something.
const SOURCE: u64 = 1;
/// How many faults of its driver a device logs: a guest must not fill the host's disk with them.
const LOGGED_FAULTS: u32 = 16;

/// A worker, before and while it runs.
#[derive(Debug)]
pub(super) struct Worker<D> {
    name: &'static str,
    shared: Arc<Shared>,
    device: D,
    epoll: Epoll,
    generation: u64,
    watching: bool,
    faults: u32,
    /// Dropped last, to tell that everything else is.
    _alive: Sender<()>,
}

impl<D: DeviceType> Worker<D> {
    pub(super) fn new(
        name: &'static str,
        shared: Arc<Shared>,
        device: D,
        alive: Sender<()>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, KICK);
        epoll.ctl(ControlOperation::Add, shared.kick().as_raw_fd(), event)?;
        Ok(Self { name, shared, device, epoll, generation: 0, watching: false, faults: 0, _alive: alive })
    }

    /// Runs until the device is shut down.
    pub(super) fn run(mut self) {
        loop {
            if let Err(error) = self.wait() {
                tracing::error!(device = self.name, %error, "worker cannot wait; the device stops");
                self.shared.stop();
                return;
            }
            loop {
                let live = self.shared.live();
                if live.stopped {
                    return;
                }
                if !self.round(live.generation, live.features) {
                    break;
                }
            }
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 2];
        let count = loop {
            match self.epoll.wait(-1, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        if events.iter().take(count).any(|event| event.data() == KICK) {
            // Fails only when nothing is in it, which is what the read is for.
            let _ = self.shared.kick().read();
        }
        Ok(())
    }

    /// One round; `true` when another has to follow before the worker may sleep.
    fn round(&mut self, generation: u64, features: Option<u64>) -> bool {
        let changed = generation != self.generation;
        self.generation = generation;
        let Some(features) = features else {
            if changed {
                self.device.stop();
            }
            self.watch(false);
            return false;
        };
        let filled = if changed { self.device.start(features) } else { Ok(()) };
        if let Err(error) = filled.and_then(|()| self.device.fill()) {
            self.log_fault(&error, "the host failed the device; it needs a reset");
            self.shared.fail_driver(generation);
            return true;
        }
        let outcome = self.shared.serve(generation, &mut self.device);
        self.device.drain();
        match outcome {
            Ok(Some(progress)) => {
                self.watch(progress.watch_source);
                progress.again
            }
            Ok(None) => true,
            Err(fault) => {
                self.log_fault(&fault, "the driver misused a queue; the device needs a reset");
                true
            }
        }
    }

    /// Starts or ends to wait for the host's side.
    fn watch(&mut self, wanted: bool) {
        let source = if wanted { self.device.source() } else { None };
        let (operation, fd) = match (source, self.watching) {
            (Some(fd), false) => (ControlOperation::Add, fd),
            (None, true) => match self.device.source() {
                Some(fd) => (ControlOperation::Delete, fd),
                None => return,
            },
            _ => return,
        };
        // Deleted rather than masked: epoll reports errors even of a descriptor with an empty mask.
        if let Err(error) = self.epoll.ctl(operation, fd, EpollEvent::new(EventSet::IN, SOURCE)) {
            tracing::error!(device = self.name, %error, "cannot change what the worker waits for");
        }
        self.watching = wanted;
    }

    fn log_fault(&mut self, fault: &(dyn std::error::Error + 'static), what: &str) {
        if self.faults < LOGGED_FAULTS {
            self.faults += 1;
            tracing::warn!(device = self.name, fault, "{what}");
        }
    }
}
