//! Where RAM lies in the guest's physical address space.

use std::ops::Range;

/// Addresses that never hold RAM: PCI windows, I/O APIC, local APICs, and KVM's private pages.
///
/// 3 GiB to 4 GiB, as QEMU's q35 and Cloud Hypervisor have it: a guest kernel expects the I/O APIC at
/// `0xfec0_0000` and the local APICs at `0xfee0_0000` (Intel SDM vol. 3A, 11.4.1).
pub const MMIO_HOLE: Range<u64> = 0xc000_0000..0x1_0000_0000;

/// One range of RAM: where the guest sees it and where the memfd holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// Guest physical address of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Offset in the memfd of the first byte.
    pub file_offset: u64,
}

/// The RAM of a guest of a given size: one range, or two with the [`MMIO_HOLE`] between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLayout {
    ranges: Vec<RamRange>,
}

impl MemoryLayout {
    /// Lays out `size` bytes.
    pub fn new(size: u64) -> Self {
        let low = size.min(MMIO_HOLE.start);
        let mut ranges = vec![RamRange { start: 0, len: low, file_offset: 0 }];
        if size > low {
            ranges.push(RamRange { start: MMIO_HOLE.end, len: size - low, file_offset: low });
        }
        Self { ranges }
    }

    /// The ranges, by ascending address.
    pub fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }

    /// All RAM together, in bytes.
    pub fn total(&self) -> u64 {
        self.ranges.iter().map(|range| range.len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_up_to_the_hole_is_one_range() {
        let layout = MemoryLayout::new(MMIO_HOLE.start);
        assert_eq!(layout.ranges(), [RamRange { start: 0, len: MMIO_HOLE.start, file_offset: 0 }]);
    }

    #[test]
    fn ram_beyond_the_hole_continues_at_four_gib() {
        let layout = MemoryLayout::new(MMIO_HOLE.start + 4096);
        assert_eq!(
            layout.ranges()[1],
            RamRange { start: MMIO_HOLE.end, len: 4096, file_offset: MMIO_HOLE.start }
        );
        assert_eq!(layout.total(), MMIO_HOLE.start + 4096);
    }
}
