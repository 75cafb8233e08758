//! How `lucos-patch` ends, in numbers that a script can rely on.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// What the exit code says. Part of the interface: docs/commands.md and `--help` list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// What was asked for is done.
    Done,
    /// This machine could not do it: a file, the terminal, a program that is missing, or a bug.
    Failed,
    /// The command line cannot be read; clap's number.
    Usage,
    /// A fix, a patch, a manifest, a module, a key or a signature cannot be used as it is.
    Refused,
    /// No given key has signed the patch as it is.
    NotTrusted,
}

impl ExitStatus {
    /// Every code with its meaning, for people.
    pub const TABLE: [(Self, &str); 5] = [
        (Self::Done, "done; for `verify`: the patch is signed by a key that was given"),
        (
            Self::Failed,
            "this machine could not do it: a file, the terminal, a program that is missing, or a bug",
        ),
        (Self::Usage, "the command line cannot be read"),
        (
            Self::Refused,
            "a fix, patch, manifest, module, key or signature was refused; the message says what to change",
        ),
        (Self::NotTrusted, "the patch is not signed, or by no key that was given, or was changed since"),
    ];

    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::NotTrusted => 4,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

/// Why something was not done, and the exit code that says so.
#[derive(Debug)]
pub struct Failure {
    status: ExitStatus,
    error: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// This machine could not do it.
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { status: ExitStatus::Failed, error: error.into() }
    }

    /// What was given cannot be used.
    pub fn refused(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { status: ExitStatus::Refused, error: error.into() }
    }

    /// The signature does not say what it should.
    pub fn not_trusted(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { status: ExitStatus::NotTrusted, error: error.into() }
    }

    /// The exit code.
    pub fn status(&self) -> ExitStatus {
        self.status
    }
}

impl fmt::Display for Failure {
    /// The error with its causes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)?;
        let mut cause = self.error.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl Error for Failure {}
