//! The number of vCPUs.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::config::ValueError;
use crate::config::keys::Keys;

/// A number of vCPUs in 1..=[`CpuCount::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct CpuCount(u8);

impl CpuCount {
    /// The ACPI table that brings up the vCPUs names each by an 8-bit local APIC ID (ACPI 6.5, 5.2.12.2);
    /// 255 means all of them, and one ID is the I/O APIC's. What KVM allows is asked when the VM is made.
    pub const MAX: u8 = 254;

    /// The number.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl Default for CpuCount {
    fn default() -> Self {
        Self(1)
    }
}

impl TryFrom<u64> for CpuCount {
    type Error = ValueError;

    fn try_from(count: u64) -> Result<Self, ValueError> {
        match u8::try_from(count) {
            Ok(count @ 1..=Self::MAX) => Ok(Self(count)),
            _ => Err(ValueError::Cpus { found: count.to_string(), most: Self::MAX }),
        }
    }
}

impl FromStr for CpuCount {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut keys = Keys::parse(text, "boot", &["boot"])?;
        let found = keys.take("boot").ok_or(ValueError::Empty)?;
        match found.parse::<u64>() {
            Ok(count) => count.try_into(),
            Err(_) => Err(ValueError::Cpus { found, most: Self::MAX }),
        }
    }
}

impl fmt::Display for CpuCount {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}
