//! The transport: identity, capabilities, status machine, and drivers that get it wrong.

use super::*;
use crate::device::virtio::{RngDevice, rng};

fn bench() -> Bench<RngDevice> {
    Bench::new(|memory, msi| rng(memory, msi).unwrap())
}

/// What a driver does before it notifies.
type Misdeed = fn(&Bench<RngDevice>, &mut Queue);

fn breaks(bench: &Bench<RngDevice>) {
    eventually("DEVICE_NEEDS_RESET", || bench.status() & NEEDS_RESET != 0);
    // And a reset mends it.
    let mut queues = bench.start(VERSION_1, &[8]);
    assert_eq!(bench.status() & NEEDS_RESET, 0);
    bench.post(&mut queues[0], 0, (0x4_0000, 8), WRITE);
    assert_eq!(bench.wait_used(&mut queues[0]), (0, 8));
}

#[test]
fn linux_finds_a_modern_device() {
    let bench = bench();
    assert_eq!(bench.read_config(0x00), 0x1044_1af4);
    assert_eq!(bench.read_config(0x08) & 0xff, 1);
    // virtio_pci_cap: type, BAR, offset and length, by capability.
    let structures: Vec<(u8, u8, u32, u32)> = bench
        .capabilities()
        .iter()
        .filter(|capability| capability.0 == 9)
        .map(|&(_, at)| {
            let [_, _, len, cfg_type] = bench.read_config(at).to_le_bytes();
            assert_eq!(len, if cfg_type == 2 { 20 } else { 16 });
            let bar = bench.read_config(at + 4).to_le_bytes()[0];
            (cfg_type, bar, bench.read_config(at + 8), bench.read_config(at + 12))
        })
        .collect();
    assert_eq!(structures, [(1, 0, 0, 0x3a), (2, 0, 0x3000, 4), (3, 0, 0x1000, 1)]);
    let &(_, notify) = bench.capabilities().get(1).unwrap();
    assert_eq!(bench.read_config(notify + 16), 4);
    assert_eq!(bench.read::<2>(COMMON + 0x12), [1, 0]);
}

#[test]
fn features_are_refused_without_version_1_or_beyond_the_offer() {
    let bench = bench();
    let offered = bench.offered();
    assert_eq!(offered & VERSION_1, VERSION_1);
    assert!(!bench.negotiate(0));
    assert!(!bench.negotiate(EVENT_IDX));
    assert!(!bench.negotiate(VERSION_1 | 1 << 5));
    assert!(!bench.negotiate(VERSION_1 | 1 << 34));
    assert!(bench.negotiate(offered));
    // Settled: a later change is ignored, and bits beyond the first 64 do not exist.
    bench.write(COMMON + 12, &[0; 4]);
    assert_eq!(bench.read::<4>(COMMON + 12), [1, 0, 0, 0]);
    bench.write(COMMON, &2_u32.to_le_bytes());
    assert_eq!(bench.read::<4>(COMMON + 4), [0; 4]);
}

#[test]
fn queues_can_only_be_set_up_in_their_time() {
    let bench = bench();
    let queue = Queue::new(0, 8);
    bench.set_up(&queue);
    assert_eq!(bench.read::<2>(COMMON + 0x1c), [0, 0]);
    let queues = bench.start(VERSION_1, &[8]);
    bench.write(COMMON + 0x20, &[0xff; 4]);
    bench.write(COMMON + 0x18, &[4, 0]);
    assert_eq!(u64::from_le_bytes(bench.read(COMMON + 0x20)), queues[0].descriptors());
    assert_eq!(bench.read::<2>(COMMON + 0x18), [8, 0]);
    bench.write(COMMON + 0x16, &7_u16.to_le_bytes());
    assert_eq!(bench.read::<2>(COMMON + 0x18), [0, 0]);
}

#[test]
fn vectors_out_of_range_read_back_as_none() {
    let bench = bench();
    assert!(bench.negotiate(VERSION_1));
    for (vector, expected) in [(0_u16, 0_u16), (1, 1), (2, 0xffff), (0x7ff, 0xffff), (0xffff, 0xffff)] {
        bench.write(COMMON + 0x10, &vector.to_le_bytes());
        bench.write(COMMON + 0x1a, &vector.to_le_bytes());
        assert_eq!(bench.read(COMMON + 0x10), expected.to_le_bytes());
        assert_eq!(bench.read(COMMON + 0x1a), expected.to_le_bytes());
    }
}

#[test]
fn notifications_nobody_asked_for_do_nothing() {
    let bench = bench();
    for offset in [0, 4, 8, 0xfff, 0xffc] {
        bench.write(NOTIFY + offset, &[0, 0]);
    }
    let queues = bench.start(VERSION_1, &[8]);
    for offset in [0, 2, 4, 0xffe] {
        bench.write(NOTIFY + offset, &[9, 9]);
    }
    thread::sleep(Duration::from_millis(5));
    assert_eq!(bench.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(bench.used_index(&queues[0]), 0);
}

#[test]
fn a_driver_that_skips_negotiation_breaks_the_device() {
    let bench = bench();
    bench.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK);
    breaks(&bench);
}

#[test]
fn a_queue_size_that_cannot_be_breaks_the_device() {
    for size in [0, 3, 32, 0xffff] {
        let bench = bench();
        assert!(bench.negotiate(VERSION_1));
        bench.set_up(&Queue::new(0, size));
        breaks(&bench);
    }
}

#[test]
fn rings_outside_ram_break_the_device() {
    for base in [0, RAM, RAM - 0x3000, 0x4000_0000_0000_0000, !0xffff, 0x1_0001] {
        let bench = bench();
        assert!(bench.negotiate(VERSION_1));
        bench.enable_msix(2);
        bench.set_up(&Queue { number: 0, size: 8, base, avail: 0, seen: 0 });
        bench.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        eventually("a configuration interrupt", || bench.sent.count(0) == 1);
        breaks(&bench);
    }
}

#[test]
fn chains_that_lead_nowhere_break_the_device() {
    const TABLE: u64 = 0x5_0000;
    const BUFFER: (u64, u32) = (0x4_0000, 8);
    let cases: [Misdeed; 9] = [
        // A descriptor that names itself.
        |bench, queue| {
            bench.describe(queue.descriptors(), 0, BUFFER, WRITE | NEXT, 0);
            bench.offer(queue, 0);
        },
        // Two that name each other.
        |bench, queue| {
            bench.describe(queue.descriptors(), 0, BUFFER, WRITE | NEXT, 1);
            bench.describe(queue.descriptors(), 1, BUFFER, WRITE | NEXT, 0);
            bench.offer(queue, 0);
        },
        // A next one behind the table.
        |bench, queue| {
            bench.describe(queue.descriptors(), 0, BUFFER, WRITE | NEXT, 8);
            bench.offer(queue, 0);
        },
        // A head behind the table.
        |bench, queue| bench.offer(queue, 8),
        // A buffer outside RAM, and one that wraps around.
        |bench, queue| {
            bench.describe(queue.descriptors(), 0, (RAM - 4, 8), WRITE, 0);
            bench.offer(queue, 0);
        },
        |bench, queue| {
            bench.describe(queue.descriptors(), 0, (u64::MAX - 3, 0xffff_ffff), WRITE, 0);
            bench.offer(queue, 0);
        },
        // An indirect table longer than the queue, one of no whole entries, and one within another.
        |bench, queue| {
            for index in 0..32 {
                bench.describe(TABLE, index, BUFFER, WRITE | NEXT, index + 1);
            }
            bench.describe(queue.descriptors(), 0, (TABLE, 32 * 16), INDIRECT, 0);
            bench.offer(queue, 0);
        },
        |bench, queue| {
            bench.describe(queue.descriptors(), 0, (TABLE, 17), INDIRECT, 0);
            bench.offer(queue, 0);
        },
        |bench, queue| {
            bench.describe(TABLE, 0, (TABLE, 16), INDIRECT, 0);
            bench.describe(queue.descriptors(), 0, (TABLE, 16), INDIRECT, 0);
            bench.offer(queue, 0);
        },
    ];
    for (number, case) in cases.iter().enumerate() {
        let bench = bench();
        let mut queues = bench.start(VERSION_1, &[8]);
        case(&bench, &mut queues[0]);
        bench.notify(&queues[0]);
        eventually(&format!("the end of case {number}"), || bench.status() & NEEDS_RESET != 0);
        assert_eq!(bench.used_index(&queues[0]), 0, "case {number}");
        breaks(&bench);
    }
}

#[test]
fn an_available_index_that_runs_wild_breaks_the_device() {
    let bench = bench();
    let queues = bench.start(VERSION_1, &[8]);
    bench.memory().write_obj(9_u16, GuestAddress(queues[0].driver() + 2)).unwrap();
    bench.notify(&queues[0]);
    breaks(&bench);
}

#[test]
fn an_indirect_table_as_long_as_the_queue_is_served() {
    let bench = bench();
    let mut queues = bench.start(VERSION_1 | 1 << 28, &[8]);
    for index in 0..8 {
        let flags = if index == 7 { WRITE } else { WRITE | NEXT };
        bench.describe(0x5_0000, index, (0x4_0000 + u64::from(index) * 8, 8), flags, index + 1);
    }
    bench.post(&mut queues[0], 2, (0x5_0000, 8 * 16), INDIRECT);
    assert_eq!(bench.wait_used(&mut queues[0]), (2, 64));
    assert_ne!(bench.bytes(0x4_0038, 8), [0; 8]);
}

#[test]
fn odd_accesses_to_the_bar_are_harmless() {
    let bench = bench();
    for page in 0..8 {
        for offset in (page * 0x1000..page * 0x1000 + 0x48).chain([page * 0x1000 + 0xffc]) {
            for len in 1..=8_usize {
                let mut data = [0xff; 8];
                bench.device.read_bar(0, offset, &mut data[..len]);
                bench.write(offset, &vec![0xff; len]);
            }
        }
    }
    assert!(bench.negotiate(VERSION_1));
}
