//! The module: an ELF relocatable file that a guest's kernel loads.
//!
//! What is read here, the kernel's own loader reads as well (`kernel/module/main.c`, Linux 6.1). It is checked so that no
//! guest is bothered with a file that its kernel must refuse, and so that whoever links the module may rely on its tables.

mod elf;
mod stock;
pub mod stubs;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::limits::{MODULE_BYTES, MODULE_NAME_CHARS};
use crate::manifest::Manifest;
use elf::{Elf, Symbol};

pub use stock::{Original, StockModule};

/// The section that has the kernel's record of the module.
const THIS_MODULE: &str = ".gnu.linkonce.this_module";

/// Where the name is in it: behind the module's state and its place in the list (`struct module`,
/// `include/linux/module.h`, Linux 6.1 and 6.12).
const NAME_OFFSET: usize = 24;

/// Characters of a value in `.modinfo` that is read here: a release, and the names of some options.
const VERMAGIC_CHARS: usize = 256;

/// Why bytes are no module for a 64-bit x86 kernel, or none that goes with its manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// Longer than any.
    #[error(
        "the module has {len:#x} bytes, and none may have more than {MODULE_BYTES:#x}; strip it: `strip --strip-debug`"
    )]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// It is no ELF file, or its headers make no sense.
    #[error("the module's {what} makes no sense: {why}; build it again, or get the whole file")]
    Elf {
        /// Which header or table.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// It is an ELF file of another kind.
    #[error(
        "the module is an ELF file with {field} {found:#x} in its header, and must have {wanted:#x}; name the .ko file"
    )]
    Kind {
        /// Which field.
        field: &'static str,
        /// Its value.
        found: u16,
        /// What a module has.
        wanted: u16,
    },
    /// A section is not as the kernel's loader has it.
    #[error("section {index} ({name}) of the module {why}; build it with the kernel's own Kbuild")]
    Section {
        /// Which one.
        index: usize,
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A symbol is not as the kernel's loader has it.
    #[error("symbol {index} ({name}) of the module {why}; build it with the kernel's own Kbuild")]
    Symbol {
        /// Which one.
        index: usize,
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// It lacks what makes a file a module.
    #[error("the module has no {what}; build it with the kernel's own Kbuild")]
    Missing {
        /// What it has not.
        what: &'static str,
    },
    /// It has another name than its manifest says.
    #[error("the module is named {found:?} and the manifest says module.name {wanted:?}; make both the same")]
    Name {
        /// The module's own.
        found: String,
        /// The manifest's.
        wanted: String,
    },
    /// It was built for another kernel.
    #[error(
        "the module was built for kernel {found:?}, and kernels of the manifest has {wanted}; build it with their headers"
    )]
    Release {
        /// The module's own.
        found: String,
        /// The manifest's.
        wanted: String,
    },
    /// It is a module of the kernel's, and lacks a function.
    #[error(
        "the module {module} has no function {name} number {position} that stays; get the one of this kernel"
    )]
    NoFunction {
        /// The module.
        module: String,
        /// The function.
        name: String,
        /// Which of several, as in a manifest.
        position: u32,
    },
    /// A function of it is changed in a way that is not known here.
    #[error(
        "{name}+{offset:#x} of the module has a relocation of type {kind}, which no module has; get the whole file"
    )]
    Relocation {
        /// The function.
        name: String,
        /// Where in it.
        offset: u64,
        /// `r_type` (`arch/x86/include/asm/elf.h`, Linux 6.1).
        kind: u32,
    },
    /// A symbol of the manifest is not there, or is something else.
    #[error("{field} of the manifest is {name:?}, which the module {why}")]
    Unfit {
        /// Where the manifest names it.
        field: String,
        /// The symbol.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// What a name stands for in the module's table of symbols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Somebody else has to define it.
    Undefined,
    /// A function of the module, with its bytes.
    Function(u64),
    /// Data, a section or whatever else the module has.
    Other,
    /// More than one thing.
    Ambiguous,
}

/// A module's file, with what of it matters to a patch.
#[derive(Debug, Clone)]
pub struct Module<'a> {
    name: &'a str,
    vermagic: &'a str,
    undefined: Vec<&'a str>,
    meanings: HashMap<&'a str, Meaning>,
    sections: usize,
}

impl<'a> Module<'a> {
    /// Reads the headers, the table of symbols and the kernel's records of a module.
    pub fn read(file: &'a [u8]) -> Result<Self, ModuleError> {
        if file.len() > MODULE_BYTES {
            return Err(ModuleError::TooLong { len: file.len() });
        }
        let elf = Elf::read(file)?;
        let symbols = elf.symbols()?;
        let this_module = elf
            .section(THIS_MODULE)
            .ok_or(ModuleError::Missing { what: "section .gnu.linkonce.this_module" })?;
        let name =
            name_in(this_module).ok_or(ModuleError::Missing { what: "name in .gnu.linkonce.this_module" })?;
        let modinfo = elf.section(".modinfo").ok_or(ModuleError::Missing { what: "section .modinfo" })?;
        let vermagic =
            value_of(modinfo, "vermagic").ok_or(ModuleError::Missing { what: "vermagic in .modinfo" })?;
        let mut module =
            Self { name, vermagic, undefined: Vec::new(), meanings: HashMap::new(), sections: elf.len() };
        for symbol in symbols.filter(|symbol| !symbol.as_ref().is_ok_and(Symbol::is_nameless)) {
            module.add(&elf, symbol?);
        }
        Ok(module)
    }

    fn add(&mut self, elf: &Elf<'a>, symbol: Symbol<'a>) {
        let meaning = if symbol.is_undefined() {
            self.undefined.push(symbol.name);
            Meaning::Undefined
        } else {
            elf.function_size(symbol).map_or(Meaning::Other, Meaning::Function)
        };
        match self.meanings.entry(symbol.name) {
            Entry::Vacant(free) => drop(free.insert(meaning)),
            Entry::Occupied(mut taken) => drop(taken.insert(Meaning::Ambiguous)),
        }
    }

    /// Its name, as in `/sys/module`.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// What the kernel compares with its own before it loads the module: release and some options.
    pub fn vermagic(&self) -> &'a str {
        self.vermagic
    }

    /// The release of the kernel that it was built for.
    pub fn release(&self) -> &'a str {
        self.vermagic.split(' ').next().unwrap_or_default()
    }

    /// Its undefined symbols, in the order of its table.
    pub fn undefined(&self) -> &[&'a str] {
        &self.undefined
    }

    /// How many sections it has.
    pub fn sections(&self) -> usize {
        self.sections
    }

    /// Bytes of its function `name`; or why there is no such function.
    pub fn function_size(&self, name: &str) -> Result<u64, &'static str> {
        match self.meanings.get(name) {
            Some(&Meaning::Function(size)) => Ok(size),
            Some(Meaning::Other) => Err("has as something else than a function; name the new function"),
            Some(Meaning::Undefined) => Err("only refers to; compile it into the module"),
            Some(Meaning::Ambiguous) => Err("has more than once; rename all but one"),
            None => Err("does not have; compile it into the module"),
        }
    }

    /// Holds it against its manifest.
    pub fn check(&self, manifest: &Manifest) -> Result<(), ModuleError> {
        if self.name != manifest.module.name {
            let wanted = manifest.module.name.clone();
            return Err(ModuleError::Name { found: self.name.to_owned(), wanted });
        }
        let mut releases = manifest.kernels.iter().map(|kernel| kernel.release.as_str());
        if !releases.any(|release| release == self.release()) {
            let wanted: Vec<&str> = manifest.kernels.iter().map(|kernel| kernel.release.as_str()).collect();
            return Err(ModuleError::Release { found: self.release().to_owned(), wanted: wanted.join(", ") });
        }
        let unfit = |field, name: &str, why| ModuleError::Unfit { field, name: name.to_owned(), why };
        for (index, function) in manifest.functions.iter().enumerate() {
            let field = || format!("functions[{index}].new");
            self.function_size(&function.new).map_err(|why| unfit(field(), &function.new, why))?;
        }
        for (index, import) in manifest.module.symbols.iter().enumerate() {
            if self.meanings.get(import.name.as_str()) != Some(&Meaning::Undefined) {
                let why = "does not leave undefined; take it out of the manifest";
                return Err(unfit(format!("module.symbols[{index}].name"), &import.name, why));
            }
        }
        Ok(())
    }
}

/// The text before the first of its zero bytes.
fn text_of(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|&byte| byte == 0)?;
    str::from_utf8(&field[..end]).ok()
}

/// A name as modules have them: printable, so that it can be shown.
fn name_in(this_module: &[u8]) -> Option<&str> {
    let field = this_module.get(NAME_OFFSET..NAME_OFFSET + MODULE_NAME_CHARS + 1)?;
    text_of(field).filter(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic()))
}

/// The value of `key` in `.modinfo`, which has texts of the form `key=value`, each with a zero byte behind it.
fn value_of<'a>(modinfo: &'a [u8], key: &str) -> Option<&'a str> {
    let mut entries = modinfo.split(|&byte| byte == 0).filter_map(|entry| str::from_utf8(entry).ok());
    let value = entries.find_map(|entry| entry.strip_prefix(key)?.strip_prefix('='))?;
    (value.len() <= VERMAGIC_CHARS && value.bytes().all(|byte| (b' '..=b'~').contains(&byte)))
        .then_some(value)
}
