//! Many threads, full queues, shadow doorbells, pauses, resets and ends in the middle of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::driver::{CC, CC_ENABLE, DATA, EVENTS, Guest, Queue, SHADOW, flush, pattern, transfer};
use crate::device::nvme::spec::{Command, admin_opcode, io_opcode};

const QUEUES: u16 = 4;

/// Reads random-looking blocks with many commands in flight until `commands` are done.
fn load(guest: &Guest, mut queue: Queue, commands: u32) {
    let base = DATA + u64::from(queue.id) * 0x10_0000;
    let slot = |id: u16| base + u64::from(id % 128) * 4096;
    let block = |id: u16| u64::from(id).wrapping_mul(2_654_435_761) % 500;
    let (mut sent, mut done) = (0, 0);
    let depth = u32::from(queue.size) - 1;
    while done < commands {
        while sent < commands && sent - done < depth {
            let id = u16::try_from(sent & 0xffff).unwrap();
            guest.push(&mut queue, &transfer(io_opcode::READ, block(id), 8, slot(id), 0));
            sent += 1;
        }
        guest.ring(&queue);
        let completion = guest.wait(&mut queue);
        assert_eq!(completion.status, 0);
        let start = block(completion.id) * 512;
        assert_eq!(guest.read(slot(completion.id), 8), (start..start + 8).map(pattern).collect::<Vec<u8>>());
        done += 1;
    }
}

fn in_parallel(guest: &Guest, queues: &[Queue], commands: u32) {
    thread::scope(|scope| {
        for &queue in queues {
            scope.spawn(move || load(guest, queue, commands));
        }
    });
}

#[test]
fn queues_work_side_by_side() {
    let guest = Guest::ready(512, false, QUEUES);
    let queues: Vec<Queue> = (1..=QUEUES).map(|id| guest.create(id, 64)).collect();
    in_parallel(&guest, &queues, 3000);
    let counters = guest.nvme.counters();
    assert_eq!(counters.reads, u64::from(QUEUES) * 3000);
}

#[test]
fn shadow_doorbells_lose_no_command() {
    let guest = Guest::ready(512, false, QUEUES);
    guest.write(SHADOW, &[0; 4096]);
    guest.write(EVENTS, &[0; 4096]);
    let queues: Vec<Queue> = (1..=QUEUES).map(|id| Queue { shadow: true, ..guest.create(id, 16) }).collect();
    guest.use_shadow();
    let before = guest.nvme.counters().doorbells;
    in_parallel(&guest, &queues, 3000);
    let rung = guest.nvme.counters().doorbells - before;
    assert!(rung < u64::from(QUEUES) * 3000, "{rung} doorbells were no fewer than without the shadow");
    // The admin queue keeps its registers.
    assert_eq!(guest.admin(&Command { opcode: admin_opcode::ABORT, ..Command::default() }).result, 1);
}

#[test]
fn a_full_completion_queue_waits_for_the_guest() {
    for shadow in [false, true] {
        let guest = Guest::ready(512, false, 1);
        guest.write(SHADOW, &[0; 4096]);
        guest.write(EVENTS, &[0; 4096]);
        // A small completion queue under a large submission queue.
        let small = guest.create(1, 4);
        if shadow {
            guest.use_shadow();
        }
        let mut sq = Queue { size: 64, shadow, ..small };
        let delete =
            Command { opcode: admin_opcode::DELETE_SQ, dwords: [1, 0, 0, 0, 0, 0], ..Command::default() };
        assert_eq!(guest.admin(&delete).status, 0);
        assert_eq!(guest.admin(&super::driver::create_sq(&sq)).status, 0);
        for _ in 0..40 {
            guest.push(&mut sq, &transfer(io_opcode::READ, 0, 1, DATA, 0));
        }
        guest.ring(&sq);
        thread::sleep(Duration::from_millis(30));
        assert_eq!(guest.nvme.counters().reads, 3, "no more than there are slots");
        let mut cq = Queue { shadow, ..small };
        for _ in 0..40 {
            assert_eq!(guest.wait(&mut cq).status, 0);
        }
        assert_eq!(guest.nvme.counters().reads, 40);
    }
}

#[test]
fn nothing_moves_while_the_gate_is_closed() {
    let guest = Guest::ready(512, false, QUEUES);
    let queues: Vec<Queue> = (1..=QUEUES).map(|id| guest.create(id, 64)).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for &queue in &queues {
            let (guest, stop) = (&guest, &stop);
            scope.spawn(move || {
                let mut queue = queue;
                let mut in_flight = 0;
                while !stop.load(Ordering::Relaxed) || in_flight > 0 {
                    while in_flight < 32 && !stop.load(Ordering::Relaxed) {
                        let slot = DATA + u64::from(queue.id) * 0x10_0000;
                        // Blocks alternate, so that a transfer at a wrong moment shows.
                        guest.push(&mut queue, &transfer(io_opcode::READ, in_flight * 8, 8, slot, 0));
                        in_flight += 1;
                    }
                    guest.push(&mut queue, &flush());
                    in_flight += 1;
                    guest.ring(&queue);
                    while in_flight > 0 {
                        assert_eq!(guest.wait(&mut queue).status, 0);
                        in_flight -= 1;
                    }
                }
            });
        }
        let snapshot = || {
            let parts = queues.iter().map(|queue| {
                let data = guest.read(DATA + u64::from(queue.id) * 0x10_0000, 4096);
                (data, guest.read(queue.cq, usize::from(queue.size) * 16))
            });
            parts.collect::<Vec<_>>()
        };
        for _ in 0..100 {
            guest.gate.close().unwrap();
            let before = snapshot();
            thread::sleep(Duration::from_millis(1));
            assert!(before == snapshot(), "a byte changed while the gate was closed");
            guest.gate.open();
            thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn after_a_reset_nothing_of_the_old_life_moves() {
    let guest = Guest::ready(512, false, QUEUES);
    for round in 0..60_u32 {
        let mut queues: Vec<Queue> = (1..=QUEUES).map(|id| guest.create(id, 64)).collect();
        for queue in &mut queues {
            for index in 0..60 {
                let command = if index % 16 == 15 {
                    flush()
                } else {
                    transfer(io_opcode::READ, index, 8, DATA + u64::from(queue.id) * 4096, 0)
                };
                guest.push(queue, &command);
            }
            guest.ring(queue);
        }
        if round % 3 == 0 {
            thread::sleep(Duration::from_micros(u64::from(round) * 10));
        }
        guest.disable();
        let snapshot = || {
            let rings = queues.iter().flat_map(|queue| guest.read(queue.cq, 1024));
            rings.chain(guest.read(DATA, 0x6000)).collect::<Vec<u8>>()
        };
        let (before, sent) = (snapshot(), guest.interrupts.of(1));
        for queue in &queues {
            guest.ring(queue);
        }
        thread::sleep(Duration::from_millis(1));
        assert!(before == snapshot(), "round {round}");
        assert_eq!(sent, guest.interrupts.of(1));
        guest.enable();
    }
}

#[test]
fn toggling_enable_never_sticks() {
    let guest = Guest::ready(512, false, 1);
    for _ in 0..200 {
        guest.write32(CC, CC_ENABLE & !1);
        guest.write32(CC, CC_ENABLE);
        guest.write32(CC, CC_ENABLE & !1);
    }
    guest.wait_for_status(0xf, 0);
    guest.enable();
    let mut queue = guest.create(1, 8);
    assert_eq!(guest.run(&mut queue, &flush()).status, 0);
}

#[test]
fn shutdown_flushes_and_only_a_reset_follows() {
    let guest = Guest::ready(512, false, 1);
    let queue = guest.create(1, 8);
    guest.write32(CC, CC_ENABLE | (1 << 14));
    guest.wait_for_status(0b1100, 0b1000);
    let before = guest.read(queue.cq, 128);
    let mut queue = queue;
    guest.push(&mut queue, &flush());
    guest.ring(&queue);
    thread::sleep(Duration::from_millis(5));
    assert_eq!(guest.read(queue.cq, 128), before);
    guest.disable();
    guest.enable();
}

#[test]
fn a_controller_dropped_in_the_middle_stops() {
    let guest = Guest::ready(512, false, QUEUES);
    for id in 1..=QUEUES {
        let mut queue = guest.create(id, 64);
        for _ in 0..60 {
            guest.push(&mut queue, &transfer(io_opcode::WRITE, 0, 8, DATA, 0));
        }
        guest.ring(&queue);
    }
    let Guest { nvme, ram, .. } = guest;
    drop(nvme);
    let snapshot = || {
        let mut bytes = vec![0; 16 << 20];
        vm_memory::Bytes::read_slice(ram.memory(), &mut bytes, vm_memory::GuestAddress(0)).unwrap();
        bytes
    };
    let before = snapshot();
    thread::sleep(Duration::from_millis(5));
    assert!(before == snapshot());
}

#[test]
fn without_bus_master_nothing_is_fetched() {
    let guest = Guest::ready(512, false, 1);
    let mut queue = guest.create(1, 8);
    guest.config_write(0x04, &[0x02, 0]);
    guest.push(&mut queue, &flush());
    guest.ring(&queue);
    thread::sleep(Duration::from_millis(5));
    assert_eq!(guest.poll(&mut queue), None);
    guest.config_write(0x04, &[0x06, 0]);
    assert_eq!(guest.wait(&mut queue).status, 0);
}
