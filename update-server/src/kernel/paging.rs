//! From virtual to physical addresses (Intel SDM vol. 3A, 5.5; AMD APM vol. 2, 5.3).

use std::collections::HashSet;

use crate::addr::{Gpa, Gva};
use crate::guest::Memory;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
/// Bits of an entry that hold a physical address; those from 52 on are flags.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const ENTRIES_BITS: u32 = 9;
const PAGE_BITS: u32 = 12;
/// CR4.LA57: five levels.
const LA57: u64 = 1 << 12;

/// Why an address leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unmapped {
    /// The upper bits are not all the same.
    #[error("{0} is no address that the processor knows")]
    NotCanonical(Gva),
    /// An entry says that nothing is there.
    #[error("nothing is mapped at {at}: the entry of level {level} is not present")]
    NotPresent {
        /// The address.
        at: Gva,
        /// Level of the entry, 1 being that of 4 KiB pages.
        level: u32,
    },
    /// A table or page would be where there is no RAM.
    #[error("what is mapped at {at} is not in RAM (level {level}, {physical})")]
    NotRam {
        /// The address.
        at: Gva,
        /// The level at which that was found; 0 is the page itself.
        level: u32,
        /// Where it would be.
        physical: Gpa,
    },
}

/// A set of page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageTables {
    /// The topmost table.
    pub root: Gpa,
    /// 4 or 5.
    pub levels: u32,
}

/// Where a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Its first byte.
    pub start: Gpa,
    /// Its size: 4 KiB, 2 MiB or 1 GiB, as a power of two.
    pub bits: u32,
}

impl Page {
    /// Where `at`, which is in it, is.
    pub fn physical(self, at: Gva) -> Gpa {
        Gpa(self.start.0 + (at.0 & ((1 << self.bits) - 1)))
    }
}

/// What may be done with a page: what the entries of all levels allow (Intel SDM vol. 3A, 5.6; AMD APM vol. 2, 5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// User space may use it.
    pub user: bool,
    /// It may be written to.
    pub write: bool,
}

/// Most levels that there are.
const MOST_LEVELS: usize = 5;

/// The way to a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    /// Where it ends.
    pub page: Page,
    /// What may be done there.
    pub rights: Rights,
    /// Whether the processor has nothing left to note in the entries when it reads: all say that they were used.
    pub accessed: bool,
    /// Whether it has noted that the page was written to.
    pub dirty: bool,
    entries: [Gpa; MOST_LEVELS],
    levels: usize,
}

impl Walk {
    /// Every entry that was read, eight bytes each, from the topmost table down. The processor may write to them, too.
    pub fn entries(&self) -> &[Gpa] {
        &self.entries[..self.levels]
    }
}

impl PageTables {
    /// Those that CR3 and CR4 name.
    pub fn new(cr3: u64, cr4: u64) -> Self {
        Self { root: Gpa(cr3 & ADDRESS), levels: if cr4 & LA57 == 0 { 4 } else { 5 } }
    }

    /// The page with `at`.
    pub fn page(&self, memory: &impl Memory, at: Gva) -> Result<Page, Unmapped> {
        self.page_and_rights(memory, at).map(|(page, _)| page)
    }

    /// The page with `at`, and what may be done with it.
    pub fn page_and_rights(&self, memory: &impl Memory, at: Gva) -> Result<(Page, Rights), Unmapped> {
        self.walk(memory, at).map(|walk| (walk.page, walk.rights))
    }

    /// Whether all bits of `at` above those that are translated are as the highest of these (Intel SDM vol. 1, 3.3.7.1).
    pub fn is_canonical(&self, at: Gva) -> bool {
        let unused = 64 - PAGE_BITS - ENTRIES_BITS * self.levels;
        (at.0.cast_signed() << unused >> unused).cast_unsigned() == at.0
    }

    /// The way to the page with `at`.
    pub fn walk(&self, memory: &impl Memory, at: Gva) -> Result<Walk, Unmapped> {
        if !self.is_canonical(at) {
            return Err(Unmapped::NotCanonical(at));
        }
        let mut table = self.root;
        let mut allowed = USER | WRITE | ACCESSED;
        let (mut entries, mut levels) = ([Gpa(0); MOST_LEVELS], 0);
        for level in (1..=self.levels).rev() {
            let bits = PAGE_BITS + ENTRIES_BITS * (level - 1);
            let index = at.0 >> bits & ((1 << ENTRIES_BITS) - 1);
            let place = Gpa(table.0 + index * 8);
            let mut entry = [0; 8];
            let outside = Unmapped::NotRam { at, level, physical: place };
            memory.read(place, &mut entry).map_err(|_| outside)?;
            let entry = u64::from_le_bytes(entry);
            if entry & PRESENT == 0 {
                return Err(Unmapped::NotPresent { at, level });
            }
            entries[levels] = place;
            levels += 1;
            allowed &= entry;
            if level == 1 || level <= 3 && entry & LARGE != 0 {
                // A large page's lowest address bits are flags.
                let start = entry & ADDRESS & !((1 << bits) - 1);
                return Ok(Walk {
                    page: Page { start: Gpa(start), bits },
                    rights: Rights { user: allowed & USER != 0, write: allowed & WRITE != 0 },
                    accessed: allowed & ACCESSED != 0,
                    dirty: entry & DIRTY != 0,
                    entries,
                    levels,
                });
            }
            table = Gpa(entry & ADDRESS);
        }
        // The loop ends at level 1 at the latest.
        Err(Unmapped::NotPresent { at, level: 0 })
    }

    /// Adds every table that the processor may use to `found`, by its first byte, the topmost one among them. What is there already is
    /// not looked at again.
    ///
    /// Returns whether that was all of them: there are no more than `most` in the end.
    pub fn tables(&self, memory: &impl Memory, most: usize, found: &mut HashSet<u64>) -> bool {
        let mut rest = vec![(self.root, self.levels)];
        while let Some((table, level)) = rest.pop() {
            if !found.insert(table.0) {
                continue;
            }
            if found.len() > most {
                return false;
            }
            let mut bytes = [0; 4096];
            if level == 1 || memory.read(table, &mut bytes).is_err() {
                continue;
            }
            for entry in bytes.as_chunks::<8>().0 {
                let entry = u64::from_le_bytes(*entry);
                if entry & PRESENT != 0 && (level > 3 || entry & LARGE == 0) {
                    rest.push((Gpa(entry & ADDRESS), level - 1));
                }
            }
        }
        true
    }

    /// The physical address of `at`.
    pub fn translate(&self, memory: &impl Memory, at: Gva) -> Result<Gpa, Unmapped> {
        self.page(memory, at).map(|page| page.physical(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::NoRam;

    struct Words(Vec<(u64, u64)>);

    impl Memory for Words {
        fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), NoRam> {
            if at.0 >= 0x10_0000 {
                return Err(NoRam { at, len: into.len() });
            }
            let word = self.0.iter().find(|(place, _)| *place == at.0).map_or(0, |(_, word)| *word);
            into.copy_from_slice(&word.to_le_bytes()[..into.len()]);
            Ok(())
        }
    }

    const NX: u64 = 1 << 63;
    const KERNEL: u64 = 0xffff_ffff_8000_0000;

    #[test]
    fn pages_of_each_size_are_found() {
        let memory = Words(vec![
            (0x1ff8, 0x2063),
            (0x2ff0, 0x3063),
            (0x2ff8, NX | 0xc000_00e3),
            (0x3008, NX | 0x60_01e3),
            (0x3010, 0x4063),
            (0x4018, NX | 0x7063),
        ]);
        let tables = PageTables::new(0x1000 | 0xfff, 0);
        let find = |at| tables.translate(&memory, Gva(at));
        assert_eq!(find(KERNEL + 0x40_3abc), Ok(Gpa(0x7abc)));
        assert_eq!(find(KERNEL + 0x2a_bcde), Ok(Gpa(0x60_0000 + 0xa_bcde)));
        assert_eq!(find(KERNEL + 0x4000_0001), Ok(Gpa(0xc000_0001)));
        assert_eq!(find(KERNEL), Err(Unmapped::NotPresent { at: Gva(KERNEL), level: 2 }));
        assert_eq!(find(0x0000_8000_0000_0000), Err(Unmapped::NotCanonical(Gva(0x0000_8000_0000_0000))));
        assert_eq!(find(0xffff_7fff_ffff_ffff), Err(Unmapped::NotCanonical(Gva(0xffff_7fff_ffff_ffff))));
    }

    #[test]
    fn rights_are_those_that_every_level_gives() {
        // Of the entries for the four pages, only the first says both; the table above all but the last does, too.
        let entries = [0x5067, 0x5065, 0x5063, 0x5067];
        let mut words = vec![(0x1000, 0x2067), (0x2000, 0x3067), (0x3000, 0x4067), (0x3008, 0x4061)];
        words.extend((0x4000..).step_by(8).zip(entries));
        let memory = Words(words);
        let tables = PageTables::new(0x1000, 0);
        let rights =
            |at| tables.page_and_rights(&memory, Gva(at)).map(|(_, rights)| (rights.user, rights.write));
        assert_eq!(rights(0x0abc), Ok((true, true)));
        assert_eq!(rights(0x1000), Ok((true, false)));
        assert_eq!(rights(0x2000), Ok((false, true)));
        assert_eq!(rights(0x20_0000), Ok((false, false)));
        assert_eq!(rights(0x4000), Err(Unmapped::NotPresent { at: Gva(0x4000), level: 1 }));
    }

    #[test]
    fn a_walk_names_its_entries_and_what_they_note() {
        let memory = Words(vec![
            (0x1000, 0x2027),
            (0x2000, 0x3027),
            (0x3000, 0x4027),
            (0x4008, 0x5067),
            (0x4010, 0x6007),
        ]);
        let tables = PageTables::new(0x1000, 0);
        let walk = tables.walk(&memory, Gva(0x1abc)).unwrap();
        assert_eq!(walk.entries(), [0x1000, 0x2000, 0x3000, 0x4008].map(Gpa));
        assert_eq!((walk.page.start, walk.accessed, walk.dirty), (Gpa(0x5000), true, true));
        let unused = tables.walk(&memory, Gva(0x2000)).unwrap();
        assert_eq!((unused.accessed, unused.dirty), (false, false));
    }

    #[test]
    fn all_tables_are_found_once_and_no_more_than_allowed() {
        struct Ram(Vec<u8>);
        impl Memory for Ram {
            fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), NoRam> {
                let from = usize::try_from(at.0).unwrap_or(usize::MAX);
                let bytes = self.0.get(from..).and_then(|rest| rest.get(..into.len()));
                bytes.map(|bytes| into.copy_from_slice(bytes)).ok_or(NoRam { at, len: into.len() })
            }
        }
        let mut ram = Ram(vec![0; 0x8000]);
        // Two ways to the same directory, one of a table to itself, a large page, one that is no RAM.
        for (at, entry) in [(0x1000, 0x2003_u64), (0x1ff8, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003)] {
            ram.0[at..at + 8].copy_from_slice(&entry.to_le_bytes());
        }
        for (at, entry) in [(0x2008, 0x2003_u64), (0x3008, 0x0060_0083), (0x3010, 0x10_0003)] {
            ram.0[at..at + 8].copy_from_slice(&entry.to_le_bytes());
        }
        let tables = PageTables::new(0x1000, 0);
        let mut found = HashSet::new();
        assert!(tables.tables(&ram, 100, &mut found));
        let mut all: Vec<u64> = found.into_iter().collect();
        all.sort_unstable();
        assert_eq!(all, [0x1000, 0x2000, 0x3000, 0x4000, 0x10_0000]);
        assert!(!tables.tables(&ram, 3, &mut HashSet::new()));
    }

    #[test]
    fn five_levels_are_walked() {
        let memory = Words(vec![(0x1000, 0x2063), (0x2008, 0x3063), (0x3000, 0x4063), (0x4000, 0xe3)]);
        let tables = PageTables::new(0x1000, LA57);
        assert_eq!(tables.translate(&memory, Gva(0x80_0000_0123)), Ok(Gpa(0x123)));
        assert_eq!(tables.levels, 5);
        let too_high = Gva(0x0100_0000_0000_0000);
        assert_eq!(tables.page(&memory, too_high), Err(Unmapped::NotCanonical(too_high)));
    }

    #[test]
    fn tables_that_lead_out_of_ram_or_to_themselves_end() {
        let outside = Words(vec![(0x1000, 0xffff_ffff_f063)]);
        let tables = PageTables::new(0x1000, 0);
        assert!(matches!(tables.page(&outside, Gva(0)), Err(Unmapped::NotRam { level: 3, .. })));
        let circle = Words(vec![(0x1000, 0x1063)]);
        assert_eq!(tables.page(&circle, Gva(0)), Ok(Page { start: Gpa(0x1000), bits: 12 }));
        let nowhere = PageTables::new(0x20_0000, 0);
        assert!(matches!(nowhere.page(&circle, Gva(0)), Err(Unmapped::NotRam { level: 4, .. })));
    }
}
