//! Guest RAM as a trap needs it: by *W*, a few bytes at a time, without marks.
//!
//! What is written here is the guest's own write, carried out for it. Only what nobody told of is to be marked.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use update_server::addr::Gpa;
use update_server::guest::{Memory, NoRam};
use vm_memory::{GuestMemoryRegion, VolatileMemory, VolatileSlice};

use crate::memory::{GuestRam, RamRegion};
use crate::sys::PAGE;

/// All RAM of the guest.
#[derive(Debug, Clone)]
pub(super) struct Ram(pub(super) GuestRam);

impl Ram {
    /// The range of RAM with all of `len` bytes from `at` on, and where in it they begin.
    pub(super) fn region(&self, at: Gpa, len: usize) -> Option<(&RamRegion, usize)> {
        // There are two at most.
        self.0.regions().find_map(|region| {
            let offset = usize::try_from(at.0.checked_sub(region.start_addr().0)?).ok()?;
            (offset.checked_add(len)? <= region.writable().len()).then_some((region, offset))
        })
    }

    /// The bytes themselves.
    pub(super) fn slice(&self, at: Gpa, len: usize) -> Option<VolatileSlice<'_, ()>> {
        let (region, offset) = self.region(at, len)?;
        region.writable().slice(offset, len)
    }

    /// Whether the page with `at` is watched.
    pub(super) fn is_watched(&self, at: Gpa) -> bool {
        self.region(at, 1).is_some_and(|(region, offset)| region.marks().is_watched(offset / PAGE))
    }

    /// Writes the lowest `len` bytes of `value` at once, as a processor does when `at` is a multiple of `len`: 1, 2, 4 or 8.
    /// Does nothing, and says so, for any other length or place.
    pub(super) fn store(&self, at: Gpa, value: u64, len: usize) -> bool {
        let Some(slice) = self.slice(at, len) else { return false };
        let bytes = value.to_le_bytes();
        let stored = match len {
            1 => slice.get_atomic_ref::<AtomicU8>(0).map(|place| place.store(bytes[0], Ordering::SeqCst)),
            2 => slice
                .get_atomic_ref::<AtomicU16>(0)
                .map(|place| place.store(u16::from_le_bytes([bytes[0], bytes[1]]), Ordering::SeqCst)),
            4 => slice.get_atomic_ref::<AtomicU32>(0).map(|place| {
                place.store(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]), Ordering::SeqCst);
            }),
            8 => slice.get_atomic_ref::<AtomicU64>(0).map(|place| place.store(value, Ordering::SeqCst)),
            _ => return false,
        };
        stored.is_ok()
    }
}

impl Memory for Ram {
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), NoRam> {
        let slice = self.slice(at, into.len()).ok_or(NoRam { at, len: into.len() })?;
        // An entry of a page table is read at once.
        if into.len() == 8
            && let Ok(word) = slice.get_atomic_ref::<AtomicU64>(0)
        {
            into.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        } else {
            slice.copy_to(into);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_processor_writes_at_once_is() {
        let ram = Ram(GuestRam::new(2 << 20).unwrap());
        for (at, len, can) in
            [(0x1000, 8, true), (0x1004, 4, true), (0x1004, 8, false), (0x1001, 2, false), (0x1000, 3, false)]
        {
            assert_eq!(ram.store(Gpa(at), 0x1122_3344_5566_7788, len), can, "{at:#x}+{len}");
        }
        assert!(!ram.store(Gpa((2 << 20) - 4), 0, 8));
        let mut seen = [0; 9];
        ram.read(Gpa(0x1000), &mut seen).unwrap();
        assert_eq!(seen, [0x88, 0x77, 0x66, 0x55, 0x88, 0x77, 0x66, 0x55, 0]);
        assert!(ram.read(Gpa((2 << 20) - 4), &mut [0; 8]).is_err());
    }
}
