//! Every place in the kernel's text that the kernel itself may rewrite, or that it looks up by its address.
//!
//! The kernel lists each of them in a table, by which it finds them, too. Bytes at such a place may differ from the image
//! for a good reason; bytes elsewhere may not.

use std::fmt;

use iced_x86::{Decoder, DecoderOptions};

use super::ImageError;
use super::elf::Elf;
use super::symbols::Symbols;
use crate::addr::Gva;
use crate::bytes::{i32_at, u64_at};

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

/// All places of one kernel or module, by address.
#[derive(Clone, Default)]
pub struct Sites {
    list: Vec<Site>,
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
        Self { list, longest }
    }

    /// All of them, by address.
    pub fn iter(&self) -> impl Iterator<Item = &Site> {
        self.list.iter()
    }

    /// How many there are of a kind.
    pub fn count(&self, kind: SiteKind) -> usize {
        self.list.iter().filter(|site| site.kind == kind).count()
    }

    /// Those with a byte among the `len` bytes from `start` on.
    pub fn overlapping(&self, start: Gva, len: u64) -> impl Iterator<Item = &Site> {
        let end = start.0.saturating_add(len);
        let first = start.0.saturating_sub(u64::from(self.longest));
        let from = self.list.partition_point(|site| site.start.0 < first);
        let near = self.list[from..].iter().take_while(move |site| site.start.0 < end);
        near.filter(move |site| site.start.0 + u64::from(site.len) > start.0)
    }
}

/// Reads every table of the kernel.
pub(super) fn read(elf: &Elf, symbols: &Symbols) -> Result<Sites, ImageError> {
    let tables = Tables { elf, symbols };
    let mut list = Vec::new();
    list.extend(tables.ftrace()?);
    list.extend(tables.alternatives()?);
    list.extend(tables.jump_labels()?);
    list.extend(tables.static_calls()?);
    list.extend(tables.trampolines());
    list.extend(tables.ftrace_callers());
    list.extend(tables.paravirt()?);
    for (name, kind, len) in [
        (".retpoline_sites", SiteKind::Retpoline, None),
        (".return_sites", SiteKind::Return, Some(5)),
        (".call_sites", SiteKind::Call, Some(5)),
        (".ibt_endbr_seal", SiteKind::Endbr, Some(4)),
        (".smp_locks", SiteKind::SmpLock, Some(1)),
    ] {
        list.extend(tables.list_of_places(name, kind, len)?);
    }
    list.extend(tables.runtime_constants());
    list.extend(tables.bugs()?);
    list.extend(tables.exceptions()?);
    Ok(Sites::new(list))
}

struct Tables<'a> {
    elf: &'a Elf,
    symbols: &'a Symbols,
}

/// A table's bytes, and where the first one is.
#[derive(Clone, Copy)]
struct Table<'a> {
    name: &'static str,
    at: Gva,
    bytes: &'a [u8],
}

impl Table<'_> {
    /// Each entry's offset.
    fn entries(self, size: usize) -> Result<impl Iterator<Item = usize>, ImageError> {
        if !self.bytes.len().is_multiple_of(size) {
            let why = format!("no whole number of entries of {size} bytes");
            return Err(ImageError::malformed(self.name, self.bytes.len(), why));
        }
        Ok((0..self.bytes.len()).step_by(size))
    }

    /// What a 32-bit number at `at` points to: it counts from where it is written.
    fn pointee(self, at: usize) -> Gva {
        let from = self.at.wrapping_add(at as u64);
        from.wrapping_offset(i32_at(self.bytes, at).map_or(0, i64::from))
    }
}

impl<'a> Tables<'a> {
    /// A section; a kernel built without the feature has none.
    fn section(&self, name: &'static str) -> Option<Table<'a>> {
        self.elf.placed(name).map(|(at, bytes)| Table { name, at, bytes })
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

    fn ftrace(&self) -> Result<Vec<Site>, ImageError> {
        let Some(table) = self.between("__mcount_loc", "__start_mcount_loc", "__stop_mcount_loc")? else {
            return Ok(Vec::new());
        };
        // The build clears those of functions that others have replaced (`scripts/sorttable.c`, 6.12).
        let starts = table.entries(8)?.filter_map(|at| u64_at(table.bytes, at)).filter(|&start| start != 0);
        Ok(starts.map(|start| Site { start: Gva(start), len: 5, kind: SiteKind::Ftrace }).collect())
    }

    /// `struct alt_instr` (arch/x86/include/asm/alternative.h): it grew from 12 to 14 bytes in 6.3; the lengths are its
    /// last two bytes in both.
    fn alternatives(&self) -> Result<Vec<Site>, ImageError> {
        let Some(table) = self.section(".altinstructions") else { return Ok(Vec::new()) };
        let known = [12, 14].into_iter().find(|&size| {
            // Every entry but one of the right size points into the text and to its replacement.
            let sound = |at: usize| {
                self.elf.from(table.pointee(at)).is_some() && self.elf.from(table.pointee(at + 4)).is_some()
            };
            table.bytes.len().is_multiple_of(size) && (0..table.bytes.len()).step_by(size).all(sound)
        });
        let bytes =
            known.ok_or_else(|| ImageError::malformed(table.name, 0, "entries of an unknown size"))?;
        let site = |at: usize| Site {
            start: table.pointee(at),
            len: table.bytes[at + bytes - 2],
            kind: SiteKind::Alternative,
        };
        Ok(table.entries(bytes)?.map(site).collect())
    }

    /// `struct jump_entry` (`include/linux/jump_label.h`): code, target, key.
    fn jump_labels(&self) -> Result<Vec<Site>, ImageError> {
        let Some(table) = self.between("__jump_table", "__start___jump_table", "__stop___jump_table")? else {
            return Ok(Vec::new());
        };
        table.entries(16)?.map(|at| self.instruction(table.pointee(at), SiteKind::JumpLabel)).collect()
    }

    /// `struct static_call_site` (`include/linux/static_call_types.h`): site, key.
    fn static_calls(&self) -> Result<Vec<Site>, ImageError> {
        let between =
            self.between(".static_call_sites", "__start_static_call_sites", "__stop_static_call_sites")?;
        let Some(table) = between else { return Ok(Vec::new()) };
        table.entries(8)?.map(|at| self.instruction(table.pointee(at), SiteKind::StaticCall)).collect()
    }

    /// A jump of five bytes and a mark of three (`arch/x86/include/asm/static_call.h`).
    fn trampolines(&self) -> impl Iterator<Item = Site> + 'a {
        let symbols = self.symbols.iter().filter(|symbol| symbol.name.starts_with("__SCT__"));
        symbols.map(|symbol| Site { start: symbol.address, len: 5, kind: SiteKind::StaticCallTrampoline })
    }

    /// Calls or jumps of five bytes (`arch/x86/kernel/ftrace.c`, `ftrace_update_ftrace_func`). They have no table but their
    /// names.
    fn ftrace_callers(&self) -> impl Iterator<Item = Site> + 'a {
        let names = ["ftrace_call", "ftrace_regs_call", "ftrace_graph_call"];
        let symbols = names.into_iter().filter_map(|name| self.symbols.only(name));
        symbols.map(|symbol| Site { start: symbol.address, len: 5, kind: SiteKind::FtraceCaller })
    }

    /// `struct paravirt_patch_site` (`arch/x86/include/asm/paravirt_types.h`, 6.1): address, type, length.
    fn paravirt(&self) -> Result<Vec<Site>, ImageError> {
        let Some(table) = self.section(".parainstructions") else { return Ok(Vec::new()) };
        let site = |at: usize| Site {
            start: Gva(u64_at(table.bytes, at).unwrap_or(0)),
            len: table.bytes[at + 9],
            kind: SiteKind::Paravirt,
        };
        Ok(table.entries(16)?.map(site).collect())
    }

    /// A section of nothing but places.
    fn list_of_places(
        &self,
        name: &'static str,
        kind: SiteKind,
        len: Option<u8>,
    ) -> Result<Vec<Site>, ImageError> {
        let Some(table) = self.section(name) else { return Ok(Vec::new()) };
        // The linker fills a page with zeros, which are no entries.
        let places = table.entries(4)?.filter(|&at| i32_at(table.bytes, at) != Some(0));
        let site = |at| match len {
            Some(len) => Ok(Site { start: table.pointee(at), len, kind }),
            None => self.instruction(table.pointee(at), kind),
        };
        // Where another prefix comes first, the kernel changes nothing (`alternatives_smp_lock`).
        let is_lock = |site: &Site| matches!(self.elf.at(site.start, 1), Some([0xf0 | 0x3e]));
        let sites = places.map(site).collect::<Result<Vec<_>, _>>()?;
        Ok(sites.into_iter().filter(|site| kind != SiteKind::SmpLock || is_lock(site)).collect())
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

    /// `struct bug_entry` (include/asm-generic/bug.h), with file and line: place, file, line, flags.
    fn bugs(&self) -> Result<Vec<Site>, ImageError> {
        let Some(table) = self.section("__bug_table") else { return Ok(Vec::new()) };
        let site = |at| Site { start: table.pointee(at), len: 2, kind: SiteKind::Bug };
        Ok(table.entries(12)?.map(site).collect())
    }

    /// `struct exception_table_entry` (arch/x86/include/asm/extable.h): instruction, fixup, data.
    fn exceptions(&self) -> Result<Vec<Site>, ImageError> {
        let Some(table) = self.section("__ex_table") else { return Ok(Vec::new()) };
        let mut list = Vec::new();
        for at in table.entries(12)? {
            list.push(self.instruction(table.pointee(at), SiteKind::Exception)?);
            list.push(Site { start: table.pointee(at + 4), len: 1, kind: SiteKind::Fixup });
        }
        Ok(list)
    }

    /// The whole instruction at `start`.
    fn instruction(&self, start: Gva, kind: SiteKind) -> Result<Site, ImageError> {
        let wrong =
            || ImageError::malformed(kind.table(), 0, format!("{start} is no instruction of the kernel"));
        let code = self.elf.from(start).ok_or_else(wrong)?;
        let mut decoder = Decoder::with_ip(64, &code[..code.len().min(15)], start.0, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return Err(wrong());
        }
        let len = u8::try_from(instruction.len()).map_err(|_| wrong())?;
        Ok(Site { start, len, kind })
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
