//! Every place in the kernel's text that the kernel itself may rewrite, or that it looks up by its address.
//!
//! The kernel lists each of them in a table, by which it finds them, too. Bytes at such a place may differ from the image
//! for a good reason; bytes elsewhere may not.

use std::fmt;

use super::ImageError;
use super::btf::Btf;
use super::elf::Elf;
use super::symbols::Symbols;
use super::tables::{AlternativeLayout, NoCode, Table};
use crate::addr::Gva;

/// Which table a place is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SiteKind {
    /// `__mcount_loc`: the call or nop at a function's entry that ftrace and BPF attach to.
    Ftrace,
    /// `ftrace_call` and its like: the calls in ftrace's own code to whoever traces.
    FtraceCaller,
    /// `.altinstructions`: instructions chosen by what the processor can do.
    Alternative,
    /// `__jump_table`: a jump or nop of a static key.
    JumpLabel,
    /// `.static_call_sites`: a direct call whose target changes.
    StaticCall,
    /// `__SCT__…`: the jump that static calls go through where they are not direct.
    StaticCallTrampoline,
    /// `.parainstructions`: operations that a hypervisor may replace (up to 6.7; alternatives since).
    Paravirt,
    /// `.retpoline_sites`: an indirect call or jump through a thunk.
    Retpoline,
    /// `.return_sites`: a return through a thunk.
    Return,
    /// `.call_sites`: a direct call that call-depth tracking may redirect.
    Call,
    /// `.ibt_endbr_seal`: an ENDBR that nothing needs.
    Endbr,
    /// `runtime_ptr_…`, `runtime_shift_…`: a number in an instruction that is known only once the kernel runs.
    RuntimeConstant,
    /// `.smp_locks`: a LOCK prefix that a single processor does without.
    SmpLock,
    /// `__bug_table`: a UD2 that a report belongs to. It is never rewritten, but found by its address.
    Bug,
    /// `__ex_table`: an instruction that may fault. It is never rewritten, but found by its address.
    Exception,
    /// `__ex_table`: where the kernel goes on after such a fault.
    Fixup,
}

impl SiteKind {
    /// Every kind, with the table that lists it.
    pub const TABLES: [(Self, &'static str); 16] = [
        (Self::Ftrace, "__mcount_loc"),
        (Self::FtraceCaller, "ftrace_call"),
        (Self::Alternative, ".altinstructions"),
        (Self::JumpLabel, "__jump_table"),
        (Self::StaticCall, ".static_call_sites"),
        (Self::StaticCallTrampoline, "__SCT__"),
        (Self::Paravirt, ".parainstructions"),
        (Self::Retpoline, ".retpoline_sites"),
        (Self::Return, ".return_sites"),
        (Self::Call, ".call_sites"),
        (Self::Endbr, ".ibt_endbr_seal"),
        (Self::RuntimeConstant, "runtime_"),
        (Self::SmpLock, ".smp_locks"),
        (Self::Bug, "__bug_table"),
        (Self::Exception, "__ex_table"),
        (Self::Fixup, "__ex_table"),
    ];

    /// The table's name.
    pub fn table(self) -> &'static str {
        Self::TABLES.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }

    /// Whether the kernel writes there.
    pub fn is_rewritten(self) -> bool {
        !matches!(self, Self::Bug | Self::Exception | Self::Fixup)
    }
}

/// One place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// Its first byte.
    pub start: Gva,
    /// How many bytes belong to it.
    pub len: u8,
    /// Which table has it.
    pub kind: SiteKind,
}

/// Where a static key branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct JumpLabel {
    /// The jump or nop.
    pub code: Gva,
    /// Where the jump leads.
    pub target: Gva,
}

/// All places of one kernel or module, by address.
#[derive(Clone, Default)]
pub struct Sites {
    list: Vec<Site>,
    /// By the address of their code.
    jump_labels: Vec<JumpLabel>,
    /// The longest one's length: how far before an address one may begin that holds it.
    longest: u8,
}

impl fmt::Debug for Sites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sites").field("count", &self.list.len()).finish_non_exhaustive()
    }
}

impl Sites {
    pub(crate) fn new(mut list: Vec<Site>) -> Self {
        list.sort_unstable();
        list.dedup();
        let longest = list.iter().map(|site| site.len).max().unwrap_or(0);
        Self { list, jump_labels: Vec::new(), longest }
    }

    pub(crate) fn with_jump_labels(self, mut jump_labels: Vec<JumpLabel>) -> Self {
        jump_labels.sort_unstable();
        Self { jump_labels, ..self }
    }

    /// Where each static key branches, by the address of the jump.
    pub fn jump_labels(&self) -> &[JumpLabel] {
        &self.jump_labels
    }

    /// All of them, by address.
    pub fn iter(&self) -> impl Iterator<Item = &Site> {
        self.list.iter()
    }

    /// How many there are of a kind.
    pub fn count(&self, kind: SiteKind) -> usize {
        self.list.iter().filter(|site| site.kind == kind).count()
    }

    /// The one that the kernel rewrites at `at`, if there is one.
    pub fn rewritten_at(&self, at: Gva) -> Option<&Site> {
        self.overlapping(at, 1).find(|site| site.kind.is_rewritten())
    }

    /// Those with a byte among the `len` bytes from `start` on.
    pub fn overlapping(&self, start: Gva, len: u64) -> impl Iterator<Item = &Site> {
        let end = start.0.saturating_add(len);
        let first = start.0.saturating_sub(u64::from(self.longest));
        let from = self.list.partition_point(|site| site.start.0 < first);
        let near = self.list[from..].iter().take_while(move |site| site.start.0 < end);
        near.filter(move |site| site.start.0.saturating_add(site.len.into()) > start.0)
    }
}

/// Reads every table of the kernel.
pub(super) fn read(elf: &Elf, symbols: &Symbols, types: &Btf) -> Result<Sites, ImageError> {
    let tables = Tables { elf, symbols };
    let alternatives = AlternativeLayout::of(types);
    let mut list = Vec::new();
    for kind in TABLED {
        let Some(table) = tables.find(kind)? else { continue };
        for place in table.places(kind, alternatives)? {
            let wrong = || ImageError::malformed(table.name, 0, format!("{} is no code", place.start));
            let code = elf.from(place.start).ok_or_else(wrong)?;
            list.extend(place.measure(code).map_err(|NoCode| wrong())?);
        }
    }
    list.extend(trampolines(symbols));
    list.extend(tables.ftrace_callers());
    list.extend(tables.runtime_constants());
    let labels = tables.find(SiteKind::JumpLabel)?.map(Table::jump_labels);
    Ok(Sites::new(list).with_jump_labels(labels.unwrap_or_default()))
}

/// The trampolines of static calls, by their names: a jump of five bytes and a mark of three
/// (`arch/x86/include/asm/static_call.h`).
pub(crate) fn trampolines(symbols: &Symbols) -> impl Iterator<Item = Site> {
    let symbols =
        symbols.iter().filter(|symbol| symbol.name.starts_with(SiteKind::StaticCallTrampoline.table()));
    symbols.map(|symbol| Site { start: symbol.address, len: 5, kind: SiteKind::StaticCallTrampoline })
}

/// The kinds whose tables have entries of one size; that of exceptions has the fixups, too.
const TABLED: [SiteKind; 12] = [
    SiteKind::Ftrace,
    SiteKind::Alternative,
    SiteKind::JumpLabel,
    SiteKind::StaticCall,
    SiteKind::Paravirt,
    SiteKind::Retpoline,
    SiteKind::Return,
    SiteKind::Call,
    SiteKind::Endbr,
    SiteKind::SmpLock,
    SiteKind::Bug,
    SiteKind::Exception,
];

struct Tables<'a> {
    elf: &'a Elf,
    symbols: &'a Symbols,
}

impl<'a> Tables<'a> {
    /// A kind's table; a kernel built without the feature has none.
    fn find(&self, kind: SiteKind) -> Result<Option<Table<'a>>, ImageError> {
        match kind {
            SiteKind::Ftrace => self.between(kind.table(), "__start_mcount_loc", "__stop_mcount_loc"),
            SiteKind::JumpLabel => self.between(kind.table(), "__start___jump_table", "__stop___jump_table"),
            SiteKind::StaticCall => {
                self.between(kind.table(), "__start_static_call_sites", "__stop_static_call_sites")
            }
            _ => Ok(self.elf.placed(kind.table()).map(|(at, bytes)| Table { name: kind.table(), at, bytes })),
        }
    }

    /// What lies between two symbols.
    fn between(&self, name: &'static str, start: &str, stop: &str) -> Result<Option<Table<'a>>, ImageError> {
        let (Some(start), Some(stop)) = (self.symbols.only(start), self.symbols.only(stop)) else {
            return Ok(None);
        };
        let len = stop.address.offset_from(start.address).and_then(|len| usize::try_from(len).ok());
        let bytes = len.and_then(|len| self.elf.at(start.address, len));
        let bytes = bytes.ok_or_else(|| ImageError::malformed(name, 0, "its symbols are in no section"))?;
        Ok(Some(Table { name, at: start.address, bytes }))
    }

    /// Calls or jumps of five bytes (`arch/x86/kernel/ftrace.c`, `ftrace_update_ftrace_func`). They have no table but their
    /// names.
    fn ftrace_callers(&self) -> impl Iterator<Item = Site> + 'a {
        let names = ["ftrace_call", "ftrace_regs_call", "ftrace_graph_call"];
        let symbols = names.into_iter().filter_map(|name| self.symbols.only(name));
        symbols.map(|symbol| Site { start: symbol.address, len: 5, kind: SiteKind::FtraceCaller })
    }

    /// Each constant has a section of its own (`arch/x86/include/asm/runtime-const.h`, 6.11): of pointers, eight bytes, and
    /// of shifts, one byte.
    fn runtime_constants(&self) -> Vec<Site> {
        let names = self.elf.sections().filter_map(|(name, at, len)| {
            let bytes = if name.starts_with("runtime_ptr_") {
                8
            } else if name.starts_with("runtime_shift_") {
                1
            } else {
                return None;
            };
            self.elf.at(at, len).map(|table| (Table { name: "runtime_", at, bytes: table }, bytes))
        });
        let sites = names.flat_map(|(table, len)| {
            let places = (0..table.bytes.len() / 4).map(move |index| table.pointee(index * 4));
            places.map(move |start| Site { start, len, kind: SiteKind::RuntimeConstant })
        });
        sites.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_are_found_by_any_of_their_bytes() {
        let site = |start, len, kind| Site { start: Gva(start), len, kind };
        let sites = Sites::new(vec![
            site(0x20, 1, SiteKind::SmpLock),
            site(0x10, 5, SiteKind::Ftrace),
            site(0x12, 2, SiteKind::Alternative),
            site(0x10, 5, SiteKind::Ftrace),
        ]);
        let kinds = |start, len| sites.overlapping(Gva(start), len).map(|site| site.kind).collect::<Vec<_>>();
        assert_eq!(kinds(0x10, 1), [SiteKind::Ftrace]);
        assert_eq!(kinds(0x13, 1), [SiteKind::Ftrace, SiteKind::Alternative]);
        assert_eq!(kinds(0x14, 1), [SiteKind::Ftrace]);
        assert_eq!(kinds(0x15, 11), []);
        assert_eq!(kinds(0x15, 12), [SiteKind::SmpLock]);
        assert_eq!(kinds(0, u64::MAX).len(), 3);
        assert_eq!(sites.count(SiteKind::Ftrace), 1);
    }
}
