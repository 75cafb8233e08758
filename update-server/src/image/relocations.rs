//! What KASLR changes in the image: numbers that hold an address (arch/x86/tools/relocs.c, `emit_relocs`).
//!
//! A bzImage's payload has three lists behind the ELF file, each with a zero before it; the decompressor applies them
//! backwards from the end (arch/x86/boot/compressed/misc.c, `handle_relocations`).

use std::fmt;

use crate::addr::Gva;
use crate::bytes::{i32_at, u32_at};

/// How a number changes when the kernel moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// 32 bits that grow by the distance.
    Short,
    /// 32 bits that shrink by it: per-CPU data seen from the text.
    Inverse,
    /// 64 bits that grow by it.
    Long,
}

/// All of them, by address.
#[derive(Clone, Default)]
pub struct Relocations {
    list: Vec<(Gva, Kind)>,
}

impl fmt::Debug for Relocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relocations").field("count", &self.list.len()).finish_non_exhaustive()
    }
}

impl Relocations {
    /// Reads what follows the ELF file; an ELF kernel by itself has nothing there, and cannot be moved.
    pub(crate) fn read(behind: &[u8]) -> Self {
        let mut list = Vec::new();
        let mut at = behind.len() & !3;
        for kind in [Kind::Short, Kind::Inverse, Kind::Long] {
            while let Some(before) = at.checked_sub(4) {
                at = before;
                if u32_at(behind, at) == Some(0) {
                    break;
                }
                // Addresses of the kernel are negative as 32-bit numbers.
                let address = i32_at(behind, at).map_or(0, i64::from).cast_unsigned();
                list.push((Gva(address), kind));
            }
        }
        list.sort_unstable();
        Self { list }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Each number that holds an address, by where it is, and whether it has 64 bits; the others have 32, with their sign.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (Gva, bool)> {
        let holds = self.list.iter().filter(|(_, kind)| *kind != Kind::Inverse);
        holds.map(|&(at, kind)| (at, kind == Kind::Long))
    }

    /// Changes `bytes`, which are linked for `start`, as if the kernel had been moved by `distance`.
    pub fn apply(&self, start: Gva, bytes: &mut [u8], distance: u64) {
        // One that begins before the range may reach into it.
        let from = self.list.partition_point(|&(at, _)| at.0.saturating_add(8) <= start.0);
        let end = start.0.saturating_add(bytes.len() as u64);
        for &(at, kind) in self.list[from..].iter().take_while(|(at, _)| at.0 < end) {
            let size = if kind == Kind::Long { 8 } else { 4 };
            // A number cut by the range's end cannot be computed from what is there of it.
            let Some(from) = at.0.checked_sub(start.0).and_then(|from| usize::try_from(from).ok()) else {
                continue;
            };
            let Some(place) = bytes.get_mut(from..from + size) else { continue };
            let mut number = [0; 8];
            number[..size].copy_from_slice(place);
            let old = u64::from_le_bytes(number);
            let new =
                if kind == Kind::Inverse { old.wrapping_sub(distance) } else { old.wrapping_add(distance) };
            place.copy_from_slice(&new.to_le_bytes()[..size]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_lists_are_read_from_the_end() {
        let words = [0, 0x8100_0010_u32, 0, 0x8100_0008, 0, 0x8100_0000, 0x8100_0004];
        let behind: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let relocations = Relocations::read(&behind);
        assert_eq!(relocations.len(), 4);
        let start = Gva(0xffff_ffff_8100_0000);
        let mut bytes = [0; 24];
        relocations.apply(start, &mut bytes, 0x20_0000);
        let word = |at| u32_at(&bytes, at).unwrap();
        assert_eq!([word(0), word(4), word(8), word(12)], [0x20_0000, 0x20_0000, 0xffe0_0000, 0]);
        assert_eq!(bytes[16..], 0x20_0000_u64.to_le_bytes());
        assert!(Relocations::read(&[]).is_empty());
    }
}
