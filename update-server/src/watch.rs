//! The seam for trapped accesses: pages of the guest that are watched, and what is told of each access to one.
//!
//! Two versions of data live side by side on this: whoever keeps them in step hears of each write, in the order in which the
//! writes took effect, before the next one does. The guest runs meanwhile; only who touches a watched page waits.

use std::fmt;
use std::sync::Arc;

use crate::addr::{Gpa, Gva};

/// Bytes of a page: what is watched.
pub const PAGE_BYTES: u64 = 4096;

/// What is told of a watched page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Every write.
    Writes,
    /// Every write and every read, instructions that are fetched from it among them.
    All,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes were read, or fetched.
    Read,
    /// Bytes were written, the same ones perhaps.
    Write,
}

/// Who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A vCPU.
    Vcpu {
        /// Its number.
        id: u32,
        /// The instruction; of an interrupt or exception whose frame was pushed, the one that it came at.
        rip: Gva,
    },
    /// A device, or the VMM itself. Such writes are not trapped: they are found, and several may be told as one.
    Host,
    /// Nobody who was seen. Found when the page was compared with what had been told of it.
    Unseen,
}

/// One access to a watched page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accessed<'a> {
    /// The first byte. All bytes are in one page: an access over the end of one is told page by page.
    pub at: Gpa,
    /// What was done to them.
    pub kind: Kind,
    /// Who did it.
    pub by: By,
    /// The bytes before. What is told of a page leads from image to image without a gap.
    pub before: &'a [u8],
    /// The bytes after it, as many; of a read the same.
    pub after: &'a [u8],
}

/// Why a page that was watched no longer is, although nobody asked for that. Everything up to there was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// The processor has begun to use it as a page table.
    Table,
    /// KVM writes to it by itself.
    Hypervisor {
        /// What for.
        what: &'static str,
    },
    /// The guest's machine was reset or switched off.
    Ended,
    /// A vCPU that carried out an instruction did not come back in time, and nobody knows what it wrote meanwhile.
    Escaped {
        /// The vCPU.
        vcpu: u32,
        /// What was seen of it.
        why: String,
    },
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table => write!(f, "the guest has made it one of its page tables"),
            Self::Hypervisor { what } => write!(f, "the guest has given it to KVM for its {what}"),
            Self::Ended => write!(f, "the guest was reset or switched off"),
            Self::Escaped { vcpu, why } => {
                write!(f, "vCPU {vcpu} did not come back from one instruction: {why}")
            }
        }
    }
}

/// Why a page cannot be watched. Nothing has changed then, for none of the pages that were asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotWatched {
    /// It is no page of RAM.
    #[error("there is no RAM at {0}")]
    NoPage(Gpa),
    /// It is no page's first byte.
    #[error("{0} is in the middle of the page at {page}", page = page_of(*.0))]
    NotFirst(Gpa),
    /// The processor uses it as a page table: each use of it would be trapped, and the guest would crawl.
    #[error("the page at {0} is a page table in use; data in it cannot be watched")]
    Table(Gpa),
    /// KVM writes to it by itself, past every protection.
    #[error("KVM keeps the guest's {what} in the page at {at}, and its writes cannot be trapped")]
    Hypervisor {
        /// The page.
        at: Gpa,
        /// What for.
        what: &'static str,
    },
    /// More pages than can be watched at once.
    #[error("{asked} pages would be watched, and {most} can be")]
    TooMany {
        /// How many there would be.
        asked: usize,
        /// How many there may be.
        most: usize,
    },
    /// This host cannot trap, or not this guest.
    #[error("accesses of this guest cannot be trapped: {0}")]
    Unable(String),
    /// The host failed.
    #[error("{0}")]
    Host(String),
}

/// Who hears of accesses.
pub trait Watcher: Send + Sync {
    /// Hears of one, after it took effect and before the next access to any watched page does. Must not wait for the guest, and
    /// not ask for pages to be watched.
    fn accessed(&self, access: &Accessed<'_>);

    /// A page is no longer watched.
    fn lost(&self, page: Gpa, why: &Lost);
}

/// A guest whose pages can be watched.
pub trait Watched {
    /// Who hears of accesses from now on, in place of who did before.
    fn set_watcher(&self, watcher: Arc<dyn Watcher>);

    /// Watches `pages`, each named by its first byte, or no longer, with `None`. The guest runs on. Watches all of them or
    /// none; with `None`, those that are not watched are passed over, and an error of the host's leaves some watched.
    fn set_access(&self, pages: &[Gpa], access: Option<Access>) -> Result<(), NotWatched>;
}

/// The page with `at`, by its first byte.
pub fn page_of(at: Gpa) -> Gpa {
    Gpa(at.0 & !(PAGE_BYTES - 1))
}

/// Calls `each` with each page that some of `len` bytes from virtual address `at` on are in: the first byte that is, and how many.
pub fn by_page(at: Gva, len: u64, mut each: impl FnMut(Gva, u64)) {
    let (mut at, mut left) = (at.0, len);
    while left > 0 {
        let now = left.min(PAGE_BYTES - at % PAGE_BYTES);
        each(Gva(at), now);
        at = at.wrapping_add(now);
        left -= now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_crosses_pages_is_cut_at_their_ends() {
        let mut parts = Vec::new();
        by_page(Gva(0x1ff8), 0x1010, |at, len| parts.push((at.0, len)));
        assert_eq!(parts, [(0x1ff8, 8), (0x2000, 0x1000), (0x3000, 8)]);
        parts.clear();
        by_page(Gva(u64::MAX - 3), 8, |at, len| parts.push((at.0, len)));
        assert_eq!(parts, [(u64::MAX - 3, 4), (0, 4)]);
    }
}
