//! A network interface and its address.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use utoipa::ToSchema;

use crate::config::ValueError;
use crate::config::keys::{Keys, quote};

/// A network interface on a tap that exists already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NetSpec {
    /// The tap's name on the host.
    pub tap: String,
    /// The guest's address; made up from the tap's name if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub mac: Option<MacAddress>,
}

impl NetSpec {
    /// Checks the tap's name by the rules of the host kernel (`dev_valid_name`, net/core/dev.c).
    pub(in crate::config) fn check(&self) -> Result<(), ValueError> {
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        let name = self.tap.as_str();
        if name.is_empty() || name.len() > 15 || name.contains(bad) || name == "." || name == ".." {
            return Err(ValueError::TapName { found: name.to_owned() });
        }
        Ok(())
    }
}

impl FromStr for NetSpec {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut keys = Keys::parse(text, "tap", &["tap", "mac"])?;
        let missing = ValueError::MissingKey { key: "tap", example: "tap=tap0,mac=52:54:00:12:34:56" };
        let mac = keys.take("mac").map(|mac| mac.parse()).transpose()?;
        let spec = Self { tap: keys.take("tap").ok_or(missing)?, mac };
        spec.check()?;
        Ok(spec)
    }
}

impl fmt::Display for NetSpec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "tap={}", quote(&self.tap))?;
        self.mac.map_or(Ok(()), |mac| write!(out, ",mac={mac}"))
    }
}

/// An Ethernet address that one interface may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// Takes six bytes; refuses group addresses and zero.
    pub fn new(bytes: [u8; 6]) -> Result<Self, ValueError> {
        let mac = Self(bytes);
        // IEEE 802-2014, 8.2: the lowest bit of the first byte marks a group address.
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(ValueError::MacGroup { found: mac.to_string() });
        }
        Ok(mac)
    }

    /// Makes an address of six random bytes: unicast, and locally administered (IEEE 802-2014, 8.2).
    pub fn from_random(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] | 2) & !1;
        Self(bytes)
    }

    /// The six bytes.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError::Mac { found: text.to_owned() };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(wrong)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Self::new(bytes) }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(out, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}
