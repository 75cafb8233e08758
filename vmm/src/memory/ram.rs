//! The guest's RAM.

use std::io;
use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use super::layout::MemoryLayout;
use crate::sys::{self, HUGE_PAGE, Mapping};

/// Guest RAM as the VMM and its devices see it: the *W* mapping, by guest physical address.
///
/// It never hands out a reference to guest bytes; all access is volatile and bounds-checked.
pub type GuestMemory = GuestRegionCollection<RamRegion>;

/// Why guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The host refused a memfd of this size.
    #[error("cannot create {size:#x} bytes of guest memory")]
    Create {
        /// Bytes asked for.
        size: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host refused a mapping of it.
    #[error("cannot map {len:#x} bytes of guest memory for guest address {start:#x}")]
    Map {
        /// Guest physical address of the range.
        start: u64,
        /// Its length in bytes.
        len: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The size is zero or no multiple of the huge page.
    #[error("guest memory of {size:#x} bytes is not a positive multiple of 2 MiB")]
    Size {
        /// Bytes asked for.
        size: u64,
    },
}

/// One contiguous range of guest RAM, with both of its mappings.
#[derive(Debug)]
pub struct RamRegion {
    start: GuestAddress,
    protectable: Mapping,
    writable: Mapping,
}

impl RamRegion {
    /// *P*: the mapping behind KVM's address space 0, whose pages get protected.
    pub fn protectable(&self) -> &Mapping {
        &self.protectable
    }

    /// *W*: the mapping behind KVM's address space 1, always writable.
    pub fn writable(&self) -> &Mapping {
        &self.writable
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.writable.len() as u64
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) -> BS<'_, ()> {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, ()>>, GuestMemoryError> {
        usize::try_from(offset.raw_value())
            .ok()
            .and_then(|offset| self.writable.slice(offset, count))
            .ok_or(GuestMemoryError::InvalidBackendAddress)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

/// All RAM of one guest.
#[derive(Debug, Clone)]
pub struct GuestRam {
    memory: GuestMemory,
    layout: Arc<MemoryLayout>,
}

impl GuestRam {
    /// Creates `size` bytes of zeroed guest RAM; `size` is a multiple of 2 MiB.
    pub fn new(size: u64) -> Result<Self, RamError> {
        if size == 0 || !size.is_multiple_of(HUGE_PAGE as u64) {
            return Err(RamError::Size { size });
        }
        let layout = MemoryLayout::new(size);
        let file =
            sys::memfd(c"lucos-guest-ram", size).map_err(|source| RamError::Create { size, source })?;
        let regions = layout
            .ranges()
            .iter()
            .map(|range| {
                let map = || {
                    let len = usize::try_from(range.len).map_err(io::Error::other)?;
                    Mapping::shared(&file, range.file_offset, len)
                };
                let fail = |source| RamError::Map { start: range.start, len: range.len, source };
                Ok(RamRegion {
                    start: GuestAddress(range.start),
                    protectable: map().map_err(fail)?,
                    writable: map().map_err(fail)?,
                })
            })
            .collect::<Result<Vec<_>, RamError>>()?;
        let memory = GuestMemory::from_regions(regions)
            .expect("the layout's ranges are sorted, not empty and do not overlap");
        Ok(Self { memory, layout: Arc::new(layout) })
    }

    /// The bytes, by guest physical address.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Where they lie.
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// The regions with their mappings, by ascending address.
    pub fn regions(&self) -> impl Iterator<Item = &RamRegion> {
        self.memory.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn both_mappings_show_the_same_bytes() {
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.memory().write_obj(0x1122_3344_u32, GuestAddress(0x20_0ffe)).unwrap();
        let region = ram.regions().next().unwrap();
        let mut seen = [0; 4];
        region.protectable().slice(0x20_0ffe, 4).unwrap().copy_to(&mut seen);
        assert_eq!(u32::from_le_bytes(seen), 0x1122_3344);
        assert_ne!(region.protectable().host_address(), region.writable().host_address());
    }

    #[test]
    fn both_mappings_are_aligned_to_huge_pages() {
        let ram = GuestRam::new(6 << 20).unwrap();
        for region in ram.regions() {
            assert!(region.protectable().host_address().is_multiple_of(HUGE_PAGE as u64));
            assert!(region.writable().host_address().is_multiple_of(HUGE_PAGE as u64));
        }
    }

    #[test]
    fn access_outside_ram_is_refused() {
        let ram = GuestRam::new(2 << 20).unwrap();
        let end = GuestAddress(2 << 20);
        assert!(ram.memory().write_obj(1_u8, end).is_err());
        assert!(ram.memory().write_obj(1_u32, GuestAddress(end.0 - 3)).is_err());
        assert!(ram.memory().read_obj::<u64>(GuestAddress(u64::MAX - 3)).is_err());
    }

    #[test]
    fn odd_sizes_are_refused() {
        assert!(matches!(GuestRam::new(0), Err(RamError::Size { size: 0 })));
        assert!(matches!(GuestRam::new(4096), Err(RamError::Size { .. })));
    }
}
