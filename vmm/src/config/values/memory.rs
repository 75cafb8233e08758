//! The size of guest memory.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::config::ValueError;
use crate::config::keys::Keys;

/// Backing by huge pages needs whole ones; both mappings of guest memory are aligned to this.
const HUGE_PAGE: u64 = 2 << 20;

/// A size of guest memory: a multiple of 2 MiB in [`MemorySize::MIN`]..=[`MemorySize::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct MemorySize(u64);

impl MemorySize {
    /// Linux loads at 16 MiB by default (`pref_address`, `arch/x86/boot.rst`): with less there
    /// is nowhere to put even its first byte. What a certain kernel needs is known when it is read.
    pub const MIN: Self = Self(32 << 20);
    /// Four-level page tables of the guest's direct map reach 64 TiB (`arch/x86/x86_64/mm.rst`).
    pub const MAX: Self = Self(64 << 40);

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl Default for MemorySize {
    /// 512 MiB: a Debian cloud image boots and works in it.
    fn default() -> Self {
        Self(512 << 20)
    }
}

impl TryFrom<u64> for MemorySize {
    type Error = ValueError;

    fn try_from(bytes: u64) -> Result<Self, ValueError> {
        if bytes < Self::MIN.0 {
            return Err(ValueError::MemoryTooSmall { found: size_text(bytes), least: Self::MIN.to_string() });
        }
        if bytes > Self::MAX.0 {
            return Err(ValueError::MemoryTooLarge { most: Self::MAX.to_string() });
        }
        if !bytes.is_multiple_of(HUGE_PAGE) {
            let below = bytes - bytes % HUGE_PAGE;
            let (below, above) = (size_text(below), size_text(below + HUGE_PAGE));
            return Err(ValueError::MemoryMultiple { bytes, below, above });
        }
        Ok(Self(bytes))
    }
}

impl FromStr for MemorySize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut keys = Keys::parse(text, "size", &["size"])?;
        parse_size(&keys.take("size").ok_or(ValueError::Empty)?)?.try_into()
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&size_text(self.0))
    }
}

/// Bytes, or a number with a binary suffix; a following `B` or `iB` is fine, lower case too.
fn parse_size(text: &str) -> Result<u64, ValueError> {
    let wrong = || ValueError::Size { found: text.to_owned() };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| ValueError::MemoryTooLarge { most: MemorySize::MAX.to_string() })
}

/// The shortest exact spelling of a size.
fn size_text(bytes: u64) -> String {
    for (shift, suffix) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}
