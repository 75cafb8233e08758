//! A program that passes through memory again and again, with pages in between that it does not touch.

use anyhow::Result;
use iced_x86::code_asm::*;

use super::system::{HUGE_PAGE, MEMORY, PAGE, allow_port, read_port, take_memory};
use super::{BLOCK, Program};

/// Huge pages of which every second page is written to; of as many again, the last page of each is read, and nothing else.
const WRITTEN: usize = 16;

/// Where the program's memory is.
#[derive(Debug, Clone)]
pub(crate) struct Passes {
    /// Where each of its huge pages begins.
    huge: Vec<u64>,
}

impl Passes {
    /// How many huge pages it has.
    pub(crate) const HUGE_PAGES: usize = 2 * WRITTEN;

    /// `huge` are all of them.
    pub(crate) fn at(huge: Vec<u64>) -> Self {
        Self { huge }
    }

    /// `count` pages that are not touched, between pages that are written to.
    pub(crate) fn among(&self, count: usize) -> Vec<u64> {
        scattered(self.huge.iter().take(WRITTEN), PAGE, count)
    }

    /// `count` pages that are not touched, where nothing is written to.
    pub(crate) fn apart(&self, count: usize) -> Vec<u64> {
        scattered(self.huge.iter().skip(WRITTEN), 0, count)
    }

    /// `count` pages next to each other that are not written to.
    pub(crate) fn next_to_each_other(&self, count: usize) -> Vec<u64> {
        let huge = self.huge.iter().skip(WRITTEN);
        huge.flat_map(|&at| (at..at + u64::from(HUGE_PAGE)).step_by(BLOCK)).take(count).collect()
    }
}

/// `count` of every second page, as far from each other as can be.
fn scattered<'h>(huge: impl Iterator<Item = &'h u64>, first: u32, count: usize) -> Vec<u64> {
    let pages: Vec<u64> =
        huge.flat_map(|&at| (at + u64::from(first)..at + u64::from(HUGE_PAGE)).step_by(2 * BLOCK)).collect();
    pages.iter().step_by(pages.len() / count).copied().collect()
}

/// The program: a pass is a change of each page that is written to, and one read of a port, which the VMM counts.
pub(crate) fn passes() -> Result<Program> {
    let half = WRITTEN as u64 * u64::from(HUGE_PAGE);
    Program::new(|a| {
        let (mut pass, mut write, mut read) = (a.create_label(), a.create_label(), a.create_label());
        allow_port(a)?;
        take_memory(a, 2 * WRITTEN as u64)?;
        a.set_label(&mut pass)?;
        a.mov(rbx, MEMORY)?;
        a.mov(rcx, MEMORY + half)?;
        a.set_label(&mut write)?;
        a.add(qword_ptr(rbx), 1)?;
        a.lea(rbx, qword_ptr(rbx + 2 * PAGE))?;
        a.cmp(rbx, rcx)?;
        a.jb(write)?;
        // So that these are in KVM's tables, too.
        a.mov(rcx, MEMORY + 2 * half)?;
        a.set_label(&mut read)?;
        a.lea(rbx, qword_ptr(rbx + HUGE_PAGE))?;
        a.mov(rax, qword_ptr(rbx - PAGE))?;
        a.cmp(rbx, rcx)?;
        a.jb(read)?;
        read_port(a)?;
        a.jmp(pass)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cold_pages_are_not_those_that_are_written_to() {
        let huge = (0..Passes::HUGE_PAGES as u64).map(|number| (1 << 30) + number * u64::from(HUGE_PAGE));
        let passes = Passes::at(huge.collect());
        let written = |page: &u64| {
            *page < (1 << 30) + WRITTEN as u64 * u64::from(HUGE_PAGE) && page.is_multiple_of(2 * BLOCK as u64)
        };
        for count in [1, 64, 1024, 4096] {
            let all = [passes.among(count), passes.apart(count), passes.next_to_each_other(count)];
            for pages in all {
                assert_eq!(pages.len(), count);
                assert!(!pages.iter().any(written), "{pages:x?}");
            }
        }
    }
}
