//! How `lucos-vmm` ends, in numbers that a script can rely on.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// What the exit code says. Part of the interface: docs/commands.md and `--help` list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// The guest powered itself off, or a client of the control API ended the VMM.
    Off,
    /// The host could not do what was needed: KVM, memory, a device, or a bug in the VMM.
    HostFailure,
    /// The configuration was refused: a flag, the file, or a kernel or disk that cannot be used.
    Refused,
    /// The guest's kernel panicked, or a vCPU hit a triple fault.
    GuestCrash,
    /// A signal ended the VMM; the shell's convention.
    Signal(u8),
}

impl ExitStatus {
    /// Every code with its meaning, for people.
    pub const TABLE: &[(&str, &str)] = &[
        ("0", "the guest powered off, or `lucos shutdown` ended the VMM"),
        ("1", "the host failed: KVM, memory, a device, or the VMM itself"),
        ("2", "the configuration was refused; the message says what to change"),
        ("3", "the guest crashed: kernel panic or triple fault"),
        ("128+N", "signal N ended the VMM: 130 for Ctrl-C, 143 for a plain kill"),
    ];

    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::HostFailure => 1,
            Self::Refused => 2,
            Self::GuestCrash => 3,
            Self::Signal(number) => 128_u8.saturating_add(number),
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

/// Why there is nothing more to run, and the exit code that says so.
#[derive(Debug)]
pub struct Failure {
    status: ExitStatus,
    error: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// The user has to change something.
    pub fn refused(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { status: ExitStatus::Refused, error: error.into() }
    }

    /// The host, or the VMM, could not do it.
    pub fn host(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { status: ExitStatus::HostFailure, error: error.into() }
    }

    /// The exit code.
    pub fn status(&self) -> ExitStatus {
        self.status
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(out)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

/// The end of a help text: `examples`, then the exit codes.
pub(super) fn help_with(examples: &str) -> String {
    let mut text = format!("{examples}\n\nExit codes:");
    for (code, meaning) in ExitStatus::TABLE {
        text = format!("{text}\n  {code:<7}{meaning}");
    }
    text
}
