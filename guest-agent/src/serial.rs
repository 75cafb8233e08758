//! The serial port through which the host wakes the agent.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_getfl, fcntl_setfl, flock, open};
use rustix::io::Errno;
use rustix::termios::{ControlModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};

/// Why the port cannot be slept on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SerialError {
    /// It cannot be opened or set up.
    #[error("cannot use {}, which the host wakes the agent through: {source}", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is in use, and has been for as long as a killed agent may take to end.
    #[error(
        "another lucos-agent sleeps on {}, and has not let go of it in {} s; end it first, or try again if it was killed: \
         then the kernel is still loading or unloading a module for it",
        .0.display(), ENDING.as_secs()
    )]
    Taken(PathBuf),
    /// It cannot be read.
    #[error("the serial port has failed: {0}")]
    Read(io::Error),
    /// It has no other end any more.
    #[error("the serial port was hung up")]
    HungUp,
}

/// How long one waits for another agent to end. One that was killed while the kernel loads or unloads a module for it (neither
/// can be interrupted) has the port until that is done: some grace periods of RCU, which a busy guest stretches to seconds.
const ENDING: Duration = Duration::from_secs(10);

/// The port, open and raw.
#[derive(Debug)]
pub(crate) struct SerialPort(OwnedFd);

impl SerialPort {
    /// Opens the device `path` for one agent; waits for one that is about to end.
    pub(crate) fn open(path: &Path) -> Result<Self, SerialError> {
        let failed = |error: Errno| SerialError::Open { path: path.into(), source: error.into() };
        // Without waiting for a carrier, which says nothing here.
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let port = open(path, flags, Mode::empty()).map_err(failed)?;
        let locked = lock(port, ENDING).map_err(|source| SerialError::Open { path: path.into(), source })?;
        let port = locked.ok_or_else(|| SerialError::Taken(path.into()))?;
        make_raw(&port).map_err(failed)?;
        let flags = fcntl_getfl(&port).map_err(failed)?;
        fcntl_setfl(&port, flags - OFlags::NONBLOCK).map_err(failed)?;
        Ok(Self(port))
    }

    /// Sleeps until the host has sent something.
    pub(crate) fn wait(&self) -> Result<(), SerialError> {
        // What it sent does not matter, and may be much if somebody else writes to the port.
        let mut bytes = [0; 256];
        loop {
            match rustix::io::read(&self.0, &mut bytes) {
                Ok(0) => return Err(SerialError::HungUp),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(SerialError::Read(error.into())),
            }
        }
    }
}

/// Gets the port for this process alone, if it can be had within `limit`. The wait is another thread's, since flock(2) has no
/// limit of its own; if it lasts too long, that thread ends with the process.
fn lock(port: OwnedFd, limit: Duration) -> io::Result<Option<OwnedFd>> {
    let (tell, told) = mpsc::sync_channel(1);
    thread::Builder::new().spawn(move || {
        let locked = loop {
            match flock(&port, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        // Nobody listens any more once the wait is over.
        let _ = tell.send(locked.map(|()| port));
    })?;
    match told.recv_timeout(limit) {
        Ok(locked) => Ok(Some(locked?)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => {
            Err(io::Error::other("the thread that waits for it has ended"))
        }
    }
}

/// No echo, no lines, no signals; a read returns with the first byte.
fn make_raw(port: &OwnedFd) -> Result<(), Errno> {
    let mut settings = tcgetattr(port)?;
    settings.make_raw();
    settings.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
    settings.special_codes[SpecialCodeIndex::VMIN] = 1;
    settings.special_codes[SpecialCodeIndex::VTIME] = 0;
    tcsetattr(port, OptionalActions::Now, &settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_about_to_end_is_waited_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let opened = || open(file.path(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let first = lock(opened(), ENDING).unwrap().unwrap();
        assert!(lock(opened(), Duration::from_millis(50)).unwrap().is_none());
        let ends = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            drop(first);
        });
        assert!(lock(opened(), ENDING).unwrap().is_some());
        ends.join().unwrap();
    }
}
