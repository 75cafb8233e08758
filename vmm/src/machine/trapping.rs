//! Watched pages as an operator asks for them: by address, or those that the guest writes to most.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use update_server::addr::Gpa;
use update_server::watch::{Accessed, Lost, Watcher};
use vm_memory::GuestMemoryRegion;

use crate::control::model::{LostPage, TrapReport};
use crate::sys::PAGE;
use crate::sys::kvm::{GuestVm, KvmError};
use crate::trap::{Tally, Traps};

/// How often it is looked which pages the guest has written to, and how long is waited each time.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_millis(50);
/// How many pages that were given up are remembered, with the reason.
const LOST: usize = 64;

/// Remembers which pages were given up. What was done to the others is counted by whoever traps it.
#[derive(Debug, Default)]
pub(super) struct LostPages(Mutex<VecDeque<(Gpa, Lost)>>);

impl Watcher for LostPages {
    fn accessed(&self, _: &Accessed<'_>) {}

    fn lost(&self, page: Gpa, why: &Lost) {
        let mut lost = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lost.len() == LOST {
            lost.pop_front();
        }
        lost.push_back((page, why.clone()));
    }
}

/// Pages by how often the guest was seen to have written to them, the most often first.
pub(super) fn busiest(vm: &GuestVm) -> Result<Vec<Gpa>, KvmError> {
    let mut counts: HashMap<u64, u32> = HashMap::new();
    vm.log_writes(true)?;
    let looked = look(vm, &mut counts);
    // Whatever came of it: the log costs the guest an exit for each page.
    vm.log_writes(false)?;
    looked?;
    let mut pages: Vec<(u64, u32)> = counts.into_iter().collect();
    pages.sort_unstable_by_key(|&(page, count)| (std::cmp::Reverse(count), page));
    Ok(pages.into_iter().map(|(page, _)| Gpa(page)).collect())
}

fn look(vm: &GuestVm, counts: &mut HashMap<u64, u32>) -> Result<(), KvmError> {
    for _ in 0..LOOKS {
        thread::sleep(LOOK);
        for (slot, region) in (0..).zip(vm.ram().regions()) {
            for page in vm.written_pages(slot, region.writable().len())? {
                *counts.entry(region.start_addr().0 + (page * PAGE) as u64).or_default() += 1;
            }
        }
    }
    Ok(())
}

/// What is known of the traps.
pub(super) fn report(traps: &Traps, lost: &LostPages) -> TrapReport {
    let way = if traps.leave_others_alone() { "second-view" } else { "hold-all" };
    // Before the lock is taken: who gives a page up has that of the traps already.
    let (pages, tally) = traps.pages_and_tally();
    let lost = lost.0.lock().unwrap_or_else(PoisonError::into_inner);
    TrapReport {
        way: way.to_owned(),
        pages: pages.iter().map(ToString::to_string).collect(),
        counts: counts(&tally),
        lost: lost
            .iter()
            .map(|(page, why)| LostPage { page: page.to_string(), why: why.to_string() })
            .collect(),
    }
}

fn counts(tally: &Tally) -> BTreeMap<String, u64> {
    let Tally {
        accesses,
        in_place,
        stepped,
        delivered,
        emulated,
        host,
        unseen,
        again,
        compared,
        unfinished,
        lost,
    } = *tally;
    [
        ("accesses", accesses),
        ("in_place", in_place),
        ("stepped", stepped),
        ("delivered", delivered),
        ("emulated", emulated),
        ("host", host),
        ("unseen", unseen),
        ("again", again),
        ("compared", compared),
        ("unfinished", unfinished),
        ("lost", lost),
    ]
    .map(|(name, count)| (name.to_owned(), count))
    .into()
}
