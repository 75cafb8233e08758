//! The watched pages, and of each what has been told of it so far.
//!
//! A page's copy is what whoever hears of accesses knows of it. Each access is told as a step from the copy to what is in memory
//! now, so that what is told has no gap, whoever wrote.

use std::collections::BTreeMap;
use std::sync::Arc;

use update_server::addr::Gpa;
use update_server::guest::Memory;
use update_server::watch::{Access, Accessed, By, Kind, Watcher, page_of};

use super::ram::Ram;
use super::tally::Tally;
use crate::sys::PAGE;

/// Bytes that are the same between two changed ones of one change: what is further apart is told as two.
const GAP: usize = 8;

/// One of them.
#[derive(Debug)]
pub(super) struct Armed {
    pub(super) access: Access,
    told: Box<[u8; PAGE]>,
}

impl Armed {
    /// One of which nothing was told yet but what is in memory.
    pub(super) fn new(ram: &Ram, page: Gpa, access: Access) -> Self {
        let mut told = Box::new([0; PAGE]);
        // That it is RAM was seen before.
        let _ = ram.read(page, &mut told[..]);
        Self { access, told }
    }
}

/// All of them, by their first byte.
pub(super) struct ArmedPages {
    pub(super) ram: Ram,
    pub(super) pages: BTreeMap<u64, Armed>,
    pub(super) tally: Tally,
    watcher: Arc<dyn Watcher>,
    /// What is in memory, while it is told; a field, so that it need not be cleared each time.
    now: Box<[u8; PAGE]>,
}

impl ArmedPages {
    pub(super) fn new(ram: Ram, watcher: Arc<dyn Watcher>) -> Self {
        Self { ram, pages: BTreeMap::new(), tally: Tally::default(), watcher, now: Box::new([0; PAGE]) }
    }

    pub(super) fn set_watcher(&mut self, watcher: Arc<dyn Watcher>) {
        self.watcher = watcher;
    }

    pub(super) fn watcher(&self) -> &Arc<dyn Watcher> {
        &self.watcher
    }

    /// Tells that `len` bytes from `at` on, all in one page, were read or written.
    pub(super) fn tell(&mut self, at: Gpa, len: usize, kind: Kind, by: By) {
        let Some(page) = self.pages.get_mut(&page_of(at).0) else { return };
        if kind == Kind::Read && page.access != Access::All {
            return;
        }
        let from = usize::try_from(at.0 % PAGE as u64).unwrap_or(0);
        let Some(told) = page.told.get_mut(from..from + len) else { return };
        let now = &mut self.now[..len];
        if self.ram.read(at, now).is_err() {
            return;
        }
        if kind == Kind::Read && *told != *now {
            // A device has written meanwhile; its marks bring that.
            now.copy_from_slice(told);
        }
        self.tally.accesses += 1;
        self.watcher.accessed(&Accessed { at, kind, by, before: told, after: now });
        told.copy_from_slice(now);
    }

    /// Whether anything in the page is different from what was told.
    pub(super) fn differs(&mut self, page: Gpa) -> bool {
        let Some(armed) = self.pages.get(&page.0) else { return false };
        self.ram.read(page, &mut self.now[..]).is_ok() && armed.told != self.now
    }

    /// Tells of whatever is different in the page from what was told; says whether anything is.
    pub(super) fn compare(&mut self, page: Gpa, by: By) -> bool {
        self.compare_part(page, PAGE, by)
    }

    /// The same for `len` bytes from `at` on, all in one page.
    pub(super) fn compare_part(&mut self, at: Gpa, len: usize, by: By) -> bool {
        let Some(armed) = self.pages.get(&page_of(at).0) else { return false };
        let from = usize::try_from(at.0 % PAGE as u64).unwrap_or(0);
        let Some(told) = armed.told.get(from..from + len) else { return false };
        let now = &mut self.now[..len];
        if self.ram.read(at, now).is_err() || told == now {
            return false;
        }
        let changes = changes(told, now);
        for (begin, end) in changes {
            self.tell(Gpa(at.0 + begin as u64), end - begin, Kind::Write, by);
        }
        true
    }

    /// The same for all pages.
    pub(super) fn compare_all(&mut self, by: By) -> bool {
        let pages: Vec<u64> = self.pages.keys().copied().collect();
        let mut any = false;
        for page in pages {
            any |= self.compare(Gpa(page), by);
        }
        any
    }

    /// Tells of what devices have written.
    pub(super) fn tell_marks(&mut self) {
        let mut news = false;
        for region in self.ram.0.regions() {
            news |= region.marks().take_news();
        }
        if !news {
            return;
        }
        let marked: Vec<u64> = self.pages.keys().copied().filter(|&page| self.take_mark(page)).collect();
        for page in marked {
            if self.compare(Gpa(page), By::Host) {
                self.tally.host += 1;
            }
        }
    }

    fn take_mark(&self, page: u64) -> bool {
        self.ram.region(Gpa(page), PAGE).is_some_and(|(region, offset)| region.marks().take(offset / PAGE))
    }
}

/// Where `after` differs from `before`: from which byte to which, in their order.
fn changes(before: &[u8], after: &[u8]) -> Vec<(usize, usize)> {
    let mut changes: Vec<(usize, usize)> = Vec::new();
    for (index, _) in before.iter().zip(after).enumerate().filter(|(_, (before, after))| before != after) {
        match changes.last_mut() {
            Some((_, end)) if index - *end < GAP => *end = index + 1,
            _ => changes.push((index, index + 1)),
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use update_server::addr::Gva;
    use update_server::watch::Lost;

    use super::*;
    use crate::memory::GuestRam;

    type Told = (u64, Kind, By, Vec<u8>, Vec<u8>);

    #[derive(Default)]
    struct Heard(Mutex<Vec<Told>>);

    impl Watcher for Heard {
        fn accessed(&self, access: &Accessed<'_>) {
            let Accessed { at, kind, by, before, after } = *access;
            self.0.lock().unwrap().push((at.0, kind, by, before.to_vec(), after.to_vec()));
        }

        fn lost(&self, _: Gpa, _: &Lost) {}
    }

    #[test]
    fn what_is_told_leads_from_image_to_image() {
        let ram = Ram(GuestRam::new(2 << 20).unwrap());
        let heard = Arc::new(Heard::default());
        let mut pages = ArmedPages::new(ram.clone(), Arc::clone(&heard) as _);
        let page = Armed::new(&ram, Gpa(0x3000), Access::Writes);
        pages.pages.insert(0x3000, page);
        let by = By::Vcpu { id: 1, rip: Gva(7) };
        // The same byte is told as well; a read of such a page is not.
        pages.tell(Gpa(0x3010), 1, Kind::Write, by);
        pages.tell(Gpa(0x3010), 1, Kind::Read, by);
        ram.store(Gpa(0x3010), 5, 1);
        ram.store(Gpa(0x3012), 6, 1);
        ram.store(Gpa(0x3ff8), 9, 8);
        assert!(pages.compare_part(Gpa(0x3010), 2, by));
        assert!(pages.compare_all(By::Unseen) && !pages.compare_all(By::Unseen));
        let told = heard.0.lock().unwrap();
        let expected = [
            (0x3010, by, vec![0], vec![0]),
            (0x3010, by, vec![0], vec![5]),
            (0x3012, By::Unseen, vec![0], vec![6]),
            (0x3ff8, By::Unseen, vec![0], vec![9]),
        ];
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (told, (at, by, before, after)) in told.iter().zip(expected) {
            assert_eq!(*told, (at, Kind::Write, by, before, after));
        }
    }

    #[test]
    fn changes_close_to_each_other_are_one() {
        let mut after = [0; 64];
        for index in [0, 7, 15, 40, 63] {
            after[index] = 1;
        }
        assert_eq!(changes(&[0; 64], &after), [(0, 16), (40, 41), (63, 64)]);
    }
}
