//! Pages whose accesses are trapped, as whoever holds the vCPUs asks for them.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use update_server::addr::Gpa;
use update_server::kernel::paging::PageTables;
use update_server::watch::{Access, NotWatched, Watched, Watcher};

use super::thread::VcpuThreads;
use crate::inspect::GuestBytes;

/// Page tables of a guest that are looked through, 4 KiB each: as many as map 512 GiB in small pages.
const MOST_TABLES: usize = 1 << 18;
impl VcpuThreads {
    /// Watches `pages`, all of them or none, and with them the first `most` of `others` that can be watched.
    pub fn watch(
        &self,
        pages: &[Gpa],
        others: &[Gpa],
        most: usize,
        access: Access,
    ) -> Result<(), NotWatched> {
        let tables = self.page_tables()?;
        let mut others: Vec<Gpa> = others
            .iter()
            .copied()
            .filter(|page| !pages.contains(page) && !tables.contains(&page.0))
            .collect();
        loop {
            let all: Vec<Gpa> = pages.iter().chain(others.iter().take(most)).copied().collect();
            match self.traps().set_access(&all, Some(access), &tables) {
                // Nobody has named it: the next one is taken.
                Err(NotWatched::Hypervisor { at, .. }) if others.contains(&at) => {
                    others.retain(|page| *page != at);
                }
                done => return done,
            }
        }
    }

    /// Every page table that a vCPU uses, by its first byte. Stops the vCPUs for the moment that it takes to see where they begin.
    fn page_tables(&self) -> Result<HashSet<u64>, NotWatched> {
        let failed = |error: &dyn fmt::Display| NotWatched::Host(error.to_string());
        self.traps().expect();
        self.pause().map_err(|error| failed(&error))?;
        let vcpus = self.snapshots();
        self.resume();
        let memory = self.traps().memory();
        let mut found = HashSet::new();
        for vcpu in vcpus.map_err(|error| failed(&error))?.into_iter().filter(|vcpu| vcpu.started) {
            let tables = PageTables::new(vcpu.cr3, vcpu.cr4);
            if !tables.tables(&GuestBytes(memory), MOST_TABLES, &mut found) {
                return Err(NotWatched::Host(format!(
                    "the guest has more than {MOST_TABLES} page tables, too many to look through"
                )));
            }
        }
        Ok(found)
    }
}

impl Watched for VcpuThreads {
    fn set_watcher(&self, watcher: Arc<dyn Watcher>) {
        self.traps().set_watcher(watcher);
    }

    fn set_access(&self, pages: &[Gpa], access: Option<Access>) -> Result<(), NotWatched> {
        let tables = if access.is_some() { self.page_tables()? } else { HashSet::new() };
        self.traps().set_access(pages, access, &tables)
    }
}
