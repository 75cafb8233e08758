//! Translations that were looked up before.

use std::cell::RefCell;

use super::paging::Page;
use crate::addr::{Gpa, Gva};
use crate::limits::{CACHED_LARGE_PAGES, CACHED_PAGES};

const SMALL_BITS: u32 = 12;
const LARGE_BITS: u32 = 21;
/// Places at first. A look at a few tasks needs no more, and is over before many could be made.
const FIRST: usize = 1 << 6;
/// By how much there are more when these do not suffice.
const GROWTH: usize = 1 << 3;

/// One place for each group of pages, like a processor's TLB: the guest chooses the addresses, and no choice of it makes this
/// large or slow.
#[derive(Debug)]
pub(super) struct Translations {
    small: RefCell<Table>,
    large: RefCell<Table>,
}

/// A page, by its number, and where it is. Nothing is at the highest number, as the address space ends there.
#[derive(Debug, Clone, Copy)]
struct Slot {
    number: u64,
    start: Gpa,
}

const EMPTY: Slot = Slot { number: u64::MAX, start: Gpa(0) };

/// Those of pages of one size.
#[derive(Debug)]
struct Table {
    /// Pages of `1 << bits` bytes.
    bits: u32,
    slots: Vec<Slot>,
    /// How many translations have come since it has so many places.
    added: usize,
    /// How many places there may be.
    max: usize,
}

impl Table {
    fn new(bits: u32, max: usize) -> Self {
        Self { bits, slots: vec![EMPTY; FIRST.min(max)], added: 0, max }
    }

    /// The number of the page that `at` is in, and its place.
    fn place(&self, at: Gva) -> (u64, usize) {
        let number = at.0 >> self.bits;
        // The remainder is less than the count, which is an index.
        (number, usize::try_from(number % self.slots.len() as u64).unwrap_or(0))
    }

    fn get(&self, at: Gva) -> Option<Gpa> {
        let (number, place) = self.place(at);
        let found = self.slots[place];
        (found.number == number).then(|| Gpa(found.start.0 + (at.0 & ((1 << self.bits) - 1))))
    }

    fn add(&mut self, at: Gva, page: Page) {
        if self.added >= self.slots.len() && self.slots.len() < self.max {
            // What is known is looked up again, which takes less than to keep it.
            self.slots = vec![EMPTY; (self.slots.len() * GROWTH).min(self.max)];
            self.added = 0;
        }
        self.added += 1;
        let (number, place) = self.place(at);
        self.slots[place] = Slot { number, start: page.physical(Gva(number << self.bits)) };
    }
}

impl Default for Translations {
    fn default() -> Self {
        let table = |bits, max| RefCell::new(Table::new(bits, max));
        Self { small: table(SMALL_BITS, CACHED_PAGES), large: table(LARGE_BITS, CACHED_LARGE_PAGES) }
    }
}

impl Translations {
    /// Where `at` is, if that is known.
    pub(super) fn get(&self, at: Gva) -> Option<Gpa> {
        self.large.borrow().get(at).or_else(|| self.small.borrow().get(at))
    }

    /// Remembers that `at` is in `page`.
    pub(super) fn add(&self, at: Gva, page: Page) {
        let table = if page.bits >= LARGE_BITS { &self.large } else { &self.small };
        table.borrow_mut().add(at, page);
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

        let (first, second) = (Gva(0xffff_c900_0000_1008), Gva(0xffff_c900_0000_1008 + (FIRST << 12) as u64));
        known.add(first, Page { start: Gpa(0x7000), bits: 12 });
        assert_eq!(known.get(first), Some(Gpa(0x7008)));
        known.add(second, Page { start: Gpa(0x9000), bits: 12 });
        assert_eq!((known.get(first), known.get(second)), (None, Some(Gpa(0x9008))));
    }

    #[test]
    fn there_are_more_places_when_more_is_looked_up() {
        let known = Translations::default();
        let pages = |count: usize| (0..count as u64).map(|page| Gva(0xffff_c900_0000_0000 + (page << 12)));
        let found = |count| pages(count).filter(|at| known.get(*at).is_some()).count();
        for _ in 0..2 {
            pages(CACHED_PAGES).for_each(|at| known.add(at, Page { start: Gpa(at.0 >> 8), bits: 12 }));
        }
        assert_eq!(found(CACHED_PAGES), CACHED_PAGES);
        // And no more than that.
        pages(CACHED_PAGES * 2).for_each(|at| known.add(at, Page { start: Gpa(at.0 >> 8), bits: 12 }));
        assert_eq!(found(CACHED_PAGES * 2), CACHED_PAGES);
        assert_eq!(known.small.borrow().slots.len(), CACHED_PAGES);
    }
}
