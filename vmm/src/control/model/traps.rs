//! Watched pages. Addresses are text, as JSON's numbers end at 2^53.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use update_server::addr::Gpa;
use utoipa::ToSchema;

use crate::trap::MOST_PAGES;

/// Room for one address in a request: 21 bytes with `0x`, 16 digits, quotation marks and a comma; the rest is for who indents.
const ADDRESS_ROOM: usize = 32;
/// Room for everything else.
const REST_ROOM: usize = 4096;
/// Descriptions and next steps of the API, which cannot be made of the constant, name the number.
const _: () = assert!(MOST_PAGES == 30_000);

/// Which pages are to be watched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ArmRequest {
    /// Guest physical addresses of first bytes of pages, in hexadecimal, such as `0x1c05000`; 30,000 at most.
    pub pages: Vec<String>,
    /// And as many of those that the guest writes to most, or fewer where it writes to fewer in the half second that is taken to find
    /// them.
    pub busiest: usize,
    /// Whether reads are trapped, too.
    pub all: bool,
}

impl ArmRequest {
    /// The most bytes that it can have: as many pages as can be watched at once.
    pub const BYTES_MAX: usize = MOST_PAGES * ADDRESS_ROOM + REST_ROOM;

    /// The address that `text` is, with or without `0x` before it.
    pub fn address(text: &str) -> Option<Gpa> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        // The parser of numbers would take a sign.
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        u64::from_str_radix(digits, 16).ok().map(Gpa)
    }

    /// All addresses, in their order.
    pub fn addresses(&self) -> Result<Vec<Gpa>, BadPages> {
        if self.pages.is_empty() && self.busiest == 0 {
            return Err(BadPages::None);
        }
        addresses(&self.pages)
    }
}

/// Which pages are to be watched no longer. Without one of these, none is watched any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DisarmRequest {
    /// Guest physical addresses of first bytes of pages, in hexadecimal, such as `0x1c05000`; 30,000 at most. One that is not
    /// watched is passed over.
    pub pages: Vec<String>,
}

impl DisarmRequest {
    /// All addresses, in their order.
    pub fn addresses(&self) -> Result<Vec<Gpa>, BadPages> {
        if self.pages.is_empty() {
            return Err(BadPages::None);
        }
        addresses(&self.pages)
    }
}

fn addresses(pages: &[String]) -> Result<Vec<Gpa>, BadPages> {
    // Before any is read: nobody wants to hear of one in a million.
    if pages.len() > MOST_PAGES {
        return Err(BadPages::TooMany { named: pages.len() });
    }
    let read = |(index, text): (usize, &String)| {
        ArmRequest::address(text).ok_or_else(|| BadPages::NoAddress { index, text: text.clone() })
    };
    pages.iter().enumerate().map(read).collect()
}

/// Why a request names no pages that could be watched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPages {
    /// It asks for nothing.
    #[error("no page is named")]
    None,
    /// It names more than can be watched at once.
    #[error("{named} pages are named, and {MOST_PAGES} can be watched at once")]
    TooMany {
        /// How many.
        named: usize,
    },
    /// One is no address.
    #[error("{text:?} is no address (`pages[{index}]`)")]
    NoAddress {
        /// Which one, from 0 on.
        index: usize,
        /// What is there instead.
        text: String,
    },
}

/// Which pages are watched, and what was seen of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrapReport {
    /// How accesses are carried out: `second-view`, with all other vCPUs running on, or `hold-all`.
    pub way: String,
    /// The pages, by the guest physical address of their first byte.
    pub pages: Vec<String>,
    /// What has happened since the guest was started.
    pub counts: BTreeMap<String, u64>,
    /// Pages that are no longer watched although nobody asked for that; the last ones, also of before the guest restarted.
    pub lost: Vec<LostPage>,
}

/// A page that is no longer watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LostPage {
    /// Where it is.
    pub page: String,
    /// Why.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hexadecimal_and_nothing_else() {
        let good =
            [("0x1c05000", 0x1c0_5000), ("1c05000", 0x1c0_5000), ("0xFFFFFFFFFFFFF000", !0xfff), ("0", 0)];
        for (text, address) in good {
            assert_eq!(ArmRequest::address(text), Some(Gpa(address)), "{text:?}");
        }
        for text in ["", "0x", "0x0x1000", "+1000", "-1000", "page", " 1000", "0X1000", "0x10000000000000000"]
        {
            assert_eq!(ArmRequest::address(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_largest_request_has_room_even_when_indented() {
        let request =
            ArmRequest { pages: vec![format!("{:#x}", !0xfff_u64); MOST_PAGES], ..ArmRequest::default() };
        assert_eq!(request.addresses().unwrap().len(), MOST_PAGES);
        assert!(serde_json::to_string_pretty(&request).unwrap().len() <= ArmRequest::BYTES_MAX);
        let pages = vec!["0x1000".to_owned(); MOST_PAGES + 1];
        let refused = ArmRequest { pages, ..request }.addresses();
        assert_eq!(refused, Err(BadPages::TooMany { named: MOST_PAGES + 1 }));
    }
}
