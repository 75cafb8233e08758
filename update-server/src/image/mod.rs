//! The kernel image that a guest was booted from, and all that the host learns from it.
//!
//! The guest cannot change it: what is read here is trusted, as far as the image is. [`Image::read`] is the way in.

mod btf;
mod elf;
mod error;
pub(crate) mod kallsyms;
mod orc;
mod payload;
mod relocations;
mod sites;
mod symbols;
mod tables;

use std::fmt;

pub use btf::{Btf, Field, TypeError};
pub use error::ImageError;
pub use orc::{Base, FrameKind, OrcEntry, OrcTable, Register};
pub use relocations::Relocations;
pub(crate) use sites::trampolines;
pub use sites::{JumpLabel, Site, SiteKind, Sites};
pub(crate) use symbols::SymbolsBuilder;
pub use symbols::{Symbol, Symbols};
pub(crate) use tables::{AlternativeLayout, CODE, NOP5, Table, entry_bytes};

use crate::addr::Gva;
use crate::bytes::{i32_at, u64_at};
use elf::Elf;
use orc::OrcLayout;

/// The GNU build-id: two kernels with the same one are the same kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BuildId(Vec<u8>);

impl BuildId {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A kernel image, read.
#[derive(Clone)]
pub struct Image {
    elf: Elf,
    banner: String,
    build_id: BuildId,
    symbols: Symbols,
    types: Btf,
    orc: OrcTable,
    sites: Sites,
    relocations: Relocations,
}

impl Image {
    /// Reads a bzImage (LZ4, XZ, zstd or gzip) or an ELF kernel.
    pub fn read(file: &[u8]) -> Result<Self, ImageError> {
        let elf = Elf::read(payload::unpack(file)?.into_owned())?;
        let missing = |what: &str, needed_for, option| ImageError::Missing {
            what: what.to_owned(),
            needed_for,
            option,
        };
        let rodata = elf
            .section(".rodata")
            .ok_or_else(|| missing(".rodata", "finding functions", "CONFIG_KALLSYMS"))?;
        let symbols = kallsyms::read(rodata)?;
        let btf = elf.section(".BTF");
        let btf = btf.ok_or_else(|| missing(".BTF", "reading structures", "CONFIG_DEBUG_INFO_BTF"))?;
        let types = Btf::read(btf.to_vec())?;
        let no_orc = || missing(".orc_unwind", "walking stacks", "CONFIG_UNWINDER_ORC");
        let (ips_at, ips) = elf.placed(".orc_unwind_ip").ok_or_else(no_orc)?;
        let entries = elf.section(".orc_unwind").ok_or_else(no_orc)?.to_vec();
        let orc = OrcTable::read(ips_at, ips, entries, OrcLayout::of(&types)?)?;
        let holds = |at: Gva| {
            elf.sections()
                .any(|(_, start, len)| at.offset_from(start).is_some_and(|offset| offset <= len as u64))
        };
        if !orc.range().is_some_and(|(first, last)| holds(first) && holds(last)) {
            return Err(ImageError::malformed(".orc_unwind_ip", 0, "the addresses are not the kernel's"));
        }
        let sites = sites::read(&elf, &symbols, &types)?;
        let relocations = Relocations::read(elf.behind());
        let build_id =
            elf.build_id().ok_or_else(|| missing("build-id", "telling kernels apart", "LD --build-id"))?;
        let build_id = BuildId(build_id.to_vec());
        let banner = banner(&elf, &symbols)
            .ok_or_else(|| missing("symbol linux_banner", "naming the kernel", "CONFIG_KALLSYMS_ALL"))?;
        Ok(Self { elf, banner, build_id, symbols, types, orc, sites, relocations })
    }

    /// What the kernel says of itself: `Linux version …`.
    pub fn banner(&self) -> &str {
        &self.banner
    }

    /// The release, as `uname -r` prints it.
    pub fn release(&self) -> &str {
        self.banner.split(' ').nth(2).unwrap_or_default()
    }

    /// By which this kernel is told from others.
    pub fn build_id(&self) -> &BuildId {
        &self.build_id
    }

    /// Its symbols, at the addresses it was linked for.
    pub fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// Its types.
    pub fn types(&self) -> &Btf {
        &self.types
    }

    /// Its unwind table, at the addresses it was linked for.
    pub fn orc(&self) -> &OrcTable {
        &self.orc
    }

    /// The places of its text that may change, at the addresses it was linked for.
    pub fn sites(&self) -> &Sites {
        &self.sites
    }

    /// What KASLR changes in it.
    pub fn relocations(&self) -> &Relocations {
        &self.relocations
    }

    /// `len` bytes as they are in the image, at an address it was linked for.
    pub fn bytes(&self, at: Gva, len: usize) -> Option<&[u8]> {
        self.elf.at(at, len)
    }

    /// `len` bytes as they are when the kernel has been moved by `distance`, at an address it was linked for.
    pub fn moved_bytes(&self, at: Gva, len: usize, distance: u64) -> Option<Vec<u8>> {
        // A number that is moved may lie across either end; of what is outside the section, nothing is.
        const WIDEST: usize = 8;
        let start = Gva(at.0.wrapping_sub(WIDEST as u64));
        let around = |at: Gva| self.bytes(at, WIDEST).unwrap_or(&[0; WIDEST]);
        let mut bytes = [around(start), self.bytes(at, len)?, around(at.wrapping_add(len as u64))].concat();
        self.relocations.apply(start, &mut bytes, distance);
        Some(bytes[WIDEST..WIDEST + len].to_vec())
    }

    /// Every address in its text and data that KASLR changes: where it is, and what it is. An ELF kernel by itself has no list of
    /// them.
    pub fn pointers(&self) -> impl Iterator<Item = (Gva, Gva)> {
        self.relocations.addresses().filter_map(|(at, long)| {
            let bytes = self.bytes(at, if long { 8 } else { 4 })?;
            let value = if long { u64_at(bytes, 0)? } else { i64::from(i32_at(bytes, 0)?).cast_unsigned() };
            Some((at, Gva(value)))
        })
    }

    /// Each section that has an address and bytes: its name, first address and length.
    pub fn sections(&self) -> impl Iterator<Item = (&str, Gva, usize)> {
        self.elf.sections()
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("banner", &self.banner)
            .field("build_id", &self.build_id)
            .finish_non_exhaustive()
    }
}

fn banner(elf: &Elf, symbols: &Symbols) -> Option<String> {
    let bytes = elf.from(symbols.only("linux_banner")?.address)?;
    let end = bytes.iter().position(|&byte| byte == 0 || byte == b'\n')?;
    Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
}
