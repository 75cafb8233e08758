//! A module of the kernel's own, as the kernel's package has it: its symbols, and the code of its functions.

use object::LittleEndian as LE;
use object::elf::{
    R_X86_64_32, R_X86_64_32S, R_X86_64_64, R_X86_64_NONE, R_X86_64_PC32, R_X86_64_PC64, R_X86_64_PLT32,
    RelocationType,
};

use super::elf::{Elf, Symbol};
use super::{Module, ModuleError};
use crate::manifest::{Code, Hole};

/// A module that a patch replaces functions of.
#[derive(Debug)]
pub struct StockModule<'a> {
    module: Module<'a>,
    elf: Elf<'a>,
    /// Those that stay when the module has started, by address.
    symbols: Vec<Symbol<'a>>,
}

/// A function's code, as the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    /// Its bytes.
    pub code: Code,
    /// Which of them loading fills in, in order; what the file has there says nothing.
    pub holes: Vec<Hole>,
}

impl<'a> StockModule<'a> {
    /// Reads a module's file.
    pub fn read(file: &'a [u8]) -> Result<Self, ModuleError> {
        let module = Module::read(file)?;
        let elf = Elf::read(file)?;
        let symbols = elf.symbols()?.collect::<Result<Vec<_>, _>>()?.into_iter();
        let mut symbols: Vec<_> =
            symbols.filter(|symbol| !symbol.is_nameless() && elf.part(symbol.section()).is_some()).collect();
        symbols.sort_by_key(|symbol| (elf.part(symbol.section()), symbol.section(), symbol.value()));
        Ok(Self { module, elf, symbols })
    }

    /// Its name, as in `/sys/module`.
    pub fn name(&self) -> &'a str {
        self.module.name()
    }

    /// The release of the kernel that it is a part of.
    pub fn release(&self) -> &'a str {
        self.module.release()
    }

    /// The symbols that stay when it has started, by address once it is loaded: each with its name, and whether other files
    /// can refer to it.
    pub fn symbols(&self) -> impl Iterator<Item = (&'a str, bool)> {
        self.symbols.iter().map(|symbol| (symbol.name, symbol.is_global()))
    }

    /// The function `name`; `position` as in [`crate::manifest::Symbol`].
    pub fn function(&self, name: &str, position: u32) -> Result<Original, ModuleError> {
        let named: Vec<_> = self.symbols.iter().filter(|symbol| symbol.name == name).collect();
        let symbol = match (&named[..], position) {
            ([only], 0) => Some(*only),
            (_, 0) => None,
            (several, _) => usize::try_from(position - 1).ok().and_then(|index| several.get(index).copied()),
        };
        let part = |symbol: &Symbol<'_>| {
            let start = symbol.value();
            let range = start..start.checked_add(self.elf.function_size(*symbol)?)?;
            let bytes = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
            Some((symbol.section(), range, self.elf.contents(symbol.section())?.get(bytes)?))
        };
        let (section, range, code) = symbol.and_then(part).ok_or_else(|| ModuleError::NoFunction {
            module: self.name().to_owned(),
            name: name.to_owned(),
            position,
        })?;
        let mut holes = Vec::new();
        for relocation in self.elf.relocations(section) {
            let at = relocation.r_offset.get(LE);
            let kind = relocation.r_type(LE, false);
            let Some(len) = filled_in(kind) else {
                if range.contains(&at) {
                    let (name, offset) = (name.to_owned(), at - range.start);
                    return Err(ModuleError::Relocation { name, offset, kind: kind.0 });
                }
                continue;
            };
            // One that begins before the function and reaches into it counts, as one that reaches out of it does.
            let (first, last) = (at.max(range.start), at.saturating_add(len).min(range.end));
            if let Some(len) = last.checked_sub(first).filter(|&len| len != 0)
                && let (Ok(offset), Ok(len)) = (u32::try_from(first - range.start), u32::try_from(len))
            {
                holes.push(Hole { offset, len });
            }
        }
        holes.sort_unstable_by_key(|hole| (hole.offset, hole.len));
        holes.dedup();
        Ok(Original { code: code.to_vec().into(), holes })
    }
}

/// How many bytes a relocation fills in: all those that `apply_relocate_add` knows (`arch/x86/kernel/module.c`, Linux 6.1).
fn filled_in(kind: RelocationType) -> Option<u64> {
    match kind {
        R_X86_64_NONE => Some(0),
        R_X86_64_64 | R_X86_64_PC64 => Some(8),
        R_X86_64_32 | R_X86_64_32S | R_X86_64_PC32 | R_X86_64_PLT32 => Some(4),
        _ => None,
    }
}
