//! The kernel's virtual memory, read through its own page tables.

use std::ops::Range;

use super::paging::{PageTables, Unmapped};
use super::text;
use super::translations::Translations;
use crate::addr::{Gpa, Gva};
use crate::bytes::u64_at;
use crate::guest::Memory;
use crate::limits::TEXT_BYTES;

/// Why bytes could not be read.
pub type ReadError = Unmapped;

/// The kernel's half of the address space.
///
/// Translations are remembered, because stacks and tasks lie close together and a guest in a busy moment changes few of
/// the kernel's own; one that a guest changes behind our back yields other bytes of its RAM and nothing worse. An address
/// space is made anew for each look at the guest.
#[derive(Debug)]
pub struct AddressSpace<'m, M> {
    memory: &'m M,
    tables: PageTables,
    known: Translations,
}

impl<'m, M: Memory> AddressSpace<'m, M> {
    /// The space that `tables` describe.
    pub fn new(memory: &'m M, tables: PageTables) -> Self {
        Self { memory, tables, known: Translations::default() }
    }

    /// What it is a view of.
    pub(crate) fn memory(&self) -> &'m M {
        self.memory
    }

    /// The physical address of `at`.
    pub fn physical(&self, at: Gva) -> Result<Gpa, ReadError> {
        if let Some(physical) = self.known.get(at) {
            return Ok(physical);
        }
        let page = self.tables.page(self.memory, at)?;
        self.known.add(at, page);
        Ok(page.physical(at))
    }

    /// Fills `into` with the bytes from `at` on.
    pub fn read(&self, at: Gva, into: &mut [u8]) -> Result<(), ReadError> {
        for (place, part) in pages(at, into.len()) {
            let physical = self.physical(place)?;
            let outside = Unmapped::NotRam { at: place, level: 0, physical };
            self.memory.read(physical, &mut into[part]).map_err(|_| outside)?;
        }
        Ok(())
    }

    /// The pieces of RAM that the `len` bytes from `at` on are in: the physical address and length of each.
    pub fn pieces(&self, at: Gva, len: usize) -> Result<Vec<(Gpa, usize)>, ReadError> {
        pages(at, len).map(|(place, part)| Ok((self.physical(place)?, part.len()))).collect()
    }

    /// An array of bytes.
    pub fn array<const N: usize>(&self, at: Gva) -> Result<[u8; N], ReadError> {
        let mut bytes = [0; N];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    /// 64 bits.
    pub fn u64(&self, at: Gva) -> Result<u64, ReadError> {
        self.array(at).map(u64::from_le_bytes)
    }

    /// Three members of 64 bits, by their offsets from `at`; in one reading where they follow each other, which is what takes
    /// the time.
    pub fn words(&self, at: Gva, offsets: [u64; 3]) -> Result<[u64; 3], ReadError> {
        let [first, second, third] = offsets;
        if second != first + 8 || third != second + 8 {
            let word = |offset| self.u64(at.wrapping_add(offset));
            return Ok([word(first)?, word(second)?, word(third)?]);
        }
        let bytes: [u8; 24] = self.array(at.wrapping_add(first))?;
        Ok([0, 8, 16].map(|from| u64_at(&bytes, from).unwrap_or_default()))
    }

    /// 32 bits.
    pub fn u32(&self, at: Gva) -> Result<u32, ReadError> {
        self.array(at).map(u32::from_le_bytes)
    }

    /// A pointer.
    pub fn pointer(&self, at: Gva) -> Result<Gva, ReadError> {
        self.u64(at).map(Gva)
    }

    /// Text that ends with a zero byte, or at `max` bytes. It can be shown as it is: what a terminal would act on is escaped, so that
    /// it may be longer than what is read.
    pub fn text(&self, at: Gva, max: usize) -> Result<String, ReadError> {
        let mut bytes = vec![0; max.min(TEXT_BYTES)];
        // It may end close to the end of what is mapped.
        for (place, part) in pages(at, bytes.len()) {
            let begin = part.start;
            let here = &mut bytes[part];
            self.read(place, here)?;
            if let Some(end) = here.iter().position(|&byte| byte == 0) {
                bytes.truncate(begin + end);
                break;
            }
        }
        Ok(text::shown(&bytes))
    }
}

/// The `len` bytes from `at` on, cut where pages of 4 KiB begin: where each part is, and which of the bytes it has.
fn pages(at: Gva, len: usize) -> impl Iterator<Item = (Gva, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let place = at.wrapping_add(done as u64);
        let here = usize::try_from(0x1000 - (place.0 & 0xfff)).unwrap_or(0x1000).min(len - done);
        let part = done..done + here;
        done += here;
        (here > 0).then_some((place, part))
    })
}
