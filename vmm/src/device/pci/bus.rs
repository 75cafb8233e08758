//! The PCI bus: configuration mechanism #1 and the window of memory that BARs live in.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::PciDevice;
use super::config::{BarMapping, ConfigSpace, Identity};
use crate::device::bus::BusDevice;

/// `CONFIG_ADDRESS` and `CONFIG_DATA` (PCI Local Bus 3.0, 3.2.2.3.2).
pub const CONFIG_PORTS: Range<u64> = 0xcf8..0xd00;
/// Guest physical addresses that BARs are placed in: from the end of low RAM to the I/O APIC.
pub const MMIO_WINDOW: Range<u64> = 0xc000_0000..0xfec0_0000;

/// `CONFIG_ADDRESS`, bit 31: accesses to `CONFIG_DATA` are configuration cycles.
const ADDRESS_ENABLE: u32 = 1 << 31;
/// Device numbers on one bus.
const SLOTS: usize = 32;

/// Why a device could not be added.
#[derive(Debug, thiserror::Error)]
pub enum PciBusError {
    /// All 32 device numbers are taken.
    #[error("the PCI bus has no free slot: it takes {SLOTS} devices, the host bridge among them")]
    Full,
    /// The window has no room for the device's BARs.
    #[error("the PCI memory window has no room for a BAR of {len:#x} bytes")]
    NoSpace {
        /// Length of the BAR that did not fit.
        len: u64,
    },
}

struct Route {
    bar: BarMapping,
    device: Arc<dyn PciDevice>,
}

/// Bus 0: up to 32 single-function devices, the host bridge at number 0.
pub struct PciBus {
    slots: RwLock<Vec<Arc<dyn PciDevice>>>,
    /// What decodes where, made anew after each write to a configuration space.
    routes: RwLock<Vec<Route>>,
    next_bar: Mutex<u64>,
    address: Mutex<u32>,
}

impl fmt::Debug for PciBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciBus").finish_non_exhaustive()
    }
}

impl Default for PciBus {
    fn default() -> Self {
        Self::new()
    }
}

impl PciBus {
    /// A bus with only the host bridge on it.
    pub fn new() -> Self {
        Self {
            slots: RwLock::new(vec![Arc::new(HostBridge::new())]),
            routes: RwLock::default(),
            next_bar: Mutex::new(MMIO_WINDOW.start),
            address: Mutex::new(0),
        }
    }

    /// Adds a device, gives its BARs their addresses and returns its device number.
    pub fn add(&self, device: Arc<dyn PciDevice>) -> Result<u8, PciBusError> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= SLOTS {
            return Err(PciBusError::Full);
        }
        let mut config = device.config_space().lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.next_bar.lock().unwrap_or_else(PoisonError::into_inner);
        for (bar, len) in config.bar_sizes().to_vec() {
            let start = next.next_multiple_of(len);
            let end = start.saturating_add(len);
            if end > MMIO_WINDOW.end {
                return Err(PciBusError::NoSpace { len });
            }
            config.place_bar(bar, start);
            *next = end;
        }
        drop(config);
        let number = u8::try_from(slots.len()).expect("at most 32");
        slots.push(device);
        Ok(number)
    }

    /// The device that `CONFIG_ADDRESS` selects, and the offset into its configuration space.
    fn selected(&self, offset: u64) -> Option<(Arc<dyn PciDevice>, usize)> {
        let address = *self.address.lock().unwrap_or_else(PoisonError::into_inner);
        let [register, function, bus, _] = address.to_le_bytes();
        let number = usize::from(function >> 3);
        if address & ADDRESS_ENABLE == 0 || bus != 0 || function & 7 != 0 {
            return None;
        }
        let device = Arc::clone(self.slots.read().unwrap_or_else(PoisonError::into_inner).get(number)?);
        Some((device, usize::from(register & 0xfc) + usize::try_from(offset).ok()?))
    }

    fn rebuild_routes(&self) {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner).clone();
        // Taken before the BARs are read, so that of two rebuilds at once the later sees the newer BARs.
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        routes.clear();
        for device in slots {
            let bars = device.config_space().lock().unwrap_or_else(PoisonError::into_inner).decoded_bars();
            for bar in bars {
                routes.push(Route { bar, device: Arc::clone(&device) });
            }
        }
    }

    fn route(&self, address: u64, len: usize) -> Option<(Arc<dyn PciDevice>, u8, u64)> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.iter().find_map(|route| {
            let offset = address.checked_sub(route.bar.start)?;
            let end = offset.checked_add(len as u64)?;
            (end <= route.bar.len).then(|| (Arc::clone(&route.device), route.bar.bar, offset))
        })
    }

    /// Reads guest physical memory that no RAM answers; `false` when no BAR does either.
    ///
    /// A guest may move a BAR anywhere, also out of [`MMIO_WINDOW`]; RAM wins where both answer, because such
    /// an access never leaves the guest.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((device, bar, offset)) = self.route(address, data.len()) else { return false };
        device.read_bar(bar, offset, data);
        true
    }

    /// Writes guest physical memory that no RAM answers; `false` when no BAR does either.
    pub fn write_memory(&self, address: u64, data: &[u8]) -> bool {
        let Some((device, bar, offset)) = self.route(address, data.len()) else { return false };
        device.write_bar(bar, offset, data);
        true
    }
}

/// The bus as it stands on the I/O port bus, at [`CONFIG_PORTS`].
impl BusDevice for PciBus {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= 4 {
            if let Some((device, register)) = self.selected(offset - 4) {
                device.config_space().lock().unwrap_or_else(PoisonError::into_inner).read(register, data);
            }
        } else if offset == 0 && data.len() == 4 {
            let address = *self.address.lock().unwrap_or_else(PoisonError::into_inner);
            data.copy_from_slice(&address.to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= 4 {
            if let Some((device, register)) = self.selected(offset - 4) {
                device.config_space().lock().unwrap_or_else(PoisonError::into_inner).write(register, data);
                device.config_written();
                self.rebuild_routes();
            }
        } else if let (0, Ok(bytes)) = (offset, <[u8; 4]>::try_from(data)) {
            // Only a full double word reaches CONFIG_ADDRESS; anything else is an ordinary I/O cycle.
            *self.address.lock().unwrap_or_else(PoisonError::into_inner) = u32::from_le_bytes(bytes);
        }
    }
}

/// Device 0: present because an operating system looks for a bridge before it believes in a bus.
struct HostBridge {
    config: Mutex<ConfigSpace>,
}

impl HostBridge {
    fn new() -> Self {
        // An Intel host bridge whose ID no quirk of Linux 6.1 or 6.12 names (drivers/pci/quirks.c,
        // arch/x86/pci/fixup.c).
        let identity = Identity {
            vendor: 0x8086,
            device: 0x0d57,
            class: 0x06_00_00,
            revision: 0,
            subsystem_vendor: 0,
            subsystem: 0,
        };
        Self { config: Mutex::new(ConfigSpace::new(identity)) }
    }
}

impl PciDevice for HostBridge {
    fn config_space(&self) -> &Mutex<ConfigSpace> {
        &self.config
    }

    fn read_bar(&self, _bar: u8, _offset: u64, _data: &mut [u8]) {}

    fn write_bar(&self, _bar: u8, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch {
        config: Mutex<ConfigSpace>,
        byte: Mutex<u8>,
    }

    impl PciDevice for Scratch {
        fn config_space(&self) -> &Mutex<ConfigSpace> {
            &self.config
        }

        fn read_bar(&self, _bar: u8, offset: u64, data: &mut [u8]) {
            data.fill(self.byte.lock().unwrap().wrapping_add(offset.to_le_bytes()[0]));
        }

        fn write_bar(&self, _bar: u8, _offset: u64, data: &[u8]) {
            *self.byte.lock().unwrap() = data[0];
        }
    }

    fn scratch(bars: &[(u8, u64)]) -> Arc<Scratch> {
        let identity =
            Identity { vendor: 1, device: 2, class: 0, revision: 0, subsystem_vendor: 0, subsystem: 0 };
        let mut config = ConfigSpace::new(identity);
        for &(bar, len) in bars {
            config.add_bar(bar, len);
        }
        Arc::new(Scratch { config: Mutex::new(config), byte: Mutex::new(0) })
    }

    fn select(bus: &PciBus, number: u8, register: u8) {
        let address = ADDRESS_ENABLE | (u32::from(number) << 11) | u32::from(register);
        bus.write(0, &address.to_le_bytes());
    }

    #[test]
    fn a_bar_answers_where_it_is_moved_to_and_only_while_enabled() {
        let bus = PciBus::new();
        let number = bus.add(scratch(&[(0, 0x1000)])).unwrap();
        assert!(!bus.read_memory(MMIO_WINDOW.start, &mut [0]));
        select(&bus, number, 0x04);
        bus.write(4, &[2, 0]);
        assert!(bus.write_memory(MMIO_WINDOW.start, &[5]));
        select(&bus, number, 0x10);
        bus.write(4, &0xd000_0000_u32.to_le_bytes());
        assert!(!bus.read_memory(MMIO_WINDOW.start, &mut [0]));
        let mut data = [0; 2];
        assert!(bus.read_memory(0xd000_0004, &mut data));
        assert_eq!(data, [9, 9]);
        assert!(!bus.read_memory(0xd000_0fff, &mut [0; 2]));
    }

    #[test]
    fn absent_functions_read_as_ones() {
        let bus = PciBus::new();
        for address in [ADDRESS_ENABLE | (5 << 11), ADDRESS_ENABLE | (1 << 8), ADDRESS_ENABLE | (1 << 16), 0]
        {
            bus.write(0, &address.to_le_bytes());
            let mut data = [0xff; 4];
            bus.read(4, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}");
            bus.write(4, &[0; 4]);
        }
    }

    #[test]
    fn bars_that_do_not_fit_and_devices_beyond_the_last_slot_are_refused() {
        let bus = PciBus::new();
        assert!(matches!(bus.add(scratch(&[(0, 1 << 32)])), Err(PciBusError::NoSpace { .. })));
        for _ in 1..SLOTS {
            bus.add(scratch(&[])).unwrap();
        }
        assert!(matches!(bus.add(scratch(&[])), Err(PciBusError::Full)));
    }

    #[test]
    fn a_bar_at_the_end_of_the_address_space_does_not_wrap() {
        let bus = PciBus::new();
        let number = bus.add(scratch(&[(0, 0x1000)])).unwrap();
        select(&bus, number, 0x10);
        bus.write(4, &[0xff; 4]);
        select(&bus, number, 0x14);
        bus.write(4, &[0xff; 4]);
        select(&bus, number, 0x04);
        bus.write(4, &[2, 0]);
        assert!(bus.read_memory(u64::MAX, &mut [0]));
        assert!(!bus.read_memory(u64::MAX, &mut [0; 2]));
    }
}
