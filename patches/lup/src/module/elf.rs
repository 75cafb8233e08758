//! The headers and tables of a relocatable ELF file.

use object::LittleEndian as LE;
use object::elf::{
    EM_X86_64, ET_REL, FileHeader64, Rela64, SHF_ALLOC, SHF_EXECINSTR, SHF_WRITE, SHN_ABS, SHN_LORESERVE,
    SHN_UNDEF, SHT_NOBITS, SHT_NULL, SHT_REL, SHT_RELA, SHT_SYMTAB, STB_LOCAL, STT_FUNC, SectionHeader64,
    Sym64,
};
use object::read::elf::{FileHeader, SectionHeader, Sym};

use super::{ModuleError, text_of};
use crate::limits::{MODULE_MEMORY_BYTES, SECTION_ALIGNMENT, SECTION_CHARS, SECTIONS, SYMBOL_CHARS};

/// Bytes of an entry of a table of symbols, and of one of relocations (System V ABI, "Symbol Table" and "Relocation").
const SYMBOL_BYTES: u64 = 24;
const RELOCATION_BYTES: u64 = 24;

/// As errors name them.
const HEADER: &str = "ELF header";
const SECTION_TABLE: &str = "table of sections";
const SYMBOL_TABLE: &str = "table of symbols";

/// A section with its name.
#[derive(Debug, Clone, Copy)]
struct Section<'a> {
    header: &'a SectionHeader64<LE>,
    name: &'a str,
}

/// A symbol with its name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol<'a> {
    entry: &'a Sym64<LE>,
    pub(super) name: &'a str,
}

impl Symbol<'_> {
    /// Whether somebody else has to define it.
    pub(super) fn is_undefined(&self) -> bool {
        self.entry.st_shndx(LE) == SHN_UNDEF
    }

    /// Whether other files of the kernel can refer to it.
    pub(super) fn is_global(&self) -> bool {
        self.entry.st_bind() != STB_LOCAL
    }

    /// Its section's place in the table of sections, if it is in one.
    pub(super) fn section(&self) -> usize {
        usize::from(self.entry.st_shndx(LE).0)
    }

    /// Bytes from the beginning of its section.
    pub(super) fn value(&self) -> u64 {
        self.entry.st_value(LE)
    }

    /// Whether it is one of those that stand for sections.
    pub(super) fn is_nameless(&self) -> bool {
        self.name.is_empty()
    }
}

/// The file, all of whose sections are in it.
#[derive(Debug)]
pub(super) struct Elf<'a> {
    file: &'a [u8],
    sections: Vec<Section<'a>>,
}

impl<'a> Elf<'a> {
    pub(super) fn read(file: &'a [u8]) -> Result<Self, ModuleError> {
        let broken = |what| move |error: object::Error| wrong(what, error.to_string());
        let header = FileHeader64::<LE>::parse(file).map_err(broken(HEADER))?;
        if !header.is_little_endian() {
            return Err(wrong(HEADER, "it is big-endian"));
        }
        kind("machine", header.e_machine(LE).0, EM_X86_64.0)?;
        kind("type", header.e_type(LE).0, ET_REL.0)?;
        let headers = header.section_headers(LE, file).map_err(broken(SECTION_TABLE))?;
        if headers.len() > SECTIONS {
            return Err(wrong(
                SECTION_TABLE,
                format!("it has {} entries, and none has more than {SECTIONS}", headers.len()),
            ));
        }
        let names = header.shstrndx(LE, file).map_err(broken(HEADER))?;
        let names = contents(file, headers, names)
            .ok_or_else(|| wrong(HEADER, "the names of sections are in no section"))?;
        let section = |(index, header): (usize, &'a SectionHeader64<LE>)| {
            let name = text_at(names, header.sh_name(LE), SECTION_CHARS);
            let name = name.ok_or_else(|| {
                wrong(SECTION_TABLE, format!("the name of entry {index} is no text, or too long"))
            })?;
            Ok(Section { header, name })
        };
        let elf = Self { file, sections: headers.iter().enumerate().map(section).collect::<Result<_, _>>()? };
        elf.check_sections()?;
        Ok(elf)
    }

    /// How many sections there are.
    pub(super) fn len(&self) -> usize {
        self.sections.len()
    }

    /// The contents of the first section of that name.
    pub(super) fn section(&self, name: &str) -> Option<&'a [u8]> {
        let section = self.sections.iter().find(|section| section.name == name)?;
        section.header.data(LE, self.file).ok()
    }

    /// Bytes of a function that `symbol` stands for.
    pub(super) fn function_size(&self, symbol: Symbol<'_>) -> Option<u64> {
        let section = self.sections.get(symbol.section())?.header;
        let flags = section.sh_flags(LE);
        let is_code =
            flags.contains(SHF_ALLOC) && flags.contains(SHF_EXECINSTR) && section.sh_type(LE) != SHT_NOBITS;
        let (start, size) = (symbol.entry.st_value(LE), symbol.entry.st_size(LE));
        let fits = start.checked_add(size).is_some_and(|end| end <= section.sh_size(LE));
        (symbol.entry.st_type() == STT_FUNC && is_code && size != 0 && fits).then_some(size)
    }

    /// Which of the parts of a loaded module a section goes into, in the order of their addresses: code, what is read, what is
    /// written (`layout_sections`, `kernel/module/main.c`, Linux 6.1). `None` if it is in none, or thrown away after the start.
    pub(super) fn part(&self, index: usize) -> Option<u8> {
        let section = self.sections.get(index)?;
        let flags = section.header.sh_flags(LE);
        if !flags.contains(SHF_ALLOC) || section.name.starts_with(".init") {
            return None;
        }
        Some(if flags.contains(SHF_EXECINSTR) { 0 } else { 1 + u8::from(flags.contains(SHF_WRITE)) })
    }

    /// The contents of section number `index`.
    pub(super) fn contents(&self, index: usize) -> Option<&'a [u8]> {
        self.sections.get(index)?.header.data(LE, self.file).ok()
    }

    /// The relocations of section number `index`.
    pub(super) fn relocations(&self, index: usize) -> impl Iterator<Item = &'a Rela64<LE>> {
        let is_of = move |header: &SectionHeader64<LE>| {
            header.sh_type(LE) == SHT_RELA && usize::try_from(header.sh_info(LE)) == Ok(index)
        };
        let tables = self.sections.iter().map(|section| section.header).filter(move |header| is_of(header));
        // Each is in the file, and its entries have their size, or the file would not have been read.
        tables.flat_map(|header| header.data_as_array::<Rela64<LE>, _>(LE, self.file).unwrap_or_default())
    }

    fn check_sections(&self) -> Result<(), ModuleError> {
        let mut memory = 0_u64;
        for (index, section) in self.sections.iter().enumerate() {
            self.check_section(section, &mut memory).map_err(|why| ModuleError::Section {
                index,
                name: section.name.to_owned(),
                why,
            })?;
        }
        Ok(())
    }

    fn check_section(&self, section: &Section<'_>, memory: &mut u64) -> Result<(), String> {
        let header = section.header;
        let (kind, offset, size) = (header.sh_type(LE), header.sh_offset(LE), header.sh_size(LE));
        let has_contents = kind != SHT_NOBITS && kind != SHT_NULL;
        if has_contents && offset.checked_add(size).is_none_or(|end| end > self.file.len() as u64) {
            return Err(format!("has {size:#x} bytes at {offset:#x}, beyond the end of the file"));
        }
        if kind == SHT_REL {
            return Err("has relocations without addends, which no x86-64 kernel takes".into());
        }
        if kind == SHT_RELA && !self.is_table_of_relocations(header) {
            return Err("is no table of relocations of another section".into());
        }
        if !header.sh_flags(LE).contains(SHF_ALLOC) {
            return Ok(());
        }
        let alignment = header.sh_addralign(LE);
        if alignment > SECTION_ALIGNMENT || (alignment != 0 && !alignment.is_power_of_two()) {
            return Err(format!(
                "wants to be aligned to {alignment:#x}; only powers of two up to {SECTION_ALIGNMENT:#x} can be"
            ));
        }
        *memory = memory.saturating_add(size);
        if *memory > MODULE_MEMORY_BYTES {
            return Err(format!("brings the module's memory to more than {MODULE_MEMORY_BYTES:#x} bytes"));
        }
        Ok(())
    }

    fn is_table_of_relocations(&self, header: &SectionHeader64<LE>) -> bool {
        let section = |index: u32| self.sections.get(usize::try_from(index).ok()?);
        let symbols = section(header.sh_link(LE));
        header.sh_info(LE) != 0
            && section(header.sh_info(LE)).is_some()
            && symbols.is_some_and(|symbols| symbols.header.sh_type(LE) == SHT_SYMTAB)
            && header.sh_entsize(LE) == RELOCATION_BYTES
            && header.sh_size(LE).is_multiple_of(RELOCATION_BYTES)
    }

    /// Every symbol of the one table that a module has, but for the first entry, which stands for none. There are as many as
    /// the file has bytes for.
    pub(super) fn symbols(
        &self,
    ) -> Result<impl Iterator<Item = Result<Symbol<'a>, ModuleError>>, ModuleError> {
        let mut tables = self.sections.iter().filter(|section| section.header.sh_type(LE) == SHT_SYMTAB);
        let header = tables.next().ok_or(ModuleError::Missing { what: SYMBOL_TABLE })?.header;
        if tables.next().is_some() {
            return Err(wrong(SYMBOL_TABLE, "there is more than one"));
        }
        if header.sh_entsize(LE) != SYMBOL_BYTES || !header.sh_size(LE).is_multiple_of(SYMBOL_BYTES) {
            return Err(wrong(SYMBOL_TABLE, format!("its entries do not have {SYMBOL_BYTES} bytes")));
        }
        let entries: &'a [Sym64<LE>] =
            header.data_as_array(LE, self.file).map_err(|error| wrong(SYMBOL_TABLE, error.to_string()))?;
        let headers: Vec<_> = self.sections.iter().map(|section| section.header).collect();
        let names = contents(self.file, headers, header.sh_link(LE));
        let names = names.ok_or_else(|| wrong(SYMBOL_TABLE, "its names are in no section"))?;
        Ok(entries.iter().enumerate().skip(1).map(|(index, entry)| self.symbol(index, entry, names)))
    }

    fn symbol(&self, index: usize, entry: &'a Sym64<LE>, names: &'a [u8]) -> Result<Symbol<'a>, ModuleError> {
        let name = text_at(names, entry.st_name(LE), SYMBOL_CHARS);
        let name = name.ok_or_else(|| {
            wrong(SYMBOL_TABLE, format!("the name of entry {index} is no text, or too long"))
        })?;
        let section = entry.st_shndx(LE).0;
        // The kernel takes no common symbols either, and knows no section beyond these numbers.
        let is_there = if section < SHN_LORESERVE {
            usize::from(section) < self.sections.len()
        } else {
            section == SHN_ABS.0
        };
        if is_there {
            return Ok(Symbol { entry, name });
        }
        let why = format!("is in section {section:#x}, which the module does not have");
        Err(ModuleError::Symbol { index, name: name.to_owned(), why })
    }
}

/// The contents of section number `index`.
fn contents<'a>(
    file: &'a [u8],
    headers: impl IntoIterator<Item = &'a SectionHeader64<LE>>,
    index: u32,
) -> Option<&'a [u8]> {
    headers.into_iter().nth(usize::try_from(index).ok()?)?.data(LE, file).ok()
}

/// The text that begins at `at`, if it has `limit` characters at most. Names may lie in each other, so that a file can have
/// many long ones in a few bytes: each is looked at no further than that.
fn text_at(names: &[u8], at: u32, limit: usize) -> Option<&str> {
    let rest = names.get(usize::try_from(at).ok()?..)?;
    text_of(&rest[..rest.len().min(limit + 1)])
}

fn kind(field: &'static str, found: u16, wanted: u16) -> Result<(), ModuleError> {
    if found == wanted { Ok(()) } else { Err(ModuleError::Kind { field, found, wanted }) }
}

fn wrong(what: &'static str, why: impl Into<String>) -> ModuleError {
    ModuleError::Elf { what, why: why.into() }
}
