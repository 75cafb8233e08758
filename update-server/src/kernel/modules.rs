//! The kernel's modules, out of guest memory: allegations, good for walking stacks and naming addresses. What is written to them
//! the patch alone decides (`phases::module_function`).

use std::ops::Range;
use std::sync::Arc;

use super::list;
use super::running::Running;
use super::space::ReadError;
use crate::addr::Gva;
use crate::bytes::{u32_at, u64_at};
use crate::guest::Memory;
use crate::image::{OrcTable, Symbols, SymbolsBuilder};
use crate::limits::{MODULE_BYTES, MODULE_ORCS, MODULE_SYMBOLS, MODULES};

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

/// Every module on the kernel's list, and what is in the way where it cannot be followed further. Of those in `known`, which
/// were read before, only what has changed is read again.
pub fn modules(
    kernel: &Running<'_, impl Memory>,
    known: &[Arc<Module>],
) -> (Vec<Arc<Module>>, Option<ReadError>) {
    let mut found = Vec::new();
    let end = follow(kernel, known, &mut found);
    (found, end.err())
}

fn follow(
    kernel: &Running<'_, impl Memory>,
    known: &[Arc<Module>],
    found: &mut Vec<Arc<Module>>,
) -> Result<(), ReadError> {
    let layout = &kernel.model().layout.module;
    let head = kernel.now(kernel.model().symbols.modules);
    let mut budget = Budget { orcs: MODULE_ORCS, symbols: MODULE_SYMBOLS };
    list::walk(kernel.space(), head, |link| {
        if found.len() >= MODULES {
            return Ok(false);
        }
        let mark = Mark::read(kernel, Gva(link.0.wrapping_sub(layout.list)))?;
        // The next one in the list is most often the next one that is known.
        let (behind, before) = known.split_at(found.len().min(known.len()));
        let same = |module: &&Arc<Module>| module.mark == mark && mark.state != ModuleState::Unformed;
        found.push(match before.iter().chain(behind).find(same) {
            Some(module) => Arc::clone(module),
            None => Arc::new(module(kernel, mark, &mut budget)?),
        });
        Ok(true)
    })
    .map(drop)
}

/// What is left to be read of all modules together.
#[derive(Debug)]
struct Budget {
    orcs: usize,
    symbols: usize,
}

/// Takes `wanted` from what is left, or what there is of it.
pub(super) fn take(left: &mut usize, wanted: u32) -> usize {
    let count = usize::try_from(wanted).unwrap_or(usize::MAX).min(*left);
    *left -= count;
    count
}

fn module(kernel: &Running<'_, impl Memory>, mark: Mark, budget: &mut Budget) -> Result<Module, ReadError> {
    let (space, model) = (kernel.space(), kernel.model());
    let name = mark.address.wrapping_add(model.layout.module.name);
    Ok(Module {
        name: space.text(name, model.layout.module_name_bytes)?,
        orc: orc(kernel, &mark, budget),
        symbols: symbols(kernel, mark.address, budget).unwrap_or_default(),
        mark,
    })
}

fn orc(kernel: &Running<'_, impl Memory>, mark: &Mark, budget: &mut Budget) -> Result<OrcTable, String> {
    let count = take(&mut budget.orcs, mark.orc_count);
    let (mut places, mut table) = (vec![0; count * 4], vec![0; count * OrcTable::ENTRY]);
    let mut read = || -> Result<_, ReadError> {
        kernel.space().read(mark.orc_addresses, &mut places)?;
        kernel.space().read(mark.orc_entries, &mut table)
    };
    read().map_err(|error| error.to_string())?;
    let layout = kernel.model().image().orc().layout();
    OrcTable::read(mark.orc_addresses, &places, table, layout).map_err(|error| error.to_string())
}

/// Symbols that are code; `Elf64_Sym` (elf(5)) has 24 bytes: name, info, other, section, value, size.
fn symbols(kernel: &Running<'_, impl Memory>, at: Gva, budget: &mut Budget) -> Result<Symbols, ReadError> {
    const ENTRY: usize = 24;
    let (space, model) = (kernel.space(), kernel.model());
    let table = space.pointer(at.wrapping_add(model.layout.module.kallsyms))?;
    let layout = &model.layout.module_symbols;
    let first = space.pointer(table.wrapping_add(layout.symbols))?;
    let count = space.u32(table.wrapping_add(layout.count))?;
    let strings = space.pointer(table.wrapping_add(layout.strings))?;
    let count = take(&mut budget.symbols, count);
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
        let name = space.text(strings.wrapping_add(u64::from(name)), 512)?;
        // STT_FUNC, STB_LOCAL.
        let kind = match (info & 0xf, info >> 4) {
            (2, 0) => 't',
            (2, _) => 'T',
            (_, 0) => 'd',
            _ => 'D',
        };
        if !name.is_empty() {
            builder.add(Gva(value), false, kind, &name);
        }
    }
    Ok(builder.finish())
}
