//! The console.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::config::ValueError;

/// Where the guest's console leads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SerialSpec {
    /// This terminal.
    #[default]
    Tty,
    /// A file, created if need be and appended to; there is no input.
    File(PathBuf),
    /// Nowhere.
    Null,
}

impl FromStr for SerialSpec {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "" => Err(ValueError::Empty),
            "tty" => Ok(Self::Tty),
            "null" => Ok(Self::Null),
            other => match other.strip_prefix("file=") {
                Some("") => Err(ValueError::MissingKey { key: "file", example: "file=console.log" }),
                // One key only, so that the rest is the path as it stands.
                Some(path) => Ok(Self::File(path.trim_matches('"').into())),
                None => Err(ValueError::Serial { found: other.to_owned() }),
            },
        }
    }
}

impl fmt::Display for SerialSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tty => out.write_str("tty"),
            Self::File(path) => write!(out, "file={}", path.display()),
            Self::Null => out.write_str("null"),
        }
    }
}
