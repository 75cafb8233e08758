//! The pages in which the guest's handlers of interrupts and exceptions begin.
//!
//! A vCPU that delivers an event in the second view has to be stopped before the handler runs there, untrapped. A single step does
//! not do that: the processor clears the trap flag on its way. So the handlers' pages are closed in that view, and the vCPU comes
//! back at the first instruction.

use update_server::addr::{Gpa, Gva};
use update_server::guest::Memory;
use update_server::watch::{by_page, page_of};

use super::frame::{Gate, VECTORS};
use super::ram::Ram;
use super::space::Space;

/// Bytes of a whole table of gates.
const TABLE: usize = VECTORS * 16;
/// What was found last; a guest has one table of handlers, at one place, and changes it no more after its boot.
#[derive(Debug, Default)]
pub(super) struct Handlers {
    base: u64,
    limit: u16,
    table: Vec<u8>,
    /// Where handlers begin, by page, in linear addresses. Where these lead to is looked up each time.
    linear: Vec<u64>,
}

impl Handlers {
    /// Those of a vCPU: first bytes of pages.
    pub(super) fn of(&mut self, space: &Space<'_>, ram: &Ram) -> Vec<Gpa> {
        let idt = space.sregs.idt;
        let mut table = [0; TABLE];
        let len = TABLE.min(usize::from(idt.limit) + 1);
        let table = &mut table[..len];
        let mut done = 0;
        by_page(Gva(idt.base), len as u64, |at, len| {
            let len = usize::try_from(len).unwrap_or(0);
            // What is not there has no gates.
            if let Ok(page) = space.tables.page(ram, at) {
                let _ = ram.read(page.physical(at), &mut table[done..done + len]);
            }
            done += len;
        });
        let same = (self.base, self.limit) == (idt.base, idt.limit) && self.table == table;
        if !same {
            (self.base, self.limit) = (idt.base, idt.limit);
            self.table.clear();
            self.table.extend_from_slice(table);
            self.linear = linear_pages(table);
        }
        let physical = |at: &u64| Some(page_of(space.tables.translate(ram, Gva(*at)).ok()?));
        let mut pages: Vec<Gpa> = self.linear.iter().filter_map(physical).collect();
        pages.sort_unstable_by_key(|page| page.0);
        pages.dedup();
        pages
    }
}

fn linear_pages(table: &[u8]) -> Vec<u64> {
    let gates = table.as_chunks::<16>().0.iter().filter_map(|gate| Gate::parse(*gate));
    let mut pages: Vec<u64> = gates.map(|gate| page_of(Gpa(gate.handler.0)).0).collect();
    pages.sort_unstable();
    pages.dedup();
    pages
}

/// The pages of the table itself.
pub(super) fn table_pages(space: &Space<'_>, ram: &Ram) -> Vec<Gpa> {
    let idt = space.sregs.idt;
    let mut pages = Vec::new();
    by_page(Gva(idt.base), TABLE.min(usize::from(idt.limit) + 1) as u64, |at, _| {
        if let Ok(at) = space.tables.translate(ram, at) {
            pages.push(page_of(at));
        }
    });
    pages
}
