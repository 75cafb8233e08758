//! The sections of a kernel's ELF file. Debian strips it of symbols, but its section headers survive.

use std::fmt;

use object::elf::{EM_X86_64, ET_EXEC, FileHeader64, PT_NOTE, SHF_ALLOC, SHT_NOBITS};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{LittleEndian, elf};

use super::ImageError;
use crate::addr::Gva;

/// One section that has an address and bytes.
#[derive(Debug, Clone)]
struct Section {
    name: String,
    start: u64,
    offset: usize,
    len: usize,
}

/// A kernel's ELF file.
#[derive(Clone)]
pub(super) struct Elf {
    bytes: Vec<u8>,
    sections: Vec<Section>,
    build_id: Option<Vec<u8>>,
    /// Where the last section ends in the file: a bzImage's relocations are behind it.
    end: usize,
}

impl fmt::Debug for Elf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Elf").field("sections", &self.sections.len()).finish_non_exhaustive()
    }
}

impl Elf {
    /// Reads the headers of `bytes`.
    pub(super) fn read(bytes: Vec<u8>) -> Result<Self, ImageError> {
        let wrong = |why: &str| ImageError::Elf { why: why.to_owned() };
        let broken = |error: object::Error| ImageError::Elf { why: error.to_string() };
        let file = &*bytes;
        let header = FileHeader64::<LittleEndian>::parse(file).map_err(broken)?;
        if header.e_machine(LittleEndian) != EM_X86_64 || header.e_type(LittleEndian) != ET_EXEC {
            return Err(wrong("it is for another machine, or no program with fixed addresses"));
        }
        let table = header.sections(LittleEndian, file).map_err(broken)?;
        let mut sections = Vec::new();
        let mut end = 0;
        for section in table.iter() {
            if section.sh_type(LittleEndian) == SHT_NOBITS {
                continue;
            }
            let start = usize::try_from(section.sh_offset(LittleEndian)).unwrap_or(usize::MAX);
            let len = usize::try_from(section.sh_size(LittleEndian)).unwrap_or(usize::MAX);
            let name = table.section_name(LittleEndian, section).map_err(broken)?;
            let last = start.saturating_add(len);
            if last > file.len() {
                return Err(ImageError::Truncated { what: "a section", end: last, len: file.len() });
            }
            end = end.max(last);
            if section.sh_flags(LittleEndian).contains(SHF_ALLOC) {
                let name = String::from_utf8_lossy(name).into_owned();
                sections.push(Section { name, start: section.sh_addr(LittleEndian), offset: start, len });
            }
        }
        // The table of sections itself is behind them.
        let shoff = usize::try_from(header.e_shoff(LittleEndian)).unwrap_or(usize::MAX);
        let table_len =
            usize::from(header.e_shnum(LittleEndian)) * usize::from(header.e_shentsize(LittleEndian));
        end = end.max(shoff.saturating_add(table_len)).min(file.len());
        let build_id = build_id(header, file).map_err(broken)?;
        Ok(Self { bytes, sections, build_id, end })
    }

    /// The GNU build-id, by which two kernels are told apart whatever their versions say.
    pub(super) fn build_id(&self) -> Option<&[u8]> {
        self.build_id.as_deref()
    }

    /// The bytes of a section, by its name.
    pub(super) fn section(&self, name: &str) -> Option<&[u8]> {
        self.find(name).map(|section| self.contents(section))
    }

    /// The bytes of a section, with the address of the first.
    pub(super) fn placed(&self, name: &str) -> Option<(Gva, &[u8])> {
        self.find(name).map(|section| (Gva(section.start), self.contents(section)))
    }

    /// The bytes from an address up to the end of its section.
    pub(super) fn from(&self, at: Gva) -> Option<&[u8]> {
        // Per-CPU data begins at 0 and is at no address of its own.
        let within = |section: &&Section| {
            section.start != 0 && at.0 >= section.start && at.0 - section.start < section.len as u64
        };
        let section = self.sections.iter().find(within)?;
        self.contents(section).get(usize::try_from(at.0 - section.start).ok()?..)
    }

    /// `len` bytes at an address, if they are in one section.
    pub(super) fn at(&self, at: Gva, len: usize) -> Option<&[u8]> {
        self.from(at)?.get(..len)
    }

    /// What follows the ELF file.
    pub(super) fn behind(&self) -> &[u8] {
        &self.bytes[self.end..]
    }

    /// Each section with its first address and its length.
    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, Gva, usize)> {
        self.sections.iter().map(|section| (section.name.as_str(), Gva(section.start), section.len))
    }

    fn find(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    fn contents(&self, section: &Section) -> &[u8] {
        // Checked when the headers were read.
        &self.bytes[section.offset..section.offset + section.len]
    }
}

fn build_id(header: &FileHeader64<LittleEndian>, file: &[u8]) -> object::Result<Option<Vec<u8>>> {
    for segment in header.program_headers(LittleEndian, file)? {
        if segment.p_type(LittleEndian) != PT_NOTE {
            continue;
        }
        let Some(mut notes) = segment.notes(LittleEndian, file)? else { continue };
        while let Some(note) = notes.next()? {
            if note.name() == elf::ELF_NOTE_GNU && note.n_type(LittleEndian) == elf::NT_GNU_BUILD_ID {
                return Ok(Some(note.desc().to_vec()));
            }
        }
    }
    Ok(None)
}
