//! A bus: ranges of addresses, each answered by one device.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// A device that answers reads and writes at offsets into its range.
///
/// Called by vCPU threads, by several at once: a device locks what it must and no more. Neither method may
/// wait for another vCPU or enter the DMA gate ([`crate::memory::DeviceMemory::enter`]): a pause waits for
/// the calling thread.
pub trait BusDevice: Send + Sync {
    /// Fills `data` (1 to 8 bytes) with what stands at `offset`; bytes nobody answers for stay as they are
    /// (all ones, as an empty bus reads).
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes `data` (1 to 8 bytes) written at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a device could not be put on a bus.
#[derive(Debug, thiserror::Error)]
#[error("{bus} bus: {start:#x}+{len:#x} is empty, wraps around or overlaps a device")]
pub struct BusError {
    bus: &'static str,
    start: u64,
    len: u64,
}

struct Entry {
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// Devices by address.
pub struct Bus {
    name: &'static str,
    entries: RwLock<BTreeMap<u64, Entry>>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Bus {
    /// An empty bus; `name` appears in errors.
    pub fn new(name: &'static str) -> Self {
        Self { name, entries: RwLock::default() }
    }

    /// Puts `device` at `start`, `len` bytes long.
    pub fn insert(&self, start: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let fail = BusError { bus: self.name, start, len };
        let Some(last) = len.checked_sub(1).and_then(|extra| start.checked_add(extra)) else {
            return Err(fail);
        };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let overlaps =
            entries.range(..=last).next_back().is_some_and(|(&at, entry)| at + (entry.len - 1) >= start);
        if overlaps {
            return Err(fail);
        }
        entries.insert(start, Entry { len, device });
        Ok(())
    }

    /// Reads; an address without a device reads as all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.read(offset, data);
        }
    }

    /// Writes; an address without a device swallows the bytes.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, Arc<dyn BusDevice>)> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let (&start, entry) = entries.range(..=address).next_back()?;
        let offset = address - start;
        // An access that runs over the end of a device belongs to nobody, as on real hardware.
        let end = offset.checked_add(len as u64)?;
        (end <= entry.len).then(|| (offset, Arc::clone(&entry.device)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Echo(Mutex<Vec<u8>>);

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            let at = usize::try_from(offset).unwrap();
            data.copy_from_slice(&self.0.lock().unwrap()[at..at + data.len()]);
        }

        fn write(&self, offset: u64, data: &[u8]) {
            let at = usize::try_from(offset).unwrap();
            self.0.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        }
    }

    fn echo(len: usize) -> Arc<dyn BusDevice> {
        Arc::new(Echo(Mutex::new(vec![0; len])))
    }

    #[test]
    fn accesses_reach_the_device_at_its_offset() {
        let bus = Bus::new("test");
        bus.insert(0x100, 8, echo(8)).unwrap();
        bus.insert(0x108, 8, echo(8)).unwrap();
        bus.write(0x10c, &[7]);
        let mut data = [0; 4];
        bus.read(0x10a, &mut data);
        assert_eq!(data, [0, 0, 7, 0]);
    }

    #[test]
    fn nobody_reads_as_ones_even_half_outside_a_device() {
        let bus = Bus::new("test");
        bus.insert(0x100, 8, echo(8)).unwrap();
        for at in [0xff, 0x105, 0x108, u64::MAX - 1] {
            let mut data = [0; 4];
            bus.read(at, &mut data);
            assert_eq!(data, [0xff; 4], "at {at:#x}");
            bus.write(at, &data);
        }
    }

    #[test]
    fn overlapping_and_wrapping_ranges_are_refused() {
        let bus = Bus::new("test");
        bus.insert(0x100, 8, echo(8)).unwrap();
        for (start, len) in [(0x107, 1), (0xff, 2), (0x80, 0x200), (0x100, 8), (0, 0), (u64::MAX, 2)] {
            assert!(bus.insert(start, len, echo(8)).is_err(), "{start:#x}+{len:#x}");
        }
        bus.insert(0x108, 1, echo(8)).unwrap();
    }
}
