//! More of the small guest's module: a function with everything in it that loading and booting change, and the tables of that.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::ops::Range;

use update_server::addr::Gva;
use update_server::kernel::model::Model;

use crate::patch_module::put;
use crate::small_guest::{Guest, physical};

/// Where the module is, as the small guest has it.
const BASE: Gva = Gva(0xffff_ffff_c000_0000);
pub(crate) const NAME: &str = "small";
/// The function, in the module's file.
pub(crate) const FUNCTION: &str = "small_fix";
pub(crate) const CODE: [u8; 30] = [
    0xe8, 0, 0, 0, 0, // call __fentry__
    0x85, 0xff, // test edi,edi
    0x89, 0xf8, // mov eax,edi
    0x74, 0x05, // je 0x10
    0xe8, 0, 0, 0, 0, // call small_work
    0x48, 0xc7, 0xc2, 0, 0, 0, 0, // mov rdx,data
    0xf0, 0xff, 0x02, // lock inc dword [rdx]
    0xc3, // ret
    0xcc, 0xcc, 0xcc, // filler
];
/// What loading fills in.
pub(crate) const HOLES: [Range<usize>; 3] = [1..5, 12..16, 19..23];
/// What a table names: the call of ftrace, and the prefix.
pub(crate) const SITES: [Range<usize>; 2] = [0..5, 23..24];
/// Bytes of it without filler.
pub(crate) const LEN: usize = 27;
/// What a jump is written over.
pub(crate) const PLACE: Range<usize> = 5..11;

pub(crate) fn at(offset: u64) -> Gva {
    BASE.wrapping_add(offset)
}

/// Where the function is.
pub(crate) fn function() -> Gva {
    at(0x100)
}

const OTHER: u64 = 0x200;
const SYMBOLS: u64 = 0x2100;
const STRINGS: u64 = 0x2200;
const STRUCTURE: u64 = 0x4000;
const SECTIONS: u64 = 0x5000;
const LOCKS: u64 = 0x6000;
const CALLS: u64 = 0x6100;
const LABELS: u64 = 0x6200;
const FIXUPS: u64 = 0x6300;
const BUGS: u64 = 0x6400;
/// A word of its data.
const DATA: u64 = 0x7008;

/// Writes to the guest what its module is to be.
pub(crate) struct MadeUp<'g, 'p> {
    pub(crate) guest: &'g Guest<'p>,
    pub(crate) model: &'g Model,
}

impl MadeUp<'_, '_> {
    fn offset(&self, structure: &str, path: &str) -> u64 {
        self.model.image().types().offset(structure, path).unwrap()
    }

    pub(crate) fn bytes(&self, at: Gva, bytes: &[u8]) {
        put(self.guest, at, bytes);
    }

    pub(crate) fn word(&self, at: Gva, word: u64) {
        self.bytes(at, &word.to_le_bytes());
    }

    fn half(&self, at: Gva, half: u32) {
        self.bytes(at, &half.to_le_bytes());
    }

    fn member(&self, name: &str) -> Gva {
        at(STRUCTURE).wrapping_add(self.offset("module", name))
    }

    /// A number that counts from where it is.
    fn relative(&self, place: Gva, to: Gva) {
        self.half(place, u32::try_from(to.0.wrapping_sub(place.0) & 0xffff_ffff).unwrap());
    }

    /// All of it, as an honest guest has it.
    pub(crate) fn write(&self) {
        let mut loaded = CODE;
        loaded[..5].copy_from_slice(&[0x0f, 0x1f, 0x44, 0, 0]);
        loaded[12..16].copy_from_slice(&(-0x110_i32).to_le_bytes());
        loaded[19..23].copy_from_slice(&0xc000_7000_u32.to_le_bytes());
        // One processor does without LOCK.
        loaded[23] = 0x3e;
        self.bytes(function(), &loaded);
        self.bytes(at(OTHER), &[0xc3]);
        self.symbols(&[
            ("small_work", at(0)),
            (FUNCTION, function()),
            ("other", at(OTHER)),
            ("end", at(0x280)),
        ]);
        self.table("ftrace_callsites", "num_ftrace_callsites", CALLS, 1);
        self.word(at(CALLS), function().0);
        self.table("jump_entries", "num_jump_entries", LABELS, 0);
        self.table("extable", "num_exentries", FIXUPS, 0);
        self.table("bug_table", "num_bugs", BUGS, 0);
        let list = self.offset("module_sect_attrs", "attrs");
        let size = self.model.image().types().size_of("module_sect_attr").unwrap();
        self.word(self.member("sect_attrs"), at(SECTIONS).0);
        let sections = [(".smp_locks", LOCKS), (".other", LOCKS + 4)];
        for (index, (name, start)) in (0_u32..).zip(sections) {
            let section = at(SECTIONS + list + u64::from(index) * size);
            let text = at(SECTIONS + 0x800 + u64::from(index) * 0x40);
            self.bytes(text, name.as_bytes());
            self.word(section.wrapping_add(self.offset("module_sect_attr", "battr.attr.name")), text.0);
            self.word(section.wrapping_add(self.offset("module_sect_attr", "address")), at(start).0);
            self.half(at(SECTIONS + self.offset("module_sect_attrs", "nsections")), index + 1);
        }
        self.relative(at(LOCKS), function().wrapping_add(23));
        self.memory(0x8000);
    }

    /// So many bytes of memory, or of data where that is apart from text.
    pub(crate) fn memory(&self, bytes: u32) {
        let types = self.model.image().types();
        if let Ok(size) = types.offset("module", "core_layout.size") {
            self.half(at(STRUCTURE + size), bytes);
        } else {
            let second = types.size_of("module_memory").unwrap();
            self.word(self.member("mem.base").wrapping_add(second), at(0x7000).0);
            self.half(self.member("mem.size").wrapping_add(second), bytes.saturating_sub(0x7000));
        }
    }

    /// The table of symbols: functions, and where they are.
    pub(crate) fn symbols(&self, symbols: &[(&str, Gva)]) {
        let mut name = 1;
        for (index, (text, value)) in (0_u32..).zip(symbols) {
            let entry = at(SYMBOLS + u64::from(index) * 24);
            self.half(entry, name);
            // elf(5), Elf64_Sym: STT_FUNC, global, in a section.
            self.bytes(entry.wrapping_add(4), &[0x12, 0, 1, 0]);
            self.word(entry.wrapping_add(8), value.0);
            self.bytes(at(STRINGS + u64::from(name)), format!("{text}\0").as_bytes());
            name += u32::try_from(text.len()).unwrap() + 1;
            self.half(at(0x2000 + self.offset("mod_kallsyms", "num_symtab")), index + 1);
        }
    }

    /// Where a table is, and how many entries it has.
    pub(crate) fn table(&self, place: &str, count: &str, table: u64, entries: u32) {
        self.word(self.member(place), at(table).0);
        self.half(self.member(count), entries);
    }

    pub(crate) fn bug(&self, code: Gva) {
        self.relative(at(BUGS), code);
        self.table("bug_table", "num_bugs", BUGS, 1);
    }

    pub(crate) fn static_key(&self, code: Gva, target: Gva) {
        self.relative(at(LABELS), code);
        self.relative(at(LABELS + 4), target);
        self.table("jump_entries", "num_jump_entries", LABELS, 1);
    }

    pub(crate) fn fixup(&self, code: Gva, target: Gva) {
        self.relative(at(FIXUPS), code);
        self.relative(at(FIXUPS + 4), target);
        self.table("extable", "num_exentries", FIXUPS, 1);
    }

    /// Another function jumps to `to`.
    pub(crate) fn branch(&self, to: Gva) {
        self.bytes(at(OTHER), &[0xe9]);
        let distance = to.0.wrapping_sub(at(OTHER + 5).0) & 0xffff_ffff;
        self.half(at(OTHER + 1), u32::try_from(distance).unwrap());
    }

    pub(crate) fn pointer(&self, to: Gva) {
        self.word(at(DATA), to.0);
    }

    /// One more function that ftrace knows, or has known.
    pub(crate) fn traced(&self, code: Gva) {
        self.word(at(CALLS + 8), code.0);
        self.table("ftrace_callsites", "num_ftrace_callsites", CALLS, 2);
    }

    /// `enum module_state` (include/linux/module.h).
    pub(crate) fn state(&self, state: u32) {
        self.half(self.member("state"), state);
    }

    /// The module is somewhere else, and its symbols are not.
    pub(crate) fn move_text(&self) {
        let types = self.model.image().types();
        let base = types.offset("module", "core_layout.base").or_else(|_| types.offset("module", "mem.base"));
        self.word(at(STRUCTURE + base.unwrap()), at(0x1000).0);
    }

    /// Takes the module off the kernel's list, or puts it back.
    pub(crate) fn listed(&self, listed: bool) {
        let head = self.model.image().symbols().only("modules").unwrap().address;
        let own = self.member("list");
        let next = if listed { own } else { head };
        self.word(head, next.0);
        self.word(head.wrapping_add(8), next.0);
    }

    /// A list whose first entry cannot be read.
    pub(crate) fn broken_list(&self) {
        let head = self.model.image().symbols().only("modules").unwrap().address;
        self.guest.write((physical(head), 0xffff_a000_0000_0000));
    }
}
