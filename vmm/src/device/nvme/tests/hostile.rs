//! A guest that means harm.

use std::thread;
use std::time::{Duration, Instant};

use super::driver::{CC, CC_ENABLE, DATA, Guest, create_cq, create_sq, flush, transfer};
use super::driver::{CSTS, Queue};
use crate::device::nvme::spec::{Command, io_opcode};
use crate::device::pci::PciDevice;

/// xorshift64*: the same sequence each time, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    fn dword(&mut self) -> u32 {
        let [a, b, c, d, ..] = self.next().to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Mostly small, sometimes anything.
    fn skewed(&mut self) -> u32 {
        if self.below(3) == 0 { self.dword() } else { self.dword() & 0xff }
    }

    /// Where a guest might point a device: into its RAM, at its edges, or nowhere.
    fn address(&mut self) -> u64 {
        let page = self.below(256) << 12;
        match self.below(8) {
            0 => self.next(),
            1 => (16 << 20) - 4096 + self.below(8192),
            2 => 0xfee0_0000 + self.below(4096),
            3 => DATA + page + self.below(4096),
            4 => u64::MAX - self.below(1 << 20),
            _ => DATA + page,
        }
    }
}

fn command(random: &mut Random) -> Command {
    Command {
        opcode: random.pick(&[0, 1, 2, 4, 5, 6, 8, 9, 0x0a, 0x0c, 0x7c, 1, 2, 8, 9, 0xff]),
        flags: random.pick(&[0, 0, 0, 0, 0, 0, 0, 0x40, 1]),
        id: 0,
        namespace: random.pick(&[1, 1, 1, 1, 0, 2, u32::MAX]),
        prp1: random.address(),
        prp2: random.address(),
        dwords: [
            random.skewed(),
            if random.below(2) == 0 { 0 } else { random.skewed() },
            random.skewed(),
            random.skewed(),
            random.skewed(),
            random.skewed(),
        ],
    }
}

#[test]
fn queues_outside_ram_are_fatal_for_the_controller_only() {
    let guest = Guest::new(64, false, 1);
    for (asq, acq, aqa, cc) in [
        (1_u64 << 40, 0x11_0000_u64, 0x001f_001f, CC_ENABLE),
        (0x10_0000, 1 << 40, 0x001f_001f, CC_ENABLE),
        (0x10_0000, (16 << 20) - 4096, 0x0fff_001f, CC_ENABLE),
        (u64::MAX, u64::MAX, 0x001f_001f, CC_ENABLE),
        (0x10_0000, 0x11_0000, 0, CC_ENABLE),
        (0x10_0000, 0x11_0000, 0x001f_001f, CC_ENABLE | (1 << 7)),
        (0x10_0000, 0x11_0000, 0x001f_001f, CC_ENABLE | (6 << 4)),
    ] {
        guest.write32(0x24, aqa);
        guest.nvme.write_bar(0, 0x28, &asq.to_le_bytes());
        guest.nvme.write_bar(0, 0x30, &acq.to_le_bytes());
        guest.write32(CC, cc);
        guest.wait_for_status(3, 2);
        guest.disable();
    }
    guest.enable();
}

#[test]
fn doorbells_out_of_range_are_ignored() {
    let guest = Guest::ready(64, false, 2);
    let mut queue = guest.create(1, 8);
    for offset in (0x1000..0x2000).step_by(4) {
        if ![0x1000, 0x1004].contains(&offset) {
            guest.write32(offset, 0xffff_ffff);
            guest.write32(offset, 8);
        }
    }
    thread::sleep(Duration::from_millis(5));
    assert_eq!(guest.poll(&mut queue), None);
    assert_eq!(guest.read32(CSTS), 1);
    assert_eq!(guest.run(&mut queue, &flush()).status, 0);
}

#[test]
fn a_doorbell_beyond_what_was_written_runs_whatever_stands_there() {
    let guest = Guest::ready(64, false, 1);
    let mut queue = guest.create(1, 64);
    let entries: Vec<u8> = (0..64 * 64_u32).map(|at| (at * 37).to_le_bytes()[0]).collect();
    guest.write(queue.sq, &entries);
    guest.write32(0x1008, 63);
    for _ in 0..63 {
        assert_ne!(guest.wait(&mut queue).status, 0);
    }
}

#[test]
fn a_shadow_with_nonsense_in_it_is_ignored() {
    let guest = Guest::ready(64, false, 1);
    let mut queue = Queue { shadow: true, ..guest.create(1, 8) };
    guest.use_shadow();
    guest.write(super::driver::SHADOW, &[0xa5; 4096]);
    guest.write32(0x1008, 1);
    thread::sleep(Duration::from_millis(5));
    assert_eq!(guest.poll(&mut queue), None);
    guest.write(super::driver::SHADOW, &[0; 4096]);
    assert_eq!(guest.run(&mut queue, &flush()).status, 0);
}

/// Everything at once from several threads: random commands in real queues, random doorbells, registers and
/// resets. The controller may refuse, fail and be reset; it must not panic, stick, or touch what it was
/// never given.
#[test]
fn random_guests_break_nothing() {
    const GUARD: u64 = 0xc0_0000;
    let seeds = [1, 0x9e37_79b9_7f4a_7c15, 0xdead_beef];
    for seed in seeds {
        let guest = Guest::ready(256, false, 3);
        // Never named in any command but by numbers drawn from all 64 bits: guard it.
        guest.write(GUARD, &vec![0x77; 4 << 20]);
        let end = Instant::now() + Duration::from_secs(1);
        thread::scope(|scope| {
            for worker in 0..2_u64 {
                let guest = &guest;
                scope.spawn(move || {
                    let mut random = Random(seed ^ (worker + 1).wrapping_mul(0x1234_5678_9abc_def1));
                    while Instant::now() < end {
                        assault(guest, &mut random);
                    }
                });
            }
        });
        guest.write32(CC, 0);
        guest.wait_for_status(0xf, 0);
        let edge = 4096;
        let guarded = guest.read(GUARD, (4 << 20) - edge);
        assert!(guarded.iter().all(|&byte| byte == 0x77), "seed {seed:#x}: memory changed that nobody named");
        assert_eq!(std::fs::metadata(&guest.image).unwrap().len(), 256 * 512);
        // And it still works.
        guest.config_write(0x04, &[6, 0]);
        guest.enable();
        let mut queue = guest.create(1, 8);
        assert_eq!(guest.run(&mut queue, &transfer(io_opcode::READ, 0, 8, DATA, 0)).status, 0);
    }
}

fn assault(guest: &Guest, random: &mut Random) {
    match random.below(64) {
        0 => guest.write32(CC, random.pick(&[0, CC_ENABLE, CC_ENABLE, CC_ENABLE | (1 << 14), u32::MAX])),
        1 => guest.write32(random.below(0x40) & !3, random.dword()),
        2 => {
            guest.write32(0x24, 0x001f_001f);
            guest.nvme.write_bar(0, 0x28, &Queue::new(0, 32).sq.to_le_bytes());
            guest.nvme.write_bar(0, 0x30, &Queue::new(0, 32).cq.to_le_bytes());
            guest.write32(CC, 0);
            guest.write32(CC, CC_ENABLE);
        }
        3 => {
            let mut data = [0; 8];
            let len = usize::try_from(random.below(8)).unwrap() + 1;
            guest.nvme.read_bar(0, random.below(0x3ff8), &mut data[..len]);
        }
        4 => {
            let len = usize::try_from(random.below(8)).unwrap() + 1;
            guest.nvme.write_bar(0, random.below(0x1ff8), &random.next().to_le_bytes()[..len]);
        }
        5 => guest.config_write(0x04, &[random.pick(&[2, 6, 6, 6, 6]), 0]),
        6..12 => {
            let id = u16::try_from(random.below(5)).unwrap();
            let queue = Queue::new(id, random.pick(&[2, 8, 64]));
            let mut bytes = create_cq(&queue);
            if random.below(2) == 0 {
                bytes = create_sq(&queue);
            }
            submit(guest, random, 0, &bytes);
        }
        _ => {
            let queue = u16::try_from(random.below(4)).unwrap();
            let mut command = command(random);
            // Queues stay where the test looks for them: the admin queue makes none at random places.
            if queue == 0 && [1, 5].contains(&command.opcode) {
                command.opcode = 6;
            }
            submit(guest, random, queue, &command);
        }
    }
}

/// Puts a command into some slot of a ring and rings some doorbell value.
fn submit(guest: &Guest, random: &mut Random, queue: u16, command: &Command) {
    let ring = Queue::new(queue, 64);
    let slot = u16::try_from(random.below(64)).unwrap();
    let mut at = Queue { sq: ring.sq + u64::from(slot) * 64, ..ring };
    guest.push(&mut at, command);
    let doorbell = 0x1000 + u64::from(queue) * 8;
    let value = if random.below(20) == 0 { random.dword() } else { random.dword() & 63 };
    guest.write32(doorbell, value);
    guest.write32(doorbell + 4, random.dword() & 63);
}
