//! What a vCPU that was trapped is about to do to memory, as far as that can be known beforehand.

use std::sync::Arc;

use update_server::addr::{Gpa, Gva};
use update_server::guest::Memory;
use update_server::kernel::paging::Walk;
use update_server::watch::{Kind, PAGE_BYTES, by_page, page_of};

use super::decode::{Decoded, Decodings, LONGEST};
use super::frame::Gate;
use super::ram::Ram;
use super::space::Space;

/// Bytes that will be accessed, all in one page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) at: Gpa,
    pub(super) len: usize,
    pub(super) kind: Kind,
    /// Whether all of them will be.
    pub(super) exact: bool,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Those that are watched, what is read before what is written.
    pub(super) parts: Vec<Part>,
    /// Watched pages that the processor reads as page tables on its way.
    pub(super) tables: Vec<Gpa>,
    /// Every page that will be accessed, watched or not: first bytes.
    pub(super) pages: Vec<Gpa>,
    /// Whether there may be more.
    pub(super) others: bool,
    /// Where the frame of an event will be, by its lowest byte, and the gate to its handler.
    pub(super) frame: Option<(Gva, Gate)>,
    /// The instruction, if there is one.
    pub(super) decoded: Option<Arc<Decoded>>,
    /// The way to each page that will be accessed, by its linear address.
    walks: Vec<(u64, Walk)>,
    /// The bytes of the instruction.
    code: Vec<u8>,
}

impl Look {
    /// Forgets what was seen, and keeps the room for it.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.tables.clear();
        self.pages.clear();
        self.others = false;
        self.frame = None;
        self.decoded = None;
        self.walks.clear();
        self.code.clear();
    }

    /// What the next instruction will do.
    pub(super) fn at_instruction(&mut self, space: &Space<'_>, ram: &Ram, decodings: &mut Decodings) {
        let mut bytes = [0; LONGEST];
        let have = self.fetch(space, ram, &mut bytes);
        let Some(decoded) = decodings.decode(space.rip().0, &bytes[..have], space.bits) else {
            // It will fault, or is one that nobody here knows.
            self.others = true;
            return;
        };
        let len = decoded.instruction.len();
        self.code.extend_from_slice(&bytes[..len]);
        self.others |= decoded.others;
        self.add(space, ram, space.rip(), len as u64, Kind::Read, true);
        let none = decoded.is_repeated() && decoded.count(space) == 0;
        for kind in [Kind::Read, Kind::Write] {
            for operand in decoded.operands.iter().filter(|_| !none) {
                if !(if kind == Kind::Read { operand.reads } else { operand.writes }) {
                    continue;
                }
                match operand.memory.virtual_address(0, |register, _, _| space.value(register)) {
                    Some(at) => {
                        let at = at.wrapping_add(decoded.distance(space, operand.len));
                        self.add(space, ram, space.linear(at), operand.len.into(), kind, operand.exact);
                    }
                    None => self.others = true,
                }
            }
        }
        self.decoded = Some(Arc::clone(decoded));
    }

    /// Adds bytes by their linear address; what is not mapped will raise an exception and is left out.
    pub(super) fn add(&mut self, space: &Space<'_>, ram: &Ram, at: Gva, len: u64, kind: Kind, exact: bool) {
        by_page(at, len, |at, len| {
            let Some(walk) = self.walk(space, ram, at) else { return };
            let at = walk.page.physical(at);
            if !self.pages.contains(&page_of(at)) {
                self.pages.push(page_of(at));
            }
            if ram.is_watched(at) {
                let len = usize::try_from(len).unwrap_or(0);
                self.parts.push(Part { at, len, kind, exact });
            }
        });
    }

    /// The way to the page with `at`.
    pub(super) fn walk(&mut self, space: &Space<'_>, ram: &Ram, at: Gva) -> Option<Walk> {
        let page = at.0 / PAGE_BYTES;
        if let Some((_, walk)) = self.walks.iter().find(|(known, _)| *known == page) {
            return Some(*walk);
        }
        let walk = space.tables.walk(ram, at).ok()?;
        self.walks.push((page, walk));
        for &entry in walk.entries() {
            if ram.is_watched(entry) && !self.tables.contains(&page_of(entry)) {
                self.tables.push(page_of(entry));
            }
        }
        Some(walk)
    }

    /// Whether the same would be seen now: the instruction and the way to everything that it accesses.
    pub(super) fn is_still_so(&self, space: &Space<'_>, ram: &Ram) -> bool {
        let way = |(page, walk): &(u64, Walk)| {
            let now = space.tables.walk(ram, Gva(page * PAGE_BYTES));
            now.is_ok_and(|now| now.page == walk.page && now.entries() == walk.entries())
        };
        let mut code = [0; LONGEST];
        let mut now = Self::default();
        let have = now.fetch(space, ram, &mut code);
        self.walks.iter().all(way) && have >= self.code.len() && code[..self.code.len()] == self.code[..]
    }

    /// The bytes of the instruction.
    pub(super) fn code(&self) -> &[u8] {
        &self.code
    }

    /// Reads bytes by their linear address, all of them or none.
    pub(super) fn read(&mut self, space: &Space<'_>, ram: &Ram, at: Gva, into: &mut [u8]) -> bool {
        let (mut done, mut good) = (0, true);
        by_page(at, into.len() as u64, |at, len| {
            let len = usize::try_from(len).unwrap_or(0);
            let walk = self.walk(space, ram, at);
            good &= walk
                .is_some_and(|walk| ram.read(walk.page.physical(at), &mut into[done..done + len]).is_ok());
            done += len;
        });
        good
    }

    /// The bytes at RIP, as many as can be read.
    fn fetch(&mut self, space: &Space<'_>, ram: &Ram, bytes: &mut [u8; LONGEST]) -> usize {
        let mut have = 0;
        let mut ended = false;
        by_page(space.rip(), LONGEST as u64, |at, len| {
            let len = usize::try_from(len).unwrap_or(0);
            let walk = if ended { None } else { self.walk(space, ram, at) };
            let into = &mut bytes[have..have + len];
            ended |= walk.is_none_or(|walk| ram.read(walk.page.physical(at), into).is_err());
            if !ended {
                have += len;
            }
        });
        have
    }
}
