//! The configuration space of one function (PCI Local Bus 3.0, chapter 6).

/// Size of a conventional configuration space, in bytes.
const SIZE: usize = 256;
/// Command register (6.2.2).
const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
/// Command register bit 10, Interrupt Disable, as bit 2 of its second byte.
const COMMAND_INTX_DISABLE: u8 = 1 << 2;
/// Status register, capabilities list bit (6.2.3).
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
/// First base address register (6.2.5).
const BAR0: usize = 0x10;
const BAR_COUNT: u8 = 6;
/// Base address register type bits: 64 bits wide.
const BAR_TYPE_64: u8 = 0b100;
const CAPABILITIES_POINTER: usize = 0x34;
/// Interrupt line, a scratch register for system software (6.2.4).
const INTERRUPT_LINE: usize = 0x3c;
/// First byte behind the standard header (type 0).
const HEADER_END: usize = 0x40;

/// Who a function says it is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code: base class, sub-class and programming interface, 24 bits.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// Where a BAR lies now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarMapping {
    /// BAR number, 0 to 5.
    pub bar: u8,
    /// Guest physical address of its first byte.
    pub start: u64,
    /// Its length in bytes, a power of two.
    pub len: u64,
}

/// The 256 bytes of a type 0 header and its capabilities, with what software may change of them.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// BAR number and length of each 64-bit memory BAR.
    bars: Vec<(u8, u64)>,
    last_capability: usize,
    next_free: usize,
}

impl ConfigSpace {
    /// A space with only the identity in it.
    pub fn new(identity: Identity) -> Self {
        let mut bytes = [0; SIZE];
        bytes[0x00..0x02].copy_from_slice(&identity.vendor.to_le_bytes());
        bytes[0x02..0x04].copy_from_slice(&identity.device.to_le_bytes());
        bytes[0x08] = identity.revision;
        bytes[0x09..0x0c].copy_from_slice(&identity.class.to_le_bytes()[..3]);
        bytes[0x2c..0x2e].copy_from_slice(&identity.subsystem_vendor.to_le_bytes());
        bytes[0x2e..0x30].copy_from_slice(&identity.subsystem.to_le_bytes());
        let mut writable = [0; SIZE];
        writable[COMMAND] = COMMAND_MEMORY | COMMAND_BUS_MASTER;
        writable[COMMAND + 1] = COMMAND_INTX_DISABLE;
        writable[INTERRUPT_LINE] = 0xff;
        Self { bytes, writable, bars: Vec::new(), last_capability: 0, next_free: HEADER_END }
    }

    /// Adds a 64-bit, non-prefetchable memory BAR of `len` bytes as number `bar` and `bar + 1`.
    ///
    /// # Panics
    /// When the device's author asks for what cannot be: a length that is no power of two of at least a
    /// page, or a number that is odd, too large or taken.
    pub fn add_bar(&mut self, bar: u8, len: u64) {
        assert!(len.is_power_of_two() && len >= 4096, "BAR length {len:#x}");
        assert!(bar.is_multiple_of(2) && bar + 1 < BAR_COUNT, "BAR number {bar}");
        assert!(self.bars.iter().all(|&(other, _)| other != bar), "BAR {bar} twice");
        let at = BAR0 + usize::from(bar) * 4;
        self.bytes[at] = BAR_TYPE_64;
        self.writable[at..at + 8].copy_from_slice(&(!(len - 1)).to_le_bytes());
        self.bars.push((bar, len));
    }

    /// Appends a capability and returns the offset of its ID byte.
    ///
    /// `body` is what follows the ID and next-pointer bytes, `writable` the bits of it that software may
    /// change (shorter means zeros).
    ///
    /// # Panics
    /// When the device's author lists more capabilities than fit.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_free;
        let end = at + 2 + body.len();
        assert!(end <= SIZE, "capability {id:#x} does not fit");
        self.bytes[at] = id;
        self.bytes[at + 2..end].copy_from_slice(body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        let pointer = if self.last_capability == 0 { CAPABILITIES_POINTER } else { self.last_capability + 1 };
        self.bytes[pointer] = u8::try_from(at).expect("below 256");
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.last_capability = at;
        self.next_free = end.next_multiple_of(4);
        at
    }

    /// Reads; bytes beyond the space stay as they are.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        if let Some(bytes) = self.bytes.get(offset..).and_then(|bytes| bytes.get(..data.len())) {
            data.copy_from_slice(bytes);
        }
    }

    /// Writes the bits that software may change; the rest, and bytes beyond the space, are ignored.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, &value) in (offset..SIZE).zip(data) {
            let mask = self.writable[at];
            self.bytes[at] = (self.bytes[at] & !mask) | (value & mask);
        }
    }

    /// Gives BAR `bar` its address, as firmware would.
    pub fn place_bar(&mut self, bar: u8, start: u64) {
        self.write(BAR0 + usize::from(bar) * 4, &start.to_le_bytes());
    }

    /// BAR numbers and lengths.
    pub fn bar_sizes(&self) -> &[(u8, u64)] {
        &self.bars
    }

    /// The BARs that decode now: none while memory space is disabled.
    pub fn decoded_bars(&self) -> Vec<BarMapping> {
        if self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return Vec::new();
        }
        self.bars
            .iter()
            .map(|&(bar, len)| {
                let start = self.read_u64(BAR0 + usize::from(bar) * 4) & !(len - 1);
                BarMapping { bar, start, len }
            })
            .collect()
    }

    /// Whether the function may access memory and send MSIs (6.2.2, Bus Master).
    pub fn bus_master(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_BUS_MASTER != 0
    }

    /// The 16 bits at `offset`, which lies in the space.
    pub fn read_u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    fn read_u64(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.bytes[offset..offset + 8]);
        u64::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x10,
            class: 0x01_08_02,
            revision: 2,
            subsystem_vendor: 0,
            subsystem: 0,
        })
    }

    fn read_u32(space: &ConfigSpace, offset: usize) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn identity_is_read_only() {
        let mut space = space();
        space.write(0, &[0; 16]);
        assert_eq!(read_u32(&space, 0), 0x0010_1b36);
        assert_eq!(read_u32(&space, 8), 0x0108_0202);
    }

    #[test]
    fn a_bar_can_be_sized_and_moved() {
        let mut space = space();
        space.add_bar(0, 0x4000);
        space.place_bar(0, 0xc000_4000);
        assert_eq!(read_u32(&space, 0x10), 0xc000_4004);
        space.write(0x10, &[0xff; 8]);
        assert_eq!(read_u32(&space, 0x10), 0xffff_c004);
        assert_eq!(read_u32(&space, 0x14), 0xffff_ffff);
        space.write(0x10, &0x12_0000_8000_u64.to_le_bytes());
        assert_eq!(space.decoded_bars(), []);
        space.write(0x04, &[0x02, 0]);
        assert_eq!(space.decoded_bars(), [BarMapping { bar: 0, start: 0x12_0000_8000, len: 0x4000 }]);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let first = space.add_capability(0x11, &[0; 10], &[0, 0xc0]);
        let second = space.add_capability(0x09, &[1, 2, 3], &[]);
        assert_eq!(usize::from(space.bytes[0x34]), first);
        assert_eq!(usize::from(space.bytes[first + 1]), second);
        assert_eq!(space.bytes[second + 1], 0);
        space.write(first + 2, &[0xff; 10]);
        assert_eq!(space.read_u16(first + 2), 0xc000);
    }

    #[test]
    fn accesses_over_the_end_do_nothing() {
        let mut space = space();
        space.write(254, &[1, 2, 3, 4]);
        let mut data = [9; 4];
        space.read(254, &mut data);
        assert_eq!(data, [9; 4]);
    }
}
