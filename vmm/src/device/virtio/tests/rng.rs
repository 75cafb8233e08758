//! The entropy device, and what every device has in common with it.

use super::*;
use crate::device::virtio::{RngDevice, rng};

fn bench() -> Bench<RngDevice> {
    Bench::new(|memory, msi| rng(memory, msi).unwrap())
}

#[test]
fn entropy_arrives_with_its_interrupt() {
    let bench = bench();
    for features in [VERSION_1, VERSION_1 | EVENT_IDX] {
        let before = (bench.sent.count(1), bench.device.counters().snapshot());
        let mut queues = bench.start(features, &[8]);
        let queue = &mut queues[0];
        bench.memory().write_slice(&[0; 256], GuestAddress(0x4_0000)).unwrap();
        bench.post(queue, 3, (0x4_0010, 64), WRITE);
        assert_eq!(bench.wait_used(queue), (3, 64));
        eventually("an interrupt", || bench.sent.count(1) == before.0 + 1);
        assert_eq!(bench.read::<1>(ISR), [1]);
        assert_eq!(bench.read::<1>(ISR), [0]);
        let bytes = bench.bytes(0x4_0000, 256);
        assert_eq!(bytes[..16], [0; 16]);
        assert_ne!(bytes[16..80], [0; 64]);
        assert_eq!(bytes[80..], [0; 176]);
        let after = bench.device.counters().snapshot();
        assert_eq!((after.requests, after.bytes), (before.1.requests + 1, before.1.bytes + 64));
    }
}

#[test]
fn a_huge_request_is_served_in_part() {
    let bench = bench();
    let mut queues = bench.start(VERSION_1, &[8]);
    bench.post(&mut queues[0], 0, (0x8_0000, 0x10_0000), WRITE);
    assert_eq!(bench.wait_used(&mut queues[0]), (0, 256));
    assert_eq!(bench.bytes(0x8_0100, 0x1000), [0; 0x1000]);
}

#[test]
fn the_indices_of_the_rings_wrap_around() {
    let bench = bench();
    let mut queues = bench.start(VERSION_1 | EVENT_IDX, &[16]);
    let queue = &mut queues[0];
    for index in 0..16 {
        bench.describe(queue.descriptors(), index, (0x4_0000, 1), WRITE, 0);
    }
    for batch in 0..(1 << 16) / 16 + 2 {
        (0..16).for_each(|index| bench.offer(queue, index));
        bench.notify(queue);
        for index in 0..16 {
            assert_eq!(bench.wait_used(queue), (index, 1), "batch {batch}");
        }
    }
    assert_eq!(bench.device.counters().snapshot().requests, (1 << 16) + 32);
}

#[test]
fn a_suppressed_interrupt_is_not_sent() {
    let bench = bench();
    let mut queues = bench.start(VERSION_1, &[8]);
    // VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6).
    bench.memory().write_obj(1_u16, GuestAddress(queues[0].driver())).unwrap();
    bench.post(&mut queues[0], 0, (0x4_0000, 8), WRITE);
    bench.wait_used(&mut queues[0]);
    bench.reset();
    assert_eq!(bench.sent.count(1), 0);
}

#[test]
fn a_closed_gate_stops_the_device() {
    let bench = bench();
    let mut queues = bench.start(VERSION_1, &[8]);
    bench.gate.close().unwrap();
    bench.post(&mut queues[0], 0, (0x4_0000, 8), WRITE);
    thread::sleep(Duration::from_millis(30));
    assert_eq!(bench.used_index(&queues[0]), 0);
    assert_eq!(bench.bytes(0x4_0000, 8), [0; 8]);
    assert_eq!(bench.sent.count(1), 0);
    bench.gate.open();
    assert_eq!(bench.wait_used(&mut queues[0]), (0, 8));
}

#[test]
fn a_reset_at_a_closed_gate_ends_at_once_and_for_good() {
    let bench = bench();
    let mut queues = bench.start(VERSION_1, &[8]);
    bench.gate.close().unwrap();
    bench.post(&mut queues[0], 0, (0x4_0000, 8), WRITE);
    thread::sleep(Duration::from_millis(10));
    bench.reset();
    bench.gate.open();
    thread::sleep(Duration::from_millis(30));
    assert_eq!(bench.used_index(&queues[0]), 0);
    assert_eq!(bench.bytes(0x4_0000, 8), [0; 8]);
}

#[test]
fn a_device_that_may_not_master_the_bus_waits() {
    let bench = bench();
    let mut queues = bench.start(VERSION_1, &[8]);
    bench.write_config(0x04, &[2, 0]);
    bench.post(&mut queues[0], 0, (0x4_0000, 8), WRITE);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.used_index(&queues[0]), 0);
    bench.write_config(0x04, &[6, 0]);
    assert_eq!(bench.wait_used(&mut queues[0]), (0, 8));
}

#[test]
fn shutdown_ends_the_worker_even_at_a_closed_gate() {
    let bench = bench();
    let mut queues = bench.start(VERSION_1, &[8]);
    bench.gate.close().unwrap();
    bench.post(&mut queues[0], 0, (0x4_0000, 8), WRITE);
    let start = Instant::now();
    bench.device.shutdown();
    bench.device.shutdown();
    assert!(start.elapsed() < Duration::from_secs(2));
    bench.gate.open();
    thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.used_index(&queues[0]), 0);
}

#[test]
fn no_dma_follows_a_reset_in_mid_traffic() {
    let bench = bench();
    for round in 0..200_u64 {
        let mut queues = bench.start(VERSION_1, &[16]);
        for index in 0..16 {
            bench.describe(queues[0].descriptors(), index, (0x4_0000, 256), WRITE, 0);
            bench.offer(&mut queues[0], index);
        }
        bench.notify(&queues[0]);
        thread::sleep(Duration::from_micros(round));
        bench.reset();
        let (buffer, ring) = (bench.bytes(0x4_0000, 256), bench.bytes(queues[0].device(), 256));
        thread::sleep(Duration::from_micros(300));
        assert_eq!(bench.bytes(0x4_0000, 256), buffer);
        assert_eq!(bench.bytes(queues[0].device(), 256), ring);
    }
}
