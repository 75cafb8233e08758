//! The kernel's modules, out of guest memory: allegations, good for walking stacks and naming addresses. What is written to them
//! the patch alone decides (`phases::module_function`).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::list::{self, Cut};
use super::running::Running;
use super::space::ReadError;
use crate::addr::Gva;
use crate::bytes::{u32_at, u64_at};
use crate::guest::Memory;
use crate::image::{ImageError, OrcTable, Symbols, SymbolsBuilder};
use crate::limits::{MODULE_BYTES, MODULE_NAME_BYTES, MODULE_ORCS, MODULE_SYMBOLS, MODULES};

/// Bytes of a symbol's name: `KSYM_NAME_LEN` (include/linux/kallsyms.h, 6.1 and 6.12).
const SYMBOL_BYTES: usize = 512;

/// `MODULE_STATE_*` (include/linux/module.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleState {
    /// In use.
    Live,
    /// Its init function runs.
    Coming,
    /// On its way out.
    Going,
    /// Being put together.
    Unformed,
}

/// What the guest says of one module.
#[derive(Debug, Clone)]
pub struct Module {
    /// What it was read by: as long as that is the same, so is the rest.
    mark: Mark,
    /// What of the room for all modules is its own.
    taken: Room,
    /// Whether there was room for all of it.
    whole: bool,
    /// Its name.
    pub name: String,
    /// Its unwind table, or why there is none that can be read.
    pub orc: Result<OrcTable, String>,
    /// Its symbols, as far as they can be read.
    pub symbols: Symbols,
}

impl Module {
    /// Where its `struct module` is.
    pub fn address(&self) -> Gva {
        self.mark.address
    }

    /// What it is doing.
    pub fn state(&self) -> ModuleState {
        self.mark.state
    }

    /// Its text.
    pub fn text(&self) -> &Range<Gva> {
        &self.mark.text
    }

    /// Text that it has only until its init function is done.
    pub fn init_text(&self) -> &Range<Gva> {
        &self.mark.init_text
    }

    /// Where the address and the entry number `index` of its unwind table are.
    pub(crate) fn orc_entry(&self, index: usize) -> (Gva, Gva) {
        let behind = |start: Gva, bytes: usize| start.wrapping_add((index * bytes) as u64);
        (behind(self.mark.orc_addresses, 4), behind(self.mark.orc_entries, OrcTable::ENTRY))
    }

    /// Whether `other` is the same module, perhaps at another time; one that was loaded in its place since may look like it.
    pub fn is(&self, other: &Self) -> bool {
        (&self.name, self.address(), self.text()) == (&other.name, other.address(), other.text())
    }

    /// Whether an instruction at `at` is the module's.
    pub fn holds(&self, at: Gva) -> bool {
        self.text_of(at).is_some()
    }

    /// That of its texts that an instruction at `at` is in.
    pub fn text_of(&self, at: Gva) -> Option<&Range<Gva>> {
        [self.text(), self.init_text()].into_iter().find(|text| text.contains(&at))
    }
}

/// What is another for every module that is loaded, and for each state it goes through. Its tables are sorted and complete
/// once it is formed (`kernel/module/main.c`, `complete_formation`).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    address: Gva,
    state: ModuleState,
    text: Range<Gva>,
    init_text: Range<Gva>,
    orc_count: u32,
    orc_addresses: Gva,
    orc_entries: Gva,
}

impl Mark {
    fn read(kernel: &Running<'_, impl Memory>, at: Gva) -> Result<Self, ReadError> {
        let (space, model) = (kernel.space(), kernel.model());
        let layout = &model.layout.module;
        let range = |base: u64, bytes: u64| -> Result<Range<Gva>, ReadError> {
            let start = space.pointer(at.wrapping_add(base))?;
            let len = u64::from(space.u32(at.wrapping_add(bytes))?).min(MODULE_BYTES);
            Ok(start..start.wrapping_add(len))
        };
        let (init_base, init_bytes) = model.layout.module_init;
        Ok(Self {
            address: at,
            state: match space.u32(at.wrapping_add(layout.state))? {
                0 => ModuleState::Live,
                1 => ModuleState::Coming,
                2 => ModuleState::Going,
                _ => ModuleState::Unformed,
            },
            text: range(layout.text_base, layout.text_bytes)?,
            init_text: range(init_base, init_bytes)?,
            orc_count: space.u32(at.wrapping_add(layout.orc_count))?,
            orc_addresses: space.pointer(at.wrapping_add(layout.orc_addresses))?,
            orc_entries: space.pointer(at.wrapping_add(layout.orc_entries))?,
        })
    }
}

/// The kernel's list of modules, as far as it could be read.
#[derive(Debug, Default)]
pub struct Modules {
    /// In the order of the list.
    pub found: Vec<Arc<Module>>,
    /// What is in the way of following it further.
    pub end: Option<ReadError>,
    /// What was left out because there is more than there can be.
    pub cuts: Vec<Cut>,
}

/// Every module on the kernel's list. Of those in `known`, which were read before, only what has changed is read again.
pub fn modules(kernel: &Running<'_, impl Memory>, known: &[Arc<Module>]) -> Modules {
    let mut marks = Vec::new();
    let listed = marks_of(kernel, &mut marks);
    let mut all = Modules { end: listed.as_ref().err().copied(), ..Modules::default() };
    all.cuts.extend(listed.ok().flatten());
    let known: HashMap<Gva, &Arc<Module>> = known.iter().map(|module| (module.address(), module)).collect();
    let kept = |mark: &Mark| {
        let module = known.get(&mark.address).filter(|module| module.whole && module.mark == *mark)?;
        (mark.state != ModuleState::Unformed).then(|| Arc::clone(module))
    };
    let marks: Vec<_> = marks.into_iter().map(|mark| (kept(&mark), mark)).collect();
    // First of all the room of those that stay, wherever on the list they are: it was taken when they were read.
    let mut left = Room::ALL;
    for (module, _) in &marks {
        left = left.without(module.as_ref().map_or(Room::default(), |module| module.taken));
    }
    for (module, mark) in marks {
        let module =
            module.map_or_else(|| self::module(kernel, mark, &mut left, &mut all.cuts).map(Arc::new), Ok);
        match module {
            Ok(module) => all.found.push(module),
            Err(error) => {
                all.end = Some(error);
                break;
            }
        }
    }
    all
}

/// Adds the mark of each module on the list to `marks`.
fn marks_of(kernel: &Running<'_, impl Memory>, marks: &mut Vec<Mark>) -> Result<Option<Cut>, ReadError> {
    let layout = &kernel.model().layout.module;
    let head = kernel.now(kernel.model().symbols.modules);
    list::walk_within(kernel.space(), head, Cut { what: "modules", limit: MODULES }, |link| {
        marks.push(Mark::read(kernel, Gva(link.0.wrapping_sub(layout.list)))?);
        Ok(())
    })
}

/// What all modules together may have.
#[derive(Debug, Clone, Copy, Default)]
struct Room {
    /// Entries of unwind tables.
    orcs: usize,
    symbols: usize,
    /// Bytes of symbols' names.
    names: usize,
}

impl Room {
    const ALL: Self = Self { orcs: MODULE_ORCS, symbols: MODULE_SYMBOLS, names: MODULE_NAME_BYTES };

    /// What is left without `other`.
    fn without(self, other: Self) -> Self {
        Self {
            orcs: self.orcs.saturating_sub(other.orcs),
            symbols: self.symbols.saturating_sub(other.symbols),
            names: self.names.saturating_sub(other.names),
        }
    }

    fn orcs(&mut self, wanted: u32) -> Result<usize, Cut> {
        all_of(&mut self.orcs, wanted, Cut { what: "unwind table entries of modules", limit: MODULE_ORCS })
    }

    fn symbols(&mut self, wanted: u32) -> Result<usize, Cut> {
        all_of(&mut self.symbols, wanted, Cut { what: "symbols of modules", limit: MODULE_SYMBOLS })
    }

    fn name(&mut self, name: &str) -> Result<(), Cut> {
        let cut = Cut { what: "bytes of the names of modules' symbols", limit: MODULE_NAME_BYTES };
        self.names = self.names.checked_sub(name.len()).ok_or(cut)?;
        Ok(())
    }
}

/// Takes all that is `wanted` from what is left, or nothing: half a table says something else than the whole one.
fn all_of(left: &mut usize, wanted: u32, cut: Cut) -> Result<usize, Cut> {
    let count = usize::try_from(wanted).unwrap_or(usize::MAX);
    *left = left.checked_sub(count).ok_or(cut)?;
    Ok(count)
}

/// Takes `wanted` from what is left, or what there is of it.
pub(super) fn take(left: &mut usize, wanted: u32) -> usize {
    let count = usize::try_from(wanted).unwrap_or(usize::MAX).min(*left);
    *left -= count;
    count
}

/// Why something of a module is not there.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Table(#[from] ImageError),
    #[error(transparent)]
    Cut(#[from] Cut),
}

fn module(
    kernel: &Running<'_, impl Memory>,
    mark: Mark,
    left: &mut Room,
    cuts: &mut Vec<Cut>,
) -> Result<Module, ReadError> {
    let (space, model) = (kernel.space(), kernel.model());
    let name = mark.address.wrapping_add(model.layout.module.name);
    let name = space.text(name, model.layout.module_name_bytes)?;
    let before = *left;
    let (orc, symbols) = (orc(kernel, &mark, left), symbols(kernel, mark.address, left));
    let mut whole = true;
    for unread in [orc.as_ref().err(), symbols.as_ref().err()].into_iter().flatten() {
        if let Unread::Cut(cut) = unread {
            whole = false;
            cuts.extend((!cuts.contains(cut)).then_some(*cut));
        }
    }
    Ok(Module {
        name,
        taken: before.without(*left),
        whole,
        orc: orc.map_err(|error| error.to_string()),
        symbols: symbols.unwrap_or_default(),
        mark,
    })
}

fn orc(kernel: &Running<'_, impl Memory>, mark: &Mark, left: &mut Room) -> Result<OrcTable, Unread> {
    let count = left.orcs(mark.orc_count)?;
    let (mut places, mut table) = (vec![0; count * 4], vec![0; count * OrcTable::ENTRY]);
    kernel.space().read(mark.orc_addresses, &mut places)?;
    kernel.space().read(mark.orc_entries, &mut table)?;
    let layout = kernel.model().image().orc().layout();
    Ok(OrcTable::read(mark.orc_addresses, &places, table, layout)?)
}

/// Symbols that are code; `Elf64_Sym` (elf(5)) has 24 bytes: name, info, other, section, value, size.
fn symbols(kernel: &Running<'_, impl Memory>, at: Gva, left: &mut Room) -> Result<Symbols, Unread> {
    const ENTRY: usize = 24;
    let (space, model) = (kernel.space(), kernel.model());
    let table = space.pointer(at.wrapping_add(model.layout.module.kallsyms))?;
    let layout = &model.layout.module_symbols;
    let first = space.pointer(table.wrapping_add(layout.symbols))?;
    let count = space.u32(table.wrapping_add(layout.count))?;
    let strings = space.pointer(table.wrapping_add(layout.strings))?;
    let count = left.symbols(count)?;
    let mut entries = vec![0; count * ENTRY];
    space.read(first, &mut entries)?;
    let mut builder = SymbolsBuilder::new(count);
    for entry in entries.chunks_exact(ENTRY) {
        let (Some(name), Some(value), Some(&info)) = (u32_at(entry, 0), u64_at(entry, 8), entry.get(4))
        else {
            continue;
        };
        let defined = entry[6..8] != [0, 0];
        if !defined || value == 0 {
            continue;
        }
        let mut name = space.text(strings.wrapping_add(u64::from(name)), SYMBOL_BYTES)?;
        // One that is longer has escapes in it, and takes no more room for them.
        name.truncate(name.floor_char_boundary(SYMBOL_BYTES));
        // STT_FUNC, STB_LOCAL.
        let kind = match (info & 0xf, info >> 4) {
            (2, 0) => 't',
            (2, _) => 'T',
            (_, 0) => 'd',
            _ => 'D',
        };
        if !name.is_empty() {
            left.name(&name)?;
            builder.add(Gva(value), false, kind, &name);
        }
    }
    Ok(builder.finish())
}
