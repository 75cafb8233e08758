//! Compiles functions of a fixed kernel source into a module for a stock kernel.
//!
//! ```text
//! original text --- gcc -S ---> listing --+
//!                                         +-- compare --- select --- assembly --- kbuild ---> module
//! fixed text ------ gcc -S ---> listing --+
//! ```
//!
//! [`make`] reads as that. Both texts of each file (`unit`) are compiled as the kernel's own makefiles would (`kbuild`), with
//! line numbers kept (`lines`), to assembly, which is taken apart into functions and objects (`listing`). What gcc makes of the
//! two is compared (`compare`), because names in a source file tell little of what has code of its own. The functions to
//! replace and what only they need are selected, and all else refers to the kernel's own (`select`): to one of its symbols,
//! which is told from others of the same name by its neighbours (`place`). What is selected of each file (`parts`) goes into a
//! module (`skeleton`) that kbuild makes: so the kernel's own objtool sees just what is kept, and writes unwind tables and the
//! places of returns, retpolines and static calls for it.
//!
//! Without a fix both texts are one, and the functions that are named are compiled as they are.
//!
//! The caller owes: the kernel's compiler; headers, and a source tree of the same version, which nothing is written to; the
//! kernel's table of symbols.
//!
//! What is not seen here: that a structure has another layout, that a lock is held where it was not, that a callback's
//! contract has changed, that a changed header matters to files which are not compiled. Whoever writes the patch answers for that.
#![forbid(unsafe_code)]

mod change;
mod compare;
mod emit;
mod error;
mod kbuild;
mod lines;
mod listing;
mod naming;
mod parts;
mod place;
mod request;
mod run;
mod select;
mod skeleton;
mod statement;
mod symvers;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod unit;
mod words;

use std::collections::BTreeSet;

use lucos_lup::Module;
use lucos_lup::limits::SYMBOLS;
use lucos_lup::manifest::{Import, Symbol};

use parts::{check_names, check_read, functions, import, select};
use request::limit;
use run::{read, scratch};
use select::Selection;
use unit::Unit;

pub use change::{Change, changes};
pub use error::MakeError;
pub use kbuild::Kernel;
pub use place::{Entry, Tables};
pub use request::Request;

/// A function that the module replaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// The kernel's.
    pub old: Symbol,
    /// The new one's symbol in the module.
    pub new: String,
}

/// A module, and what belongs into a patch's manifest with it.
#[derive(Debug, Clone)]
pub struct Made {
    /// The module's file.
    pub module: Vec<u8>,
    /// What it replaces.
    pub functions: Vec<Replacement>,
    /// Its undefined symbols that the kernel does not export, or that others of the same name hide.
    pub symbols: Vec<Import>,
    /// What comes along: functions that the kernel does not have or that are not to be called from outside of their file,
    /// and objects of which a copy is as good. For the author to read.
    pub along: Vec<String>,
    /// What gcc, objtool and modpost have warned of, for the author to read.
    pub warnings: Vec<String>,
}

/// Makes the module that replaces functions of `kernel`, whose symbols are in `tables`.
pub fn make(kernel: &Kernel, tables: &Tables<'_>, request: &Request) -> Result<Made, MakeError> {
    let paths = request.check()?;
    let scratch = scratch()?;
    let exported = kernel.exported()?;
    let units = paths.iter().enumerate().map(|(index, path)| {
        Unit::compile(kernel, path, &request.changes, &scratch.path().join(format!("unit{index}")))
    });
    let units = units.collect::<Result<Vec<_>, _>>()?;
    check_read(request, &units)?;

    let functions = functions(request, &units)?;
    let selections = select(request, &exported, &units, &functions)?;
    check_names(&units, &selections)?;
    let parts: Vec<(&Unit<'_>, &Selection)> = units.iter().zip(&selections).collect();

    let assembly: Vec<String> = parts.iter().map(|(unit, selection)| unit.assembly(selection)).collect();
    let folder = scratch.path().join("module");
    let namespaces: BTreeSet<&str> = assembly.iter().flat_map(|text| exported.namespaces(text)).collect();
    let namespaces: Vec<&str> = namespaces.into_iter().collect();
    let said = kernel.make_module(&folder, &request.module, &assembly, &namespaces, request.stubs)?;
    let module = read(&folder.join(format!("{}.ko", request.module)))?;

    let read = Module::read(&module)?;
    let mut symbols = Vec::new();
    for symbol in read.undefined() {
        symbols.extend(import(tables, &exported, &parts, symbol)?);
    }
    symbols.sort_by(|one: &Import, other| one.name.cmp(&other.name));
    limit("undefined symbols", symbols.len(), SYMBOLS)?;
    let mut replaced = Vec::new();
    for (unit, name) in
        units.iter().zip(&functions).flat_map(|(unit, names)| names.iter().map(move |name| (unit, name)))
    {
        let (old, new) = (unit.origin().place(tables, name)?, select::replacement(name));
        // The new function is what the module must have, whatever the tools have said.
        let wrong = |why| MakeError::Module { why: format!("`{new}`, which a manifest names, it {why}") };
        read.function_size(&new).map_err(wrong)?;
        replaced.push(Replacement { old, new });
    }
    let warnings = said.lines().filter(|line| is_warning(line)).map(str::to_owned).collect();
    let along = parts.iter().flat_map(|(unit, selection)| unit.along(selection)).collect();
    Ok(Made { module, functions: replaced, symbols, along, warnings })
}

/// Symbols without an address are no surprise, and how many of them there are is none either.
fn is_warning(line: &str) -> bool {
    let is_expected = line.contains("undefined!") || line.contains("unresolved symbol");
    line.to_ascii_lowercase().contains("warning") && !is_expected
}
