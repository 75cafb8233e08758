//! Tests that drive a device as a guest does: through its BAR and its configuration space.

mod hostile;
mod net;
mod rng;
mod tap;
mod transport;

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use crate::device::pci::{MsiSender, PciDevice};
use crate::memory::{DeviceMemory, DmaGate, GuestMemory, GuestRam};

/// Size of the test guest.
const RAM: u64 = 2 << 20;
/// Nothing takes as long as this unless it hangs.
const DEADLINE: Duration = Duration::from_secs(10);

const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;

/// Descriptor flags (VIRTIO 1.2, 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The messages that a device sent.
#[derive(Default)]
struct Sent(Mutex<Vec<(u64, u32)>>);

impl MsiSender for Sent {
    fn send(&self, address: u64, data: u32) {
        self.0.lock().unwrap().push((address, data));
    }
}

impl Sent {
    /// How often the vector with this message was raised.
    fn count(&self, data: u32) -> usize {
        self.0.lock().unwrap().iter().filter(|message| message.1 == data).count()
    }
}

/// One device with a guest's RAM, and the guest's driver.
struct Bench<D> {
    ram: GuestRam,
    gate: Arc<DmaGate>,
    sent: Arc<Sent>,
    device: Arc<D>,
}

/// A virtqueue of the driver's.
struct Queue {
    number: u16,
    size: u16,
    base: u64,
    avail: u16,
    seen: u16,
}

impl Queue {
    fn new(number: u16, size: u16) -> Self {
        Self { number, size, base: 0x1_0000 + u64::from(number) * 0x4000, avail: 0, seen: 0 }
    }

    fn descriptors(&self) -> u64 {
        self.base
    }

    fn driver(&self) -> u64 {
        self.base + 0x2000
    }

    fn device(&self) -> u64 {
        self.base + 0x3000
    }
}

impl<D: PciDevice> Bench<D> {
    fn new(make: impl FnOnce(DeviceMemory, Arc<dyn MsiSender>) -> Arc<D>) -> Self {
        let ram = GuestRam::new(RAM).unwrap();
        let gate = Arc::new(DmaGate::default());
        let sent = Arc::new(Sent::default());
        let memory = DeviceMemory::new(ram.memory().clone(), Arc::clone(&gate));
        let device = make(memory, Arc::<Sent>::clone(&sent));
        let bench = Self { ram, gate, sent, device };
        bench.write_config(0x04, &[6, 0]);
        bench
    }

    fn memory(&self) -> &GuestMemory {
        self.ram.memory()
    }

    fn read_config(&self, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.device.config_space().lock().unwrap().read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        self.device.config_space().lock().unwrap().write(offset, data);
        self.device.config_written();
    }

    /// All capabilities: ID and offset.
    fn capabilities(&self) -> Vec<(u8, usize)> {
        let mut found = Vec::new();
        let mut at = self.read_config(0x34).to_le_bytes()[0];
        while at != 0 {
            let [id, next, ..] = self.read_config(usize::from(at)).to_le_bytes();
            found.push((id, usize::from(at)));
            at = next;
        }
        found
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        self.device.read_bar(0, offset, &mut data);
        data
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.device.write_bar(0, offset, data);
    }

    fn status(&self) -> u8 {
        self.read::<1>(COMMON + 0x14)[0]
    }

    fn set_status(&self, status: u8) {
        self.write(COMMON + 0x14, &[status]);
    }

    fn reset(&self) {
        self.set_status(0);
        assert_eq!(self.status(), 0);
    }

    fn offered(&self) -> u64 {
        let mut features = 0;
        for half in 0..2_u32 {
            self.write(COMMON, &half.to_le_bytes());
            features |= u64::from(u32::from_le_bytes(self.read(COMMON + 4))) << (32 * half);
        }
        features
    }

    /// Negotiates up to `FEATURES_OK` and says whether that was accepted.
    fn negotiate(&self, features: u64) -> bool {
        self.reset();
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        for half in 0..2_u32 {
            self.write(COMMON + 8, &half.to_le_bytes());
            let [low, high] = [features & 0xffff_ffff, features >> 32];
            let bits = if half == 0 { low } else { high };
            self.write(COMMON + 12, &u32::try_from(bits).unwrap().to_le_bytes());
        }
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.status() & FEATURES_OK != 0
    }

    /// Turns on MSI-X: vector n sends n.
    fn enable_msix(&self, vectors: u16) {
        for vector in 0..vectors {
            let entry = MSIX_TABLE + u64::from(vector) * 16;
            self.write(entry, &0xfee0_0000_u64.to_le_bytes());
            self.write(entry + 8, &u32::from(vector).to_le_bytes());
            self.write(entry + 12, &[0; 4]);
        }
        let &(_, at) = self.capabilities().iter().find(|capability| capability.0 == 0x11).unwrap();
        self.write_config(at + 2, &0x8000_u16.to_le_bytes());
        self.write(COMMON + 0x10, &0_u16.to_le_bytes());
    }

    /// Programs and enables a queue, with vector number + 1.
    fn set_up(&self, queue: &Queue) {
        self.write(COMMON + 0x16, &queue.number.to_le_bytes());
        self.write(COMMON + 0x18, &queue.size.to_le_bytes());
        self.write(COMMON + 0x1a, &(queue.number + 1).to_le_bytes());
        for (at, address) in [(0x20, queue.descriptors()), (0x28, queue.driver()), (0x30, queue.device())] {
            self.write(COMMON + at, &address.to_le_bytes()[..4]);
            self.write(COMMON + at + 4, &address.to_le_bytes()[4..]);
        }
        self.write(COMMON + 0x1c, &1_u16.to_le_bytes());
    }

    /// From reset to `DRIVER_OK`, with empty rings.
    fn start(&self, features: u64, sizes: &[u16]) -> Vec<Queue> {
        assert!(self.negotiate(features));
        self.enable_msix(u16::try_from(sizes.len()).unwrap() + 1);
        let queues: Vec<Queue> = (0..).zip(sizes).map(|(number, &size)| Queue::new(number, size)).collect();
        for queue in &queues {
            self.memory().write_slice(&[0; 0x4000], GuestAddress(queue.base)).unwrap();
            self.set_up(queue);
        }
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        queues
    }

    fn describe(&self, table: u64, index: u16, buffer: (u64, u32), flags: u16, next: u16) {
        let at = GuestAddress(table + u64::from(index) * 16);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&buffer.0.to_le_bytes());
        bytes[8..12].copy_from_slice(&buffer.1.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory().write_slice(&bytes, at).unwrap();
    }

    /// Makes the chain at `head` available, without a notification.
    fn offer(&self, queue: &mut Queue, head: u16) {
        let slot = queue.driver() + 4 + u64::from(queue.avail % queue.size) * 2;
        self.memory().write_obj(head, GuestAddress(slot)).unwrap();
        queue.avail = queue.avail.wrapping_add(1);
        self.memory().write_obj(queue.avail, GuestAddress(queue.driver() + 2)).unwrap();
    }

    fn notify(&self, queue: &Queue) {
        self.write(NOTIFY + u64::from(queue.number) * 4, &queue.number.to_le_bytes());
    }

    /// Offers one buffer as descriptor `index`, and notifies.
    fn post(&self, queue: &mut Queue, index: u16, buffer: (u64, u32), flags: u16) {
        self.describe(queue.descriptors(), index, buffer, flags, 0);
        self.offer(queue, index);
        self.notify(queue);
    }

    fn used_index(&self, queue: &Queue) -> u16 {
        self.memory().read_obj(GuestAddress(queue.device() + 2)).unwrap()
    }

    /// The next used entry, if there is one: head and length.
    fn used(&self, queue: &mut Queue) -> Option<(u32, u32)> {
        if self.used_index(queue) == queue.seen {
            return None;
        }
        let slot = queue.device() + 4 + u64::from(queue.seen % queue.size) * 8;
        queue.seen = queue.seen.wrapping_add(1);
        let read = |at| self.memory().read_obj::<u32>(GuestAddress(at)).unwrap();
        Some((read(slot), read(slot + 4)))
    }

    fn wait_used(&self, queue: &mut Queue) -> (u32, u32) {
        let mut found = None;
        eventually("a used buffer", || {
            found = self.used(queue);
            found.is_some()
        });
        found.unwrap()
    }

    fn bytes(&self, start: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory().read_slice(&mut bytes, GuestAddress(start)).unwrap();
        bytes
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "no sign of {what}");
        thread::sleep(Duration::from_micros(200));
    }
}
