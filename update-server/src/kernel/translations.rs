//! Translations that were looked up before.

use std::cell::Cell;

use super::paging::Page;
use crate::addr::{Gpa, Gva};
use crate::limits::{CACHED_LARGE_PAGES, CACHED_PAGES};

const SMALL_BITS: u32 = 12;
const LARGE_BITS: u32 = 21;

/// One place for each group of pages, like a processor's TLB: the guest chooses the addresses, and no choice of it makes this
/// large or slow.
#[derive(Debug)]
pub(super) struct Translations {
    small: Box<[Cell<Slot>]>,
    large: Box<[Cell<Slot>]>,
}

/// A page, by its number, and where it is. Nothing is at the highest number, as the address space ends there.
#[derive(Debug, Clone, Copy)]
struct Slot {
    number: u64,
    start: Gpa,
}

const EMPTY: Slot = Slot { number: u64::MAX, start: Gpa(0) };

impl Default for Translations {
    fn default() -> Self {
        let slots = |count| vec![Cell::new(EMPTY); count].into_boxed_slice();
        Self { small: slots(CACHED_PAGES), large: slots(CACHED_LARGE_PAGES) }
    }
}

/// The number of the page of `1 << bits` bytes that `at` is in, and its place among `slots`.
fn slot(slots: &[Cell<Slot>], at: Gva, bits: u32) -> (u64, &Cell<Slot>) {
    let number = at.0 >> bits;
    // The remainder is less than the count, which is an index.
    (number, &slots[usize::try_from(number % slots.len() as u64).unwrap_or(0)])
}

impl Translations {
    /// Where `at` is, if that is known.
    pub(super) fn get(&self, at: Gva) -> Option<Gpa> {
        [(&self.large, LARGE_BITS), (&self.small, SMALL_BITS)].into_iter().find_map(|(slots, bits)| {
            let (number, slot) = slot(slots, at, bits);
            let found = slot.get();
            (found.number == number).then(|| Gpa(found.start.0 + (at.0 & ((1 << bits) - 1))))
        })
    }

    /// Remembers that `at` is in `page`.
    pub(super) fn add(&self, at: Gva, page: Page) {
        let (slots, bits) =
            if page.bits >= LARGE_BITS { (&self.large, LARGE_BITS) } else { (&self.small, SMALL_BITS) };
        let (number, slot) = slot(slots, at, bits);
        let start = page.physical(Gva(number << bits));
        slot.set(Slot { number, start });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_each_size_are_remembered_until_another_takes_their_place() {
        let known = Translations::default();
        let at = Gva(0xffff_8880_1234_5678);
        assert_eq!(known.get(at), None);
        known.add(at, Page { start: Gpa(0x1000_0000), bits: 21 });
        assert_eq!(known.get(at), Some(Gpa(0x1014_5678)));
        assert_eq!(known.get(Gva(at.0 ^ 0x1f_0000)), Some(Gpa(0x100b_5678)));
        assert_eq!(known.get(Gva(at.0 + (1 << 21))), None);

        // A gigabyte is remembered in pieces.
        let gigabyte = Page { start: Gpa(0x4000_0000), bits: 30 };
        known.add(Gva(0x4123_4567), gigabyte);
        assert_eq!(known.get(Gva(0x4123_4568)), Some(Gpa(0x4123_4568)));
        assert_eq!(known.get(Gva(0x4143_4568)), None);

        let (first, second) =
            (Gva(0xffff_c900_0000_1008), Gva(0xffff_c900_0000_1008 + (CACHED_PAGES << 12) as u64));
        known.add(first, Page { start: Gpa(0x7000), bits: 12 });
        assert_eq!(known.get(first), Some(Gpa(0x7008)));
        known.add(second, Page { start: Gpa(0x9000), bits: 12 });
        assert_eq!((known.get(first), known.get(second)), (None, Some(Gpa(0x9008))));
    }
}
