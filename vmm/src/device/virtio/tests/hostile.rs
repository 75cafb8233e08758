//! A driver that writes nonsense, from a seed: the device never panics, hangs or leaves the areas that the
//! driver gave it, and works for the next driver that behaves.
//!
//! Every address the driver ever names is outside RAM, or in the area for its purpose below, so the rest of
//! RAM must keep its pattern: an area for descriptors, one for available rings, one for used rings, one for
//! buffers. They are apart because a device writes into the last two, and what it writes must not become
//! a descriptor by accident.

use std::sync::atomic::{AtomicBool, Ordering};

use super::tap::TestTap;
use super::*;
use crate::device::virtio::{net, rng};

const DESCRIPTORS: u64 = 0x2_0000;
const AVAILABLE: u64 = 0x4_0000;
const USED: u64 = 0x6_0000;
const BUFFERS: u64 = 0x8_0000;
const AREA: u64 = 0x1_0000;
/// Longest buffer; as far from the end of its area.
const BUFFER_MAX: u64 = 0x1000;
/// Rings and tables start in the first bytes of their areas.
const PLACES: u64 = 0x400;
const PLACES_LEN: usize = 0x400;
const PATTERN: u8 = 0x5a;

/// The `SplitMix64` generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }

    fn word(&mut self) -> u16 {
        u16::try_from(self.below(1 << 16)).unwrap()
    }

    /// Mostly a place in `area`, else one that is no RAM.
    fn address(&mut self, area: u64, align: u64) -> u64 {
        match self.below(40) {
            0 => self.of(&[RAM, RAM + 0x1000, 0xc000_0000, 1 << 40, 1 << 63, !0xfff]),
            1 => area + self.below(PLACES),
            _ => area + self.below(PLACES / align) * align,
        }
    }
}

struct Attack<'a, D> {
    bench: &'a Bench<D>,
    random: Random,
    queues: u16,
    /// Where the available ring of each queue is, and its index.
    rings: Vec<(u64, u16)>,
}

impl<D: PciDevice> Attack<'_, D> {
    fn step(&mut self) {
        match self.random.below(24) {
            0 if self.random.below(4) == 0 => self.bench.set_status(0),
            1 => {
                let status = self.random.next().to_le_bytes()[0];
                self.bench.set_status(status);
            }
            2 => self.configuration_write(),
            3 => self.bar_write(),
            4 => self.bar_read(),
            5 => self.negotiate_something(),
            6..=12 => self.offer_some(),
            13 => self.available(),
            14..=18 => self.descriptor(),
            _ => {
                let offset = self.random.of(&[0, 4, 4, 0, 8, 0xffe]);
                self.bench.write(NOTIFY + offset, &self.random.word().to_le_bytes());
            }
        }
    }

    /// A set-up that gets as far as it gets, with fields that may be nonsense.
    fn negotiate_something(&mut self) {
        let bench = self.bench;
        let features = VERSION_1 | (bench.offered() & self.random.next());
        if !bench.negotiate(features) {
            return;
        }
        bench.enable_msix(self.queues + 1);
        self.rings.clear();
        for number in 0..self.queues {
            bench.write(COMMON + 0x16, &number.to_le_bytes());
            let size =
                if self.random.below(16) == 0 { self.random.word() } else { 1 << self.random.below(5) };
            bench.write(COMMON + 0x18, &size.to_le_bytes());
            bench.write(COMMON + 0x1a, &self.random.of(&[number + 1, number + 1, 0xffff, 7]).to_le_bytes());
            for (field, area, align) in [(0x20, DESCRIPTORS, 16), (0x28, AVAILABLE, 2), (0x30, USED, 4)] {
                let address = self.random.address(area, align);
                bench.write(COMMON + field, &address.to_le_bytes());
                if area == AVAILABLE && address < RAM {
                    self.rings.push((address, 0));
                }
            }
            if self.random.below(8) != 0 {
                bench.write(COMMON + 0x1c, &1_u16.to_le_bytes());
            }
        }
        // Plausible rings, so that something happens.
        let mut entries = [0; PLACES_LEN + 0x200];
        for entry in entries.chunks_exact_mut(8) {
            entry.copy_from_slice(&(self.random.next() & 0x000f_0007_0003_000f).to_le_bytes());
        }
        bench.memory().write_slice(&entries, GuestAddress(AVAILABLE)).unwrap();
        for &(ring, _) in &self.rings {
            bench.memory().write_slice(&[0; 4], GuestAddress(ring)).unwrap();
        }
        for _ in 0..64 {
            self.descriptor();
        }
        bench.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        // Long enough, mostly, for the worker to get to it.
        thread::sleep(Duration::from_micros(300));
    }

    fn configuration_write(&mut self) {
        // Command register, BAR, message control: anything but what hides the device for good.
        let offset = usize::try_from(self.random.below(256)).unwrap();
        self.bench.write_config(offset, &self.random.next().to_le_bytes()[..4]);
        self.bench.write_config(0x04, &[6, 0]);
    }

    /// Writes anywhere but to queue addresses, which [`Attack::negotiate_something`] chooses.
    fn bar_write(&mut self) {
        let offset = self.random.below(0x8000);
        let len = usize::try_from(1 + self.random.below(8)).unwrap();
        if !(COMMON + 0x19..COMMON + 0x38).contains(&offset) {
            self.bench.write(offset, &self.random.next().to_le_bytes()[..len]);
        }
        let offset = self.random.of(&[0x00, 0x08, 0x0c, 0x10, 0x14, 0x16, 0x18, 0x1a, 0x1c]);
        let value = self.random.next() & self.random.next();
        self.bench.write(COMMON + offset, &value.to_le_bytes()[..self.random.of(&[1, 2, 4])]);
    }

    fn bar_read(&mut self) {
        let mut data = [0; 8];
        let len = usize::try_from(1 + self.random.below(8)).unwrap();
        let offset = self.random.below(0x8000 - 8);
        self.bench.device.read_bar(0, offset, &mut data[..len]);
    }

    /// Makes a few chains available, whatever they are.
    fn offer_some(&mut self) {
        let count = u16::try_from(self.random.below(3)).unwrap();
        for (ring, index) in &mut self.rings {
            *index = index.wrapping_add(count);
            self.bench.memory().write_slice(&index.to_le_bytes(), GuestAddress(*ring + 2)).unwrap();
        }
        for number in 0..u64::from(self.queues) {
            self.bench.write(NOTIFY + number * 4, &[0, 0]);
        }
    }

    fn available(&mut self) {
        let at = AVAILABLE + self.random.below(PLACES / 2) * 2;
        let value = if self.random.below(4) == 0 {
            self.random.word()
        } else {
            u16::try_from(self.random.below(16)).unwrap()
        };
        self.bench.memory().write_obj(value, GuestAddress(at)).unwrap();
    }

    fn descriptor(&mut self) {
        let index = u16::try_from(self.random.below((PLACES + 0x200) / 16)).unwrap();
        let len = match self.random.below(40) {
            0 => 0xfff0_0000 + self.random.below(0x10_0000),
            1 => self.random.below(17),
            _ => self.random.below(BUFFER_MAX),
        };
        let indirect = self.random.below(20) == 0;
        let (address, flags) = if indirect {
            let table = self.random.address(DESCRIPTORS, 16);
            (table, INDIRECT | self.random.of(&[0, NEXT]))
        } else {
            let buffer = match self.random.below(60) {
                0 => self.random.of(&[RAM, RAM - 1, 1 << 40, u64::MAX]),
                _ => BUFFERS + self.random.below(AREA - BUFFER_MAX),
            };
            // The last byte of RAM is nobody's: only a length that leaves RAM goes with it.
            let flags = self.random.of(&[0, 0, WRITE, WRITE, WRITE, NEXT, NEXT | WRITE]);
            (buffer, if buffer == RAM - 1 { flags & !WRITE } else { flags })
        };
        let next = u16::try_from(self.random.below(20)).unwrap();
        self.bench.describe(DESCRIPTORS, index, (address, u32::try_from(len).unwrap()), flags, next);
    }
}

/// Runs `steps` of nonsense, a second vCPU reading and notifying meanwhile.
fn attack<D: PciDevice>(bench: &Bench<D>, queues: u16, seed: u64, steps: u32) {
    let ram = usize::try_from(RAM).unwrap();
    bench.memory().write_slice(&vec![PATTERN; ram], GuestAddress(0)).unwrap();
    for area in [DESCRIPTORS, AVAILABLE, USED, BUFFERS] {
        bench.memory().write_slice(&vec![0; 0x1_0000], GuestAddress(area)).unwrap();
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                bench.write(NOTIFY, &[0, 0]);
                bench.status();
                bench.read::<1>(ISR);
                thread::sleep(Duration::from_micros(50));
            }
        });
        let mut attack = Attack { bench, random: Random(seed), queues, rings: Vec::new() };
        for step in 0..steps {
            attack.step();
            if step % 64 == 0 {
                thread::sleep(Duration::from_micros(100));
            }
            if step % 1024 == 0 {
                bench.gate.close().unwrap();
                bench.set_status(0);
                bench.gate.open();
                assert_eq!(bench.status(), 0, "seed {seed}, step {step}");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    bench.reset();
    let bytes = bench.bytes(0, ram);
    for (at, &byte) in (0_u64..).zip(&bytes) {
        let given =
            [DESCRIPTORS, AVAILABLE, USED, BUFFERS].iter().any(|&area| (area..area + AREA).contains(&at));
        assert!(given || byte == PATTERN, "seed {seed}: the device wrote at {at:#x}");
    }
}

#[test]
fn nonsense_from_a_driver_of_the_entropy_device() {
    let mut served = 0;
    for seed in 0..6 {
        let bench = Bench::new(|memory, msi| rng(memory, msi).unwrap());
        attack(&bench, 1, seed, 20_000);
        let mut queues = bench.start(VERSION_1, &[8]);
        bench.post(&mut queues[0], 0, (0x4_0000, 8), WRITE);
        assert_eq!(bench.wait_used(&mut queues[0]), (0, 8), "seed {seed}");
        served += bench.device.counters().snapshot().requests;
    }
    assert!(served > 100, "the attack went nowhere");
}

#[test]
fn nonsense_from_a_driver_of_the_network_device() {
    let Some(tap) = TestTap::new() else { return };
    let socket = tap.socket();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = socket.send_to(&[1; 900], (tap.guest, 9));
                thread::sleep(Duration::from_micros(100));
            }
        });
        // A panic in here must not leave the other thread running.
        let outcome = std::panic::catch_unwind(|| {
            let mut served = 0;
            for seed in 100..104 {
                tap.is_freed();
                let bench = Bench::new(|memory, msi| net(tap.open(), tap.mac, memory, msi).unwrap());
                attack(&bench, 2, seed, 20_000);
                let counters = bench.device.counters().snapshot();
                served += counters.rx_packets + counters.tx_packets + counters.tx_dropped;
                let mut queues = bench.start(VERSION_1, &[8, 8]);
                bench.post(&mut queues[0], 0, (0x10_0000, 1526), WRITE);
                bench.wait_used(&mut queues[0]);
            }
            assert!(served > 10, "the attack went nowhere");
        });
        done.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
}
