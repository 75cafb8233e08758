//! Parsers that have no entry of their own, for fuzz targets. There is none of this in an ordinary build.

use crate::addr::Gva;
use crate::image::{OrcTable, Relocations, Symbols};

/// Reads the kernel's symbols out of read-only data.
pub fn kallsyms(rodata: &[u8]) -> Option<Symbols> {
    crate::image::kallsyms::read(rodata).ok()
}

/// Reads an unwind table in the layout of 6.1 or of 6.12; half of the bytes are addresses.
pub fn orc(bytes: &[u8], new: bool) -> Option<OrcTable> {
    let count = bytes.len() / (4 + OrcTable::ENTRY);
    let (ips, entries) = bytes.split_at(count * 4);
    let entries = entries[..count * OrcTable::ENTRY].to_vec();
    OrcTable::read(Gva(0xffff_ffff_8200_0000), ips, entries, OrcTable::layout_for_fuzzing(new)).ok()
}

/// Reads the list of what KASLR changes.
pub fn relocations(behind: &[u8]) -> Relocations {
    Relocations::read(behind)
}
