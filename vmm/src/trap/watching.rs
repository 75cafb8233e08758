//! Which pages are watched: beginning to, and ending it, while the guest runs.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;
use std::{io, thread};

use update_server::addr::Gpa;
use update_server::watch::{Access, By, NotWatched, page_of};

use super::armed::Armed;
use super::ground::{first, protection};
use super::order::Order;
use super::ram::Ram;
use super::traps::Traps;
use crate::memory::collapse_used;
use crate::sys::{HUGE_PAGE, PAGE, Protection};

/// Most pages that are watched at once. Scattered, each takes two of the ranges of which a process may have 65,530
/// (`vm.max_map_count`), and everything else here has to have some as well.
pub const MOST_PAGES: usize = 30_000;

/// How long a device may take from its write to the mark of it: it does nothing in between, but may have lost its processor.
const MARK_LATENCY: Duration = Duration::from_millis(20);

impl Traps {
    /// Watches pages, all of them or none; or no longer, each that is watched. `tables` has every page table that a vCPU uses.
    pub(crate) fn set_access(
        &self,
        pages: &[Gpa],
        access: Option<Access>,
        tables: &HashSet<u64>,
    ) -> Result<(), NotWatched> {
        let pages: BTreeSet<u64> = pages.iter().map(|page| page.0).collect();
        let mut order = self.order.lock();
        // What was in vain may not be any more.
        order.in_vain.fill((0, 0));
        if let Some(access) = access {
            let begun = order.check(&pages, tables).and_then(|()| self.begin(&mut order, &pages, access));
            if begun.is_err() {
                self.settle(&mut order);
            }
            return begun;
        }
        // None of those that are watched; said all the same, as the page that it is in is watched still.
        if let Some(&middle) = pages.iter().find(|&&page| page_of(Gpa(page)) != Gpa(page)) {
            return Err(NotWatched::NotFirst(Gpa(middle)));
        }
        let (freed, done) = self.stop(&mut order, &pages);
        drop(order);
        // Only those in which a page was watched: that splits them.
        let split: BTreeSet<u64> =
            freed.iter().map(|page| page / HUGE_PAGE as u64 * HUGE_PAGE as u64).collect();
        for range in split {
            self.make_huge(range);
        }
        done
    }

    fn begin(&self, order: &mut Order, pages: &BTreeSet<u64>, access: Access) -> Result<(), NotWatched> {
        let new: BTreeSet<u64> =
            pages.iter().copied().filter(|page| !order.pages.pages.contains_key(page)).collect();
        // What devices write from here on is marked.
        order.pages.ram.0.regions().for_each(|region| region.marks().watch_any(true));
        for &page in &new {
            order.mark(page, true);
        }
        // A vCPU that is trapped from here on waits until this is done.
        if let Err(error) = runs(pages).try_for_each(|run| order.protect(run, Some(access))) {
            for page in pages {
                let before = order.pages.pages.get(page).map(|armed| armed.access);
                if let Err(error) = order.protect((*page, PAGE), before) {
                    tracing::error!("the page at {} cannot be opened again: {error}", Gpa(*page));
                }
            }
            for &page in &new {
                order.mark(page, false);
            }
            order.settle_marks();
            return Err(NotWatched::Host(format!(
                "cannot protect {} pages: {error}{}",
                pages.len(),
                advice(&error)
            )));
        }
        for &page in pages {
            let known = order.pages.pages.get_mut(&page).map(|armed| armed.access = access);
            if known.is_none() {
                let armed = Armed::new(&order.pages.ram, Gpa(page), access);
                order.pages.pages.insert(page, armed);
            }
        }
        self.settle(order);
        Ok(())
    }

    /// Returns which of them are watched no longer.
    fn stop(&self, order: &mut Order, pages: &BTreeSet<u64>) -> (BTreeSet<u64>, Result<(), NotWatched>) {
        let pages: BTreeSet<u64> =
            pages.iter().copied().filter(|page| order.pages.pages.contains_key(page)).collect();
        order.catch_up(&pages);
        let mut failed = None;
        let mut freed = BTreeSet::new();
        for run in runs(&pages) {
            if let Err(error) = order.protect(run, None) {
                // Still watched: a page that is protected and not watched would hold its guest up for good.
                failed = Some(error);
                continue;
            }
            for page in (run.0..run.0 + run.1 as u64).step_by(PAGE) {
                order.mark(page, false);
                order.pages.pages.remove(&page);
                freed.insert(page);
            }
        }
        self.settle(order);
        let done = failed.map_or(Ok(()), |error| {
            let (left, all, advice) = (pages.len() - freed.len(), pages.len(), advice(&error));
            Err(NotWatched::Host(format!("{left} of {all} pages are watched still: {error}{advice}")))
        });
        (freed, done)
    }

    /// Gives the guest a huge page again where one was split, unless something in it is watched still.
    fn make_huge(&self, at: u64) {
        let ram = Ram(self.vm.ram().clone());
        let Some((region, offset)) = ram.region(Gpa(at), HUGE_PAGE) else { return };
        if region.marks().watches_any_of(offset / PAGE, HUGE_PAGE / PAGE) {
            return;
        }
        // Where there is none to be had now, the thread that makes huge pages tries again.
        if let Err(error) = collapse_used(region, offset / HUGE_PAGE) {
            tracing::debug!("no huge page at {}: {error}", Gpa(at));
        }
    }
}

impl Order {
    fn check(&self, pages: &BTreeSet<u64>, tables: &HashSet<u64>) -> Result<(), NotWatched> {
        if self.ended {
            return Err(NotWatched::Unable("the guest has ended".to_owned()));
        }
        self.ground.as_ref().map_err(|why| NotWatched::Unable(why.clone()))?;
        for &page in pages {
            let at = Gpa(page);
            if self.pages.ram.region(page_of(at), PAGE).is_none() {
                return Err(NotWatched::NoPage(at));
            }
            if page_of(at) != at {
                return Err(NotWatched::NotFirst(at));
            }
            if let Some(what) = self.hypervisor.purpose(at) {
                return Err(NotWatched::Hypervisor { at, what });
            }
            if tables.contains(&page) {
                return Err(NotWatched::Table(at));
            }
        }
        let new = pages.iter().filter(|page| !self.pages.pages.contains_key(page)).count();
        let asked = self.pages.pages.len() + new;
        if asked > MOST_PAGES {
            return Err(NotWatched::TooMany { asked, most: MOST_PAGES });
        }
        Ok(())
    }

    /// Tells of whatever was written to pages up to here, before they are given up.
    pub(super) fn catch_up(&mut self, pages: &BTreeSet<u64>) {
        self.pages.tell_marks();
        if pages.iter().any(|&page| self.pages.differs(Gpa(page))) {
            // A device that is in the middle of a write marks it when that is done.
            thread::sleep(MARK_LATENCY);
            self.pages.tell_marks();
        }
        for &page in pages {
            if self.pages.compare(Gpa(page), By::Unseen) {
                self.pages.tally.unseen += 1;
            }
        }
    }

    fn settle_marks(&self) {
        let any = !self.pages.pages.is_empty();
        self.pages.ram.0.regions().for_each(|region| region.marks().watch_any(any));
    }

    fn mark(&self, page: u64, on: bool) {
        if let Some((region, offset)) = self.pages.ram.region(Gpa(page), PAGE) {
            region.marks().watch(offset / PAGE, on);
        }
    }

    fn protect(&self, (start, len): (u64, usize), access: Option<Access>) -> io::Result<()> {
        let (region, offset) = self
            .pages
            .ram
            .region(Gpa(start), len)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let protection: Protection = protection(access);
        first(region).protect(offset, len, protection)
    }
}

/// Pages next to each other, as one: from where on, and how many bytes. No two ranges of RAM are next to each other.
fn runs(pages: &BTreeSet<u64>) -> impl Iterator<Item = (u64, usize)> + '_ {
    let mut rest = pages.iter().copied().peekable();
    std::iter::from_fn(move || {
        let start = rest.next()?;
        let mut len = PAGE;
        while rest.next_if_eq(&(start + len as u64)).is_some() {
            len += PAGE;
        }
        Some((start, len))
    })
}

/// What to do where pages cannot be protected otherwise.
fn advice(error: &io::Error) -> &'static str {
    if error.raw_os_error() == Some(libc::ENOMEM) {
        "; `sysctl vm.max_map_count` says how many ranges of memory a process may have, and each page takes up to two"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_next_to_each_other_are_one_range() {
        let pages = BTreeSet::from([0x1000, 0x2000, 0x3000, 0x5000, 0x9000, 0xa000]);
        let runs: Vec<_> = runs(&pages).collect();
        assert_eq!(runs, [(0x1000, 0x3000), (0x5000, 0x1000), (0x9000, 0x2000)]);
    }
}
