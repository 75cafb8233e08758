//! Values of a manifest that are more than a text or a number.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::NAME_CHARS;

/// The name of a patch: it is part of file names and stands in command lines.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PatchName(String);

impl PatchName {
    /// What a name must be.
    pub const RULE: &'static str = "1 to 64 of a-z, 0-9 and -, with no - at the beginning";

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PatchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no name of a patch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no name of a patch; it must be {}", PatchName::RULE)]
pub struct NoPatchName {
    /// The text.
    found: String,
}

impl FromStr for PatchName {
    type Err = NoPatchName;

    fn from_str(text: &str) -> Result<Self, NoPatchName> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for PatchName {
    type Error = NoPatchName;

    fn try_from(text: String) -> Result<Self, NoPatchName> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=NAME_CHARS).contains(&text.len()) && text.bytes().all(is_plain) && !text.starts_with('-') {
            return Ok(Self(text));
        }
        Err(NoPatchName { found: text.chars().take(NAME_CHARS).collect() })
    }
}

impl From<PatchName> for String {
    fn from(name: PatchName) -> Self {
        name.0
    }
}

/// A kernel's GNU build-id. The linker makes it with SHA-1 (`--build-id=sha1`, `Makefile`, Linux 6.1), so it has 20 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BuildId([u8; 20]);

impl BuildId {
    /// The bytes, as they are in the kernel's note.
    pub fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl From<[u8; 20]> for BuildId {
    fn from(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BuildId({self})")
    }
}

/// Why a text is no build-id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no build-id; it must be 40 of 0-9 and a-f, as `file vmlinux` prints it")]
pub struct NoBuildId {
    /// The text's beginning.
    found: String,
}

impl FromStr for BuildId {
    type Err = NoBuildId;

    fn from_str(text: &str) -> Result<Self, NoBuildId> {
        let no = || NoBuildId { found: text.chars().take(41).collect() };
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(no()) };
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let bytes: Option<Vec<u8>> =
            pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or_else(no)
    }
}

impl Serialize for BuildId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BuildId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Machine code; base64 in a file.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Code(Vec<u8>);

impl Code {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Code {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({:#x} bytes)", self.0.len())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        BASE64.encode(&self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64
            .decode(text)
            .map(Self)
            .map_err(|error| D::Error::custom(format!("code is not base64 with its padding: {error}")))
    }
}

/// Bytes of code that are filled in when it is loaded; `[offset, len]` in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub struct Hole {
    /// From the function's first byte.
    pub offset: u32,
    /// How many bytes.
    pub len: u32,
}

impl From<(u32, u32)> for Hole {
    fn from((offset, len): (u32, u32)) -> Self {
        Self { offset, len }
    }
}

impl From<Hole> for (u32, u32) {
    fn from(hole: Hole) -> Self {
        (hole.offset, hole.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["a", "cve-2026-52923", "0", &"x".repeat(64)] {
            assert_eq!(good.parse::<PatchName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "A", "a_b", "../a", "a/b", "a.b", "ä", "a ", &"x".repeat(65)] {
            assert!(bad.parse::<PatchName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn build_ids_have_one_form() {
        let good = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(good.parse::<BuildId>().unwrap().to_string(), good);
        for bad in ["", "0", &good[1..], &good.to_uppercase(), &format!("{good}00"), &good.replace('0', "g")]
        {
            assert!(bad.parse::<BuildId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn code_has_one_form() {
        let read = serde_json::from_str::<Code>;
        assert_eq!(read("\"DwAB\"").unwrap().as_bytes(), [0x0f, 0x00, 0x01]);
        assert_eq!(serde_json::to_string(&Code(vec![0xe8])).unwrap(), "\"6A==\"");
        for bad in ["\"6A\"", "\"6B==\"", "\"6A==\\n\"", "\" 6A==\"", "\"6A==6A==\"", "[232]"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
