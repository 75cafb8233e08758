//! The places of modules' text that may change, out of guest memory: allegations, like all that is known of modules.
//!
//! Some tables the kernel goes on using once a module is loaded, and `struct module` has them. The others it applies once;
//! they stay in memory, and `/sys/module/NAME/sections` says where, but not how long they are.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::modules::{Module, ModuleState, take};
use super::running::Running;
use super::sections::{self, SectionsLayout};
use super::space::ReadError;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::{
    AlternativeLayout, Btf, CODE, JumpLabel, Site, SiteKind, Sites, Table, entry_bytes, trampolines,
};
use crate::limits::{MODULE_BYTES, MODULE_SECTIONS, MODULE_SITES};

/// What the guest says of one module's sites.
#[derive(Debug, Clone, Default)]
pub struct ModuleSites {
    /// All, where they are now.
    pub sites: Sites,
    /// Entries of each table. Several may be about one site, or about none that is there.
    pub entries: BTreeMap<&'static str, usize>,
    /// Sites that the module had only until its init function was done.
    pub gone: usize,
    /// Tables of which not all could be read, with why.
    pub unread: BTreeMap<&'static str, String>,
}

/// Where a kernel keeps its modules' tables.
#[derive(Debug)]
pub(crate) struct ModuleTables {
    /// In `struct module`: offsets of a table's address and of the number of its entries.
    kept: Vec<(SiteKind, u64, u64)>,
    /// Offsets there of addresses and sizes in bytes of all memory of a module.
    memory: Vec<(u64, u64)>,
    pub(super) sections: Option<SectionsLayout>,
    alternatives: Option<AlternativeLayout>,
}

/// Those that the kernel applies once (`arch/x86/kernel/module.c`, `module_finalize`).
const SECTIONS: [SiteKind; 7] = [
    SiteKind::Alternative,
    SiteKind::Paravirt,
    SiteKind::Retpoline,
    SiteKind::Return,
    SiteKind::Call,
    SiteKind::Endbr,
    SiteKind::SmpLock,
];

impl ModuleTables {
    /// As the kernel's types have them. A kernel that was built without a feature has no table for it.
    pub(super) fn of(types: &Btf) -> Self {
        let offset = |member: &str| types.offset("module", member).ok();
        let kept = [
            (SiteKind::Ftrace, "ftrace_callsites", "num_ftrace_callsites"),
            (SiteKind::JumpLabel, "jump_entries", "num_jump_entries"),
            (SiteKind::StaticCall, "static_call_sites", "num_static_call_sites"),
            (SiteKind::Bug, "bug_table", "num_bugs"),
            (SiteKind::Exception, "extable", "num_exentries"),
        ];
        let kept = kept.into_iter().filter_map(|(kind, at, count)| Some((kind, offset(at)?, offset(count)?)));
        // 6.4 made an array of what had been two members.
        let kinds = types.enumerator("MOD_MEM_NUM_TYPES").ok().zip(types.size_of("module_memory").ok());
        let pieces = kinds.zip(offset("mem.base").zip(offset("mem.size")));
        let memory = if let Some(((count, stride), (base, size))) = pieces {
            let count = u64::try_from(count).unwrap_or(0).min(MEMORY_KINDS);
            (0..count).map(|index| (base + index * stride, size + index * stride)).collect()
        } else {
            let whole = |base, size| offset(base).zip(offset(size));
            let (core, init) = ("core_layout.base", "init_layout.base");
            let old = [whole(core, "core_layout.size"), whole(init, "init_layout.size")];
            old.into_iter().flatten().collect()
        };
        Self {
            kept: kept.collect(),
            memory,
            sections: SectionsLayout::of(types),
            alternatives: AlternativeLayout::of(types),
        }
    }
}

/// More kinds of memory than a module has (`enum mod_mem_type`: 7).
const MEMORY_KINDS: u64 = 64;

/// The sites of each of `modules`, in a guest that may run: what changes meanwhile is not noticed here.
pub fn sites(kernel: &Running<'_, impl Memory>, modules: &[Arc<Module>]) -> Vec<ModuleSites> {
    let mut budget = Budget { entries: MODULE_SITES, sections: MODULE_SECTIONS };
    modules.iter().map(|module| Reader::new(kernel, module, &mut budget).all()).collect()
}

/// What is left to be read of all modules together.
#[derive(Debug)]
struct Budget {
    entries: usize,
    sections: usize,
}

struct Reader<'a, 'g, M> {
    kernel: &'a Running<'g, M>,
    tables: &'g ModuleTables,
    module: &'a Module,
    budget: &'a mut Budget,
    list: Vec<Site>,
    labels: Vec<JumpLabel>,
    result: ModuleSites,
}

impl<'a, 'g, M: Memory> Reader<'a, 'g, M> {
    fn new(kernel: &'a Running<'g, M>, module: &'a Module, budget: &'a mut Budget) -> Self {
        let tables = &kernel.model().module_tables;
        let result = ModuleSites::default();
        Self { kernel, tables, module, budget, list: Vec::new(), labels: Vec::new(), result }
    }

    fn all(mut self) -> ModuleSites {
        if self.module.state() == ModuleState::Unformed {
            self.unread("all", "it is being put together".to_owned());
            return self.result;
        }
        for &(kind, at, count) in &self.tables.kept {
            let read = self.kept(kind, at, count);
            self.note(kind, read);
        }
        match self.sections() {
            Ok(sections) => {
                for (kind, range) in sections {
                    let read = self.section(kind, &range);
                    self.note(kind, read);
                }
            }
            Err(why) => SECTIONS.into_iter().for_each(|kind| self.unread(kind.table(), why.clone())),
        }
        self.list.extend(trampolines(&self.module.symbols).filter(|site| self.module.holds(site.start)));
        self.result.sites = Sites::new(self.list).with_jump_labels(self.labels);
        self.result
    }

    fn unread(&mut self, table: &'static str, why: String) {
        self.result.unread.insert(table, why);
    }

    fn note(&mut self, kind: SiteKind, read: Result<(), String>) {
        if let Err(why) = read {
            self.unread(kind.table(), why);
        }
    }

    /// Reads a table that `struct module` has.
    fn kept(&mut self, kind: SiteKind, at: u64, count: u64) -> Result<(), String> {
        let member = |offset| self.module.address().wrapping_add(offset);
        let space = self.kernel.space();
        let table = space.pointer(member(at)).map_err(text)?;
        let count = space.u32(member(count)).map_err(text)?;
        self.table(kind, table, usize::try_from(count).unwrap_or(usize::MAX), false)
    }

    /// Reads a section, which may be longer than its table.
    fn section(&mut self, kind: SiteKind, range: &Range<Gva>) -> Result<(), String> {
        let size = entry_bytes(kind, self.tables.alternatives).ok_or("entries of an unknown size")?;
        let bytes = usize::try_from(range.end.0 - range.start.0).unwrap_or(usize::MAX);
        self.table(kind, range.start, bytes / size, true)
    }

    /// Reads `count` entries, or if it is not known how many of them are entries, those.
    fn table(&mut self, kind: SiteKind, at: Gva, count: usize, padded: bool) -> Result<(), String> {
        let alternatives = self.tables.alternatives;
        let size = entry_bytes(kind, alternatives).ok_or("entries of an unknown size")?;
        let here = take(&mut self.budget.entries, u32::try_from(count).unwrap_or(u32::MAX));
        let mut bytes = vec![0; here * size];
        self.kernel.space().read(at, &mut bytes).map_err(text)?;
        let mut table = Table { name: kind.table(), at, bytes: &bytes };
        if padded {
            table = table.trimmed(kind, alternatives);
        }
        if !table.bytes.is_empty() {
            self.result.entries.insert(kind.table(), table.bytes.len() / size);
        }
        if kind == SiteKind::JumpLabel {
            self.labels.extend(table.jump_labels());
        }
        let mut wrong = None;
        for place in table.places(kind, alternatives).map_err(|error| error.to_string())? {
            let Some(own) = self.module.text_of(place.start) else {
                self.result.gone += 1;
                continue;
            };
            let mut code = [0; CODE];
            let len = usize::try_from(own.end.0 - place.start.0).unwrap_or(CODE).min(CODE);
            self.kernel.space().read(place.start, &mut code[..len]).map_err(text)?;
            match place.measure(&code[..len]) {
                Ok(measured) => self.list.extend(measured),
                Err(_) => wrong = Some(place.start),
            }
        }
        if let Some(at) = wrong {
            return Err(format!("there is no instruction at {at}"));
        }
        if here < count { Err(format!("only {here} entries of {count} were read")) } else { Ok(()) }
    }

    /// Where the tables are that have sections of their own.
    fn sections(&mut self) -> Result<Vec<(SiteKind, Range<Gva>)>, String> {
        let listed = sections::listed(self.kernel, self.module, &mut self.budget.sections)?;
        let memory = memory(self.kernel, self.module).map_err(text)?;
        let mut ends: Vec<Gva> = memory.into_iter().map(|piece| piece.end).collect();
        let mut found = Vec::new();
        for (name, start) in listed {
            ends.push(start);
            let kind = SECTIONS.into_iter().find(|kind| kind.table() == name);
            found.extend(kind.map(|kind| (kind, start)));
        }
        // A section ends where the next one begins, or the memory that it is in ends.
        ends.sort_unstable();
        let range = |start: Gva| {
            let end = ends.get(ends.partition_point(|&end| end <= start)).copied().unwrap_or(start);
            start..end.min(start.wrapping_add(MODULE_BYTES).max(start))
        };
        Ok(found.into_iter().map(|(kind, start)| (kind, range(start))).collect())
    }
}

/// Each piece of memory that the module has: text, constants and data.
pub(crate) fn memory(
    kernel: &Running<'_, impl Memory>,
    module: &Module,
) -> Result<Vec<Range<Gva>>, ReadError> {
    let space = kernel.space();
    let member = |offset| module.address().wrapping_add(offset);
    let piece = |&(base, size): &(u64, u64)| {
        let start = space.pointer(member(base))?;
        Ok(start..start.wrapping_add(u64::from(space.u32(member(size))?)))
    };
    kernel.model().module_tables.memory.iter().map(piece).collect()
}

fn text(error: ReadError) -> String {
    error.to_string()
}
