//! A disk.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;
use utoipa::ToSchema;

use crate::config::ValueError;
use crate::config::keys::{Keys, quote};

/// A disk image, shown to the guest as an NVMe disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DiskSpec {
    /// The raw image: a file or a block device.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub readonly: bool,
}

impl FromStr for DiskSpec {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut keys = Keys::parse(text, "path", &["path", "readonly"])?;
        let readonly = keys.take_switch("readonly")?.unwrap_or(false);
        let missing = ValueError::MissingKey { key: "path", example: "path=root.img,readonly=on" };
        Ok(Self { path: keys.take("path").ok_or(missing)?.into(), readonly })
    }
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let readonly = if self.readonly { ",readonly=on" } else { "" };
        write!(out, "path={}{readonly}", quote(&self.path.to_string_lossy()))
    }
}
