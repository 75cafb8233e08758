//! Which pages are watched, and which of them the VMM and its devices have written to since.
//!
//! What the guest writes to a watched page is trapped; what devices write is not, for they write past the page's protection. So
//! each of their writes is marked here, by vm-memory, after it is done; whoever watches looks for marks and compares.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::sys::{HUGE_PAGE, PAGE};

/// Pages of one word.
const BITS: usize = u64::BITS as usize;

/// One bit for each page.
#[derive(Debug)]
struct Pages(Box<[AtomicU64]>);

impl Pages {
    fn new(pages: usize) -> Self {
        Self((0..pages.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect())
    }

    fn get(&self, page: usize) -> bool {
        self.0.get(page / BITS).is_some_and(|word| word.load(Ordering::SeqCst) >> (page % BITS) & 1 != 0)
    }

    /// Returns what it was before.
    fn set(&self, page: usize, on: bool) -> bool {
        let Some(word) = self.0.get(page / BITS) else { return false };
        let bit = 1 << (page % BITS);
        let before =
            if on { word.fetch_or(bit, Ordering::SeqCst) } else { word.fetch_and(!bit, Ordering::SeqCst) };
        before & bit != 0
    }
}

/// The watched pages of one range of RAM, by their number in it.
#[derive(Debug)]
pub struct Marks {
    watched: Pages,
    written: Pages,
    /// Ranges of the size of a huge page of which some page was watched since they were last one.
    split: Pages,
    /// Whether any page is watched, so that devices of other guests pay no more than a look at this.
    any: AtomicBool,
    /// Whether anything was marked that nobody has taken yet.
    news: AtomicBool,
}

impl Marks {
    /// None of `len` bytes is watched.
    pub(super) fn new(len: usize) -> Self {
        let pages = len / PAGE;
        Self {
            watched: Pages::new(pages),
            written: Pages::new(pages),
            split: Pages::new(pages.div_ceil(HUGE_PAGE / PAGE)),
            any: AtomicBool::new(false),
            news: AtomicBool::new(false),
        }
    }

    /// Says whether any page is watched; before the first is, and after the last was.
    pub fn watch_any(&self, any: bool) {
        self.any.store(any, Ordering::SeqCst);
    }

    /// Watches a page or no longer. Writes that are not marked are over when this returns: their bytes are there to be read.
    pub fn watch(&self, page: usize, on: bool) {
        if on {
            self.split.set(page / (HUGE_PAGE / PAGE), true);
        }
        self.watched.set(page, on);
        self.written.set(page, false);
        fence(Ordering::SeqCst);
    }

    /// Whether a page is watched.
    pub fn is_watched(&self, page: usize) -> bool {
        self.watched.get(page)
    }

    /// Whether any of `count` pages from `first` on is watched.
    pub fn watches_any_of(&self, first: usize, count: usize) -> bool {
        self.any.load(Ordering::SeqCst) && (first..first + count).any(|page| self.is_watched(page))
    }

    /// Whether the huge page with this number, counted from the range's start, was split by watching; notes whether it still is.
    pub fn set_split(&self, huge_page: usize, split: bool) -> bool {
        self.split.set(huge_page, split)
    }

    /// Whether it was.
    pub fn is_split(&self, huge_page: usize) -> bool {
        self.split.get(huge_page)
    }

    /// Whether anything was marked since this was last asked.
    pub fn take_news(&self) -> bool {
        self.news.load(Ordering::SeqCst) && self.news.swap(false, Ordering::SeqCst)
    }

    /// Whether a page was marked, and is no longer.
    pub fn take(&self, page: usize) -> bool {
        self.written.get(page) && self.written.set(page, false)
    }

    fn mark(&self, offset: usize, len: usize) {
        // Orders the write before the look: either it is seen here that the page is watched, or whoever begins to watch it sees
        // the bytes.
        fence(Ordering::SeqCst);
        if len == 0 || !self.any.load(Ordering::SeqCst) {
            return;
        }
        for page in offset / PAGE..=(offset + len - 1) / PAGE {
            if self.watched.get(page) {
                self.written.set(page, true);
                self.news.store(true, Ordering::SeqCst);
            }
        }
    }
}

impl<'a> WithBitmapSlice<'a> for Marks {
    type S = MarksFrom<'a>;
}

impl Bitmap for Marks {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.mark(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.written.get(offset / PAGE)
    }

    fn slice_at(&self, offset: usize) -> MarksFrom<'_> {
        MarksFrom { marks: self, offset }
    }
}

/// The marks from some byte on, as a slice of guest memory carries them.
#[derive(Debug, Clone, Copy)]
pub struct MarksFrom<'a> {
    marks: &'a Marks,
    offset: usize,
}

impl<'a> WithBitmapSlice<'_> for MarksFrom<'a> {
    type S = MarksFrom<'a>;
}

impl BitmapSlice for MarksFrom<'_> {}

impl<'a> Bitmap for MarksFrom<'a> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.marks.mark(self.offset.saturating_add(offset), len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.marks.dirty_at(self.offset.saturating_add(offset))
    }

    fn slice_at(&self, offset: usize) -> MarksFrom<'a> {
        MarksFrom { marks: self.marks, offset: self.offset.saturating_add(offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_watched_pages_are_marked_and_once() {
        let marks = Marks::new(200 * PAGE);
        marks.mark(0, 200 * PAGE);
        assert!(!marks.take_news());
        marks.watch_any(true);
        for page in [3, 64, 130] {
            marks.watch(page, true);
        }
        marks.mark(0, 3 * PAGE);
        assert!(!marks.take_news());
        marks.slice_at(2 * PAGE).slice_at(PAGE - 1).mark_dirty(0, 2);
        marks.mark(64 * PAGE - 1, 200 * PAGE);
        assert!(marks.take_news() && !marks.take_news());
        assert_eq!([2, 3, 4, 64, 130].map(|page| marks.take(page)), [false, true, false, true, true]);
        assert_eq!([3, 64].map(|page| marks.take(page)), [false, false]);
        marks.watch(3, false);
        marks.mark(3 * PAGE, 1);
        assert!(!marks.take_news() && !marks.is_watched(3) && marks.is_watched(64));
    }
}
