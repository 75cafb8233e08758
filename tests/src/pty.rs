//! A terminal with nobody in front of it.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{self, LocalModes};

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub(crate) struct Pty {
    ours: OwnedFd,
    terminal: File,
}

impl Pty {
    /// Makes one, in the mode that a shell's terminal is in.
    pub(crate) fn new() -> Result<Self> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("cannot make a pseudo-terminal")?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let path = ptsname(&ours, Vec::new())?.into_string().context("the name of a pseudo-terminal")?;
        let terminal = {
            use std::os::unix::fs::OpenOptionsExt;
            let flags = i32::try_from(OFlags::NOCTTY.bits())?;
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path)
        }
        .with_context(|| format!("cannot open {path}"))?;
        Ok(Self { ours, terminal })
    }

    /// The end that a program gets.
    pub(crate) fn terminal(&self) -> Result<File> {
        Ok(self.terminal.try_clone()?)
    }

    /// The end at which the keyboard and the screen would be.
    pub(crate) fn ours(&self) -> Result<File> {
        Ok(File::from(self.ours.try_clone()?))
    }

    /// Whether every key goes to the program at once, without an echo.
    pub(crate) fn is_raw(&self) -> Result<bool> {
        let modes = termios::tcgetattr(&self.terminal)?.local_modes;
        Ok(!modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG))
    }

    /// All settings, to be compared.
    pub(crate) fn settings(&self) -> Result<String> {
        let termios = termios::tcgetattr(&self.terminal)?;
        Ok(format!(
            "input {:?} output {:?} control {:?} local {:?}",
            termios.input_modes, termios.output_modes, termios.control_modes, termios.local_modes
        ))
    }
}
