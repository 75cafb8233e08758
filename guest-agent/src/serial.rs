//! The serial port through which the host wakes the agent.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

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
    /// It is in use.
    #[error("another lucos-agent sleeps on {}", .0.display())]
    Taken(PathBuf),
    /// It cannot be read.
    #[error("the serial port has failed: {0}")]
    Read(io::Error),
    /// It has no other end any more.
    #[error("the serial port was hung up")]
    HungUp,
}

/// The port, open and raw.
#[derive(Debug)]
pub(crate) struct SerialPort(OwnedFd);

impl SerialPort {
    /// Opens the device `path` for one agent.
    pub(crate) fn open(path: &Path) -> Result<Self, SerialError> {
        let failed = |error: Errno| SerialError::Open { path: path.into(), source: error.into() };
        // Without waiting for a carrier, which says nothing here.
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let port = open(path, flags, Mode::empty()).map_err(failed)?;
        flock(&port, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            Errno::WOULDBLOCK => SerialError::Taken(path.into()),
            other => failed(other),
        })?;
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

/// No echo, no lines, no signals; a read returns with the first byte.
fn make_raw(port: &OwnedFd) -> Result<(), Errno> {
    let mut settings = tcgetattr(port)?;
    settings.make_raw();
    settings.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
    settings.special_codes[SpecialCodeIndex::VMIN] = 1;
    settings.special_codes[SpecialCodeIndex::VTIME] = 0;
    tcsetattr(port, OptionalActions::Now, &settings)
}
