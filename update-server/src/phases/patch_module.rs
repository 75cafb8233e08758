//! The patch's module as it is in the file: sections, relocations, symbols, and where they are in a guest that has loaded it.

use std::collections::BTreeMap;
use std::ops::Range;

use lucos_lup::module::stubs;
use object::LittleEndian;
use object::elf::{
    EM_X86_64, ET_REL, FileHeader64, RelocationType, SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHN_ABS,
    SHN_COMMON, SHN_UNDEF, SHT_NOBITS, SHT_RELA,
};
use object::read::elf::{FileHeader, Rela, SectionHeader, Sym};

use crate::addr::Gva;
use crate::kernel::space::ReadError;
use crate::limits::{PATCH_MODULE_BYTES, PATCH_RELOCATIONS, PATCH_SECTIONS, PATCH_SYMBOLS};

const LE: LittleEndian = LittleEndian;

/// What is wrong with a module, or with what the guest has of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// The file is no module for this machine.
    #[error("the patch's module: {0}")]
    Malformed(String),
    /// It has more of something than is read.
    #[error("the patch's module has {found} {what}, more than {limit}")]
    TooMany {
        /// What.
        what: &'static str,
        /// How many.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// It wants a symbol that neither the kernel nor the patch has.
    #[error("the patch's module needs {symbol}, which the kernel does not have, or has more than once")]
    Symbol {
        /// The symbol.
        symbol: String,
    },
    /// The guest does not say where a section is.
    #[error("the guest does not say where it has put {section} of the patch's module")]
    NoSection {
        /// The section.
        section: String,
    },
    /// A number does not hold the address that it should.
    #[error(
        "{section}+{offset:#x} of the patch's module cannot reach what it refers to from where the guest has put it"
    )]
    OutOfReach {
        /// The section.
        section: String,
        /// Where in it.
        offset: u64,
    },
    /// What the guest has is not what was sent.
    #[error(
        "the guest's copy of {section} differs at {at}: there is {found:#04x}, not {expected:#04x}; it is not used"
    )]
    Differs {
        /// The section.
        section: String,
        /// Where.
        at: Gva,
        /// The first byte that differs.
        found: u8,
        /// What should be there.
        expected: u8,
    },
    /// It cannot be read.
    #[error("the guest's copy of the patch's module cannot be read: {0}")]
    Unreadable(#[from] ReadError),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Section {
    pub(super) name: String,
    flags: u64,
    empty: bool,
    pub(super) bytes: Range<usize>,
    pub(super) relocations: Vec<Relocation>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Relocation {
    pub(super) offset: u64,
    pub(super) symbol: usize,
    pub(super) kind: RelocationType,
    pub(super) addend: i64,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Symbol {
    pub(super) name: String,
    pub(super) section: usize,
    pub(super) value: u64,
    pub(super) size: u64,
    /// Where in the file its entry is.
    entry: usize,
}

/// A module as it is in the patch.
#[derive(Debug, Clone, PartialEq)]
pub struct PatchModule {
    pub(super) file: Vec<u8>,
    pub(super) sections: Vec<Section>,
    pub(super) symbols: Vec<Symbol>,
}

/// A symbol's place in its section of the table (elf(5), `Elf64_Sym`): `st_shndx` and `st_value`.
const SYMBOL_SECTION: usize = 6;
const SYMBOL_VALUE: usize = 8;

impl PatchModule {
    /// Reads a module.
    pub fn read(file: &[u8]) -> Result<Self, ModuleError> {
        let malformed = |why: &str| ModuleError::Malformed(why.to_owned());
        let broken = |error: object::Error| ModuleError::Malformed(error.to_string());
        let bounded = |what, found: usize, limit| {
            if found > limit { Err(ModuleError::TooMany { what, found, limit }) } else { Ok(()) }
        };
        bounded("bytes", file.len(), PATCH_MODULE_BYTES)?;
        let header = FileHeader64::<LittleEndian>::parse(file).map_err(broken)?;
        if header.e_machine(LE) != EM_X86_64 || header.e_type(LE) != ET_REL {
            return Err(malformed("it is no relocatable file for x86-64"));
        }
        let table = header.sections(LE, file).map_err(broken)?;
        bounded("sections", table.len(), PATCH_SECTIONS)?;
        let symbols = table.symbols(LE, file, object::elf::SHT_SYMTAB).map_err(broken)?;
        bounded("symbols", symbols.len(), PATCH_SYMBOLS)?;
        let strings = symbols.strings();
        let table_at = table
            .section(symbols.section())
            .ok()
            .and_then(|section| usize::try_from(section.sh_offset(LE)).ok())
            .ok_or_else(|| malformed("it has no table of symbols"))?;
        let entry_bytes = size_of::<object::elf::Sym64<LittleEndian>>();
        let symbols = (0..).zip(symbols.iter()).map(|(index, symbol)| {
            let name = strings.get(symbol.st_name(LE)).map_err(|()| malformed("a symbol has no name"))?;
            Ok(Symbol {
                name: String::from_utf8_lossy(name).into_owned(),
                section: usize::from(symbol.st_shndx(LE).0),
                value: symbol.st_value(LE),
                size: symbol.st_size(LE),
                entry: table_at + index * entry_bytes,
            })
        });
        let symbols = symbols.collect::<Result<Vec<_>, ModuleError>>()?;
        let mut sections = Vec::new();
        for section in table.iter() {
            let name = table.section_name(LE, section).map_err(broken)?;
            let (start, len) = (section.sh_offset(LE), section.sh_size(LE));
            let empty = section.sh_type(LE) == SHT_NOBITS;
            let range = if empty { Some(0..0) } else { within(start, len, file.len()) };
            sections.push(Section {
                name: String::from_utf8_lossy(name).into_owned(),
                flags: section.sh_flags(LE).0,
                empty,
                bytes: range.ok_or_else(|| malformed("a section reaches beyond the end of the file"))?,
                relocations: Vec::new(),
            });
        }
        let mut count = 0;
        for section in table.iter().filter(|section| section.sh_type(LE) == SHT_RELA) {
            let Some((relocations, _)) = section.rela(LE, file).map_err(broken)? else { continue };
            count += relocations.len();
            bounded("relocations", count, PATCH_RELOCATIONS)?;
            let target = usize::try_from(section.sh_info(LE)).unwrap_or(usize::MAX);
            let target = sections.get_mut(target).ok_or_else(|| malformed("relocations of no section"))?;
            for relocation in relocations {
                let symbol = relocation.symbol(LE, false).map_or(0, |index| index.0);
                if symbol >= symbols.len() {
                    return Err(malformed("a relocation to no symbol"));
                }
                target.relocations.push(Relocation {
                    offset: relocation.r_offset(LE),
                    symbol,
                    kind: relocation.r_type(LE, false),
                    addend: relocation.r_addend(LE),
                });
            }
        }
        if symbols.iter().any(|symbol| symbol.section == usize::from(SHN_COMMON.0)) {
            return Err(malformed("it was built without -fno-common"));
        }
        Ok(Self { file: file.to_vec(), sections, symbols })
    }

    /// The symbols that it does not have itself.
    pub fn undefined(&self) -> impl Iterator<Item = &str> {
        let undefined = |symbol: &&Symbol| symbol.section == usize::from(SHN_UNDEF.0);
        self.symbols.iter().filter(undefined).map(|symbol| &*symbol.name).filter(|name| !name.is_empty())
    }

    /// The file with each undefined symbol at the address that `resolve` has for it, as the guest is to load it. What has none
    /// is left to the guest's loader.
    pub fn resolved(&self, resolve: impl Fn(&str) -> Option<Gva>) -> Vec<u8> {
        let mut file = self.file.clone();
        for symbol in self.symbols.iter().filter(|symbol| symbol.section == usize::from(SHN_UNDEF.0)) {
            let Some(address) = resolve(&symbol.name) else { continue };
            let entry = &mut file[symbol.entry..];
            entry[SYMBOL_SECTION..SYMBOL_SECTION + 2].copy_from_slice(&SHN_ABS.0.to_le_bytes());
            entry[SYMBOL_VALUE..SYMBOL_VALUE + 8].copy_from_slice(&address.0.to_le_bytes());
        }
        file
    }

    /// Whether the symbol `name` is there once, and in code that stays.
    pub fn check_function(&self, name: &str) -> Result<(), ModuleError> {
        let section = self.sections.get(self.defined(name)?.section);
        if section.is_some_and(|section| section.is_code() && section.is_compared()) {
            return Ok(());
        }
        Err(ModuleError::Malformed(format!("{name} is no function of it that stays")))
    }

    fn defined(&self, name: &str) -> Result<&Symbol, ModuleError> {
        let mut named = self.symbols.iter().filter(|symbol| symbol.name == name && symbol.section != 0);
        match (named.next(), named.next()) {
            (Some(symbol), None) => Ok(symbol),
            _ => Err(ModuleError::Malformed(format!("it has no function {name}, or several"))),
        }
    }

    /// Where the symbol `name` is in a module whose sections are at `at`.
    pub fn symbol(&self, name: &str, at: &BTreeMap<String, Gva>) -> Result<Gva, ModuleError> {
        let symbol = self.defined(name)?;
        let nowhere = || ModuleError::Malformed(format!("{name} is in no section"));
        let section = self.sections.get(symbol.section).ok_or_else(nowhere)?;
        Ok(section.start(at)?.wrapping_add(symbol.value))
    }

    /// Where the code of the function `name` is in a module whose sections are at `at`, with the part that the compiler has
    /// set aside as unlikely (`-freorder-functions`: `NAME.cold`).
    pub fn function(&self, name: &str, at: &BTreeMap<String, Gva>) -> Result<Vec<Range<Gva>>, ModuleError> {
        let cold = format!("{name}.cold");
        let parts = self.symbols.iter().filter(|symbol| symbol.name == name || symbol.name == cold);
        let range = |symbol: &Symbol| {
            let Some(section) = self.sections.get(symbol.section).filter(|_| symbol.section != 0) else {
                return Ok(None);
            };
            let start = section.start(at)?.wrapping_add(symbol.value);
            Ok(Some(start..start.wrapping_add(symbol.size.max(1))))
        };
        parts.filter_map(|symbol| range(symbol).transpose()).collect()
    }

    /// Whether it has room for redirected returns, as [`lucos_lup::module::stubs`] says; why not, if not.
    pub fn check_stubs(&self) -> Result<(), String> {
        let section = self.sections.iter().find(|section| section.name == stubs::SECTION);
        let section = section.ok_or_else(|| format!("it has no section {}", stubs::SECTION))?;
        let bytes = &self.file[section.bytes.clone()];
        let is_ours = section.is_code() && section.is_compared() && section.relocations.is_empty();
        let (stubs, rest) = bytes.as_chunks();
        let is_empty = stubs.len() == stubs::COUNT && stubs.iter().all(|stub| *stub == stubs::EMPTY);
        // Another section must not begin in what is one stub's.
        if is_ours && is_empty && !rest.is_empty() {
            return Ok(());
        }
        Err(format!("its section {} is not as it must be", stubs::SECTION))
    }

    /// Where that is, if there is any.
    pub fn stubs(&self, at: &BTreeMap<String, Gva>) -> Option<Gva> {
        let has = self.check_stubs().is_ok();
        at.get(stubs::SECTION).copied().filter(|start| has && start.0.is_multiple_of(stubs::BYTES as u64))
    }

    /// Where all of its code is that it has for as long as it is loaded, in a module whose sections are at `at`.
    pub fn whole_text(&self, at: &BTreeMap<String, Gva>) -> Result<Vec<Range<Gva>>, ModuleError> {
        let stays = |section: &&Section| {
            section.has(SHF_ALLOC.0) && section.is_code() && !section.name.starts_with(".init")
        };
        let sections = self.sections.iter().filter(stays).filter(|section| !section.bytes.is_empty());
        let range = |section: &Section| {
            let start = section.start(at)?;
            Ok(start..start.wrapping_add(section.bytes.len() as u64))
        };
        sections.map(range).collect()
    }

    /// Where its code is, for those that stay.
    pub fn text(&self, at: &BTreeMap<String, Gva>) -> Result<Vec<Range<Gva>>, ModuleError> {
        let sections = self.sections.iter().filter(|section| section.is_code() && section.is_compared());
        let range = |section: &Section| {
            let start = section.start(at)?;
            Ok(start..start.wrapping_add(section.bytes.len() as u64))
        };
        sections.map(range).collect()
    }
}

impl Section {
    pub(super) fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn is_code(&self) -> bool {
        self.has(SHF_EXECINSTR.0)
    }

    /// Code and constants that stay: not what is freed once the module is loaded, nor what the kernel sorts or writes to.
    pub(super) fn is_compared(&self) -> bool {
        let stays = !self.name.starts_with(".init") && !self.name.starts_with(".exit");
        let constant = self.name.starts_with(".rodata");
        let is_there = !self.empty && !self.bytes.is_empty();
        self.has(SHF_ALLOC.0) && !self.has(SHF_WRITE.0) && stays && is_there && (self.is_code() || constant)
    }

    pub(super) fn start(&self, at: &BTreeMap<String, Gva>) -> Result<Gva, ModuleError> {
        at.get(&self.name).copied().ok_or_else(|| ModuleError::NoSection { section: self.name.clone() })
    }
}

fn within(start: u64, len: u64, end: usize) -> Option<Range<usize>> {
    let start = usize::try_from(start).ok()?;
    let last = start.checked_add(usize::try_from(len).ok()?)?;
    (last <= end).then_some(start..last)
}
