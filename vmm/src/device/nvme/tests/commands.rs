//! Commands, one at a time.

use super::driver::{DATA, Guest, Queue, create_cq, create_sq, flush, pattern, transfer};
use crate::device::nvme::spec::{Command, Status, admin_opcode, io_opcode};
use crate::device::pci::PciDevice;

fn admin(opcode: u8, dword10: u32, dword11: u32) -> Command {
    Command { opcode, prp1: DATA, dwords: [dword10, dword11, 0, 0, 0, 0], ..Command::default() }
}

fn identify(guest: &Guest, namespace: u32, structure: u32) -> Vec<u8> {
    let command = Command { namespace, ..admin(admin_opcode::IDENTIFY, structure, 0) };
    assert_eq!(guest.admin(&command).status, 0, "structure {structure:#x}");
    guest.read(DATA, 4096)
}

#[test]
fn registers_say_what_linux_checks() {
    let guest = Guest::new(8, false, 2);
    let cap = u64::from(guest.read32(0)) | (u64::from(guest.read32(4)) << 32);
    assert_eq!(cap & 0xffff, 1023);
    // NVM command set, no stride, 4 KiB pages (nvme_enable_ctrl, nvme_pci_enable).
    assert_eq!((cap >> 32, cap >> 37 & 1), (1 << 5, 1));
    assert_eq!(guest.read32(8), 0x0001_0400);
    assert_eq!(guest.read32(0x1c), 0);
    let mut odd = [0; 3];
    guest.nvme.read_bar(0, 7, &mut odd);
    assert_eq!(odd, [0, 0, 4]);
}

#[test]
fn identify_describes_controller_and_namespace() {
    let guest = Guest::ready(2048, false, 2);
    let controller = identify(&guest, 0, 1);
    assert_eq!(&controller[4..24], b"serial-1            ");
    assert_eq!((controller[77], controller[512], controller[513], controller[525] & 1), (8, 0x66, 0x44, 1));
    let nqn = String::from_utf8(controller[768..1024].to_vec()).unwrap();
    assert!(nqn.starts_with("nqn.2014-08.org.nvmexpress:uuid:"), "{nqn}");
    let namespace = identify(&guest, 1, 0);
    assert_eq!(&namespace[0..8], &2048_u64.to_le_bytes());
    assert_eq!((namespace[25], namespace[26], namespace[99], namespace[130]), (0, 0, 0, 9));
    assert_eq!(&identify(&guest, 0, 2)[0..8], &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&identify(&guest, 1, 2)[0..4], &[0; 4]);
    assert_eq!(&identify(&guest, 1, 3)[0..2], &[3, 16]);
    assert_eq!(identify(&guest, 2, 0), vec![0; 4096]);
    // The structure of a command set (nvme_init_non_mdts_limits) is one Linux can do without.
    let command = Command { namespace: 0, ..admin(admin_opcode::IDENTIFY, 6, 0) };
    assert_eq!(guest.admin(&command).status, Status::INVALID_FIELD.code());
    // One for each command; that of the last may still be on its way.
    assert!(guest.interrupts.of(0) >= 6);
}

#[test]
fn features_and_logs_answer() {
    let guest = Guest::ready(8, false, 4);
    let get = |feature| guest.admin(&admin(admin_opcode::GET_FEATURES, feature, 0));
    assert_eq!(guest.admin(&admin(admin_opcode::SET_FEATURES, 7, 0x007f_007f)).result, 0x0003_0003);
    assert_eq!((get(7).result, get(6).result, get(0x0f).status), (0x0003_0003, 1, 2));
    assert_eq!(guest.admin(&admin(admin_opcode::SET_FEATURES, 6, 0)).status, 0);
    assert_eq!(get(6).result, 0);
    let log =
        |page: u32, dwords: u32| guest.admin(&admin(admin_opcode::GET_LOG_PAGE, page | (dwords << 16), 0));
    guest.write(DATA, &[0xee; 4096]);
    assert_eq!(log(2, 127).status, 0);
    let health = guest.read(DATA, 513);
    assert_eq!((health[0], health[3], health[512]), (0, 100, 0xee));
    assert_eq!(log(2, 1023).status, 0);
    assert_eq!(guest.read(DATA + 512, 1), [0xee]);
    assert_eq!(log(5, 0).status, Status::LOG_PAGE.code());
    let huge =
        Command { dwords: [2 | 0xffff_0000, 0xffff, 0, 0, 0, 0], ..admin(admin_opcode::GET_LOG_PAGE, 0, 0) };
    assert_eq!(guest.admin(&huge).status, Status::INVALID_FIELD.code());
}

#[test]
fn event_requests_are_held_up_to_a_limit() {
    let guest = Guest::ready(8, false, 1);
    let mut queue = guest.admin_queue();
    for _ in 0..4 {
        guest.push(&mut queue, &admin(admin_opcode::ASYNC_EVENT, 0, 0));
    }
    let fifth = guest.push(&mut queue, &admin(admin_opcode::ASYNC_EVENT, 0, 0));
    guest.ring(&queue);
    let done = guest.wait(&mut queue);
    assert_eq!((done.id, done.status), (fifth, Status::ASYNC_LIMIT.code()));
    assert_eq!(guest.run(&mut queue, &admin(admin_opcode::ABORT, 0, 0)).result, 1);
    assert_eq!(guest.run(&mut queue, &admin(0xc1, 0, 0)).status, 1);
}

#[test]
fn queues_are_made_and_unmade_by_the_rules() {
    let guest = Guest::ready(8, false, 2);
    let queue = Queue::new(1, 64);
    let status = |command: &Command| guest.admin(command).status;
    assert_eq!(status(&create_sq(&queue)), Status::CQ_INVALID.code());
    assert_eq!(status(&create_cq(&Queue { id: 3, ..queue })), Status::QUEUE_ID.code());
    assert_eq!(status(&create_cq(&Queue { id: 0, ..queue })), Status::QUEUE_ID.code());
    assert_eq!(status(&create_cq(&Queue { size: 1, ..queue })), Status::QUEUE_SIZE.code());
    assert_eq!(status(&create_cq(&Queue { size: 1025, ..queue })), Status::QUEUE_SIZE.code());
    assert_eq!(status(&create_cq(&Queue { cq: 0x1010, ..queue })), Status::PRP_OFFSET.code());
    for outside in [1 << 40, (16 << 20) - 4096 + (1 << 32), !0xfff] {
        assert_eq!(status(&create_cq(&Queue { cq: outside, ..queue })), Status::INVALID_FIELD.code());
    }
    let mut vector = create_cq(&queue);
    vector.dwords[1] |= 0xffff << 16;
    assert_eq!(status(&vector), Status::INTERRUPT_VECTOR.code());
    let mut scattered = create_cq(&queue);
    scattered.dwords[1] &= !1;
    assert_eq!(status(&scattered), Status::INVALID_FIELD.code());
    assert_eq!(status(&create_cq(&queue)), 0);
    assert_eq!(status(&create_cq(&queue)), Status::QUEUE_ID.code());
    assert_eq!(status(&create_sq(&queue)), 0);
    assert_eq!(status(&create_sq(&queue)), Status::QUEUE_ID.code());
    assert_eq!(status(&admin(admin_opcode::SET_FEATURES, 7, 0)), Status::SEQUENCE.code());
    assert_eq!(status(&admin(admin_opcode::DELETE_CQ, 1, 0)), Status::QUEUE_DELETION.code());
    assert_eq!(status(&admin(admin_opcode::DELETE_SQ, 1, 0)), 0);
    assert_eq!(status(&admin(admin_opcode::DELETE_SQ, 1, 0)), Status::QUEUE_ID.code());
    assert_eq!(status(&admin(admin_opcode::DELETE_CQ, 1, 0)), 0);
    let mut queue = guest.create(1, 2);
    assert_eq!(guest.run(&mut queue, &flush()).status, 0);
}

#[test]
fn data_goes_both_ways_by_every_kind_of_prp() {
    let guest = Guest::ready(4096, false, 1);
    let mut queue = guest.create(1, 16);
    // One block, unaligned in its page.
    let command = transfer(io_opcode::READ, 3, 1, DATA + 0x104, 0);
    assert_eq!(guest.run(&mut queue, &command).status, 0);
    assert_eq!(guest.read(DATA + 0x104, 512), (3 * 512..4 * 512).map(pattern).collect::<Vec<u8>>());
    // Two pages by PRP1 and PRP2, the first one cut.
    let bytes: Vec<u8> = (0..4096_u32).map(|at| at.to_le_bytes()[0] ^ 0x5a).collect();
    guest.write(DATA + 0x800, &bytes[..0x800]);
    guest.write(DATA + 0x10_0000, &bytes[0x800..]);
    let command = transfer(io_opcode::WRITE, 8, 8, DATA + 0x800, DATA + 0x10_0000);
    assert_eq!(guest.run(&mut queue, &command).status, 0);
    assert_eq!(std::fs::read(&guest.image).unwrap()[4096..8192], bytes);
    // 1 MiB by a list, backwards page by page, from an offset that makes the list chain.
    let list = DATA + 0x20_0000 - 32;
    let page = |index: u64| DATA + 0x30_0000 - index * 4096;
    for index in 1..4 {
        guest.write(list + (index - 1) * 8, &page(index).to_le_bytes());
    }
    guest.write(list + 24, &(DATA + 0x20_0000).to_le_bytes());
    for index in 4..256 {
        guest.write(DATA + 0x20_0000 + (index - 4) * 8, &page(index).to_le_bytes());
    }
    let command = transfer(io_opcode::READ, 1024, 2048, page(0), list);
    assert_eq!(guest.run(&mut queue, &command).status, 0);
    for index in 0..256 {
        let start = 1024 * 512 + index * 4096;
        assert_eq!(guest.read(page(index), 4096), (start..start + 4096).map(pattern).collect::<Vec<u8>>());
    }
    let counters = guest.nvme.counters();
    assert_eq!((counters.reads, counters.read_bytes), (2, 512 + (1 << 20)));
    assert_eq!((counters.writes, counters.written_bytes), (1, 4096));
    assert!(guest.interrupts.of(1) >= 3);
}

#[test]
fn flush_and_forced_unit_access_complete() {
    let guest = Guest::ready(64, false, 1);
    let mut queue = guest.create(1, 16);
    assert_eq!(guest.run(&mut queue, &flush()).status, 0);
    assert_eq!(guest.run(&mut queue, &Command { namespace: u32::MAX, ..flush() }).status, 0);
    for opcode in [io_opcode::READ, io_opcode::WRITE] {
        let mut command = transfer(opcode, 0, 8, DATA, 0);
        command.dwords[2] |= 1 << 30;
        assert_eq!(guest.run(&mut queue, &command).status, 0);
    }
    assert_eq!(guest.nvme.counters().flushes, 2);
}

#[test]
fn zeroing_and_deallocating_touch_only_their_blocks() {
    let guest = Guest::ready(64, false, 1);
    let mut queue = guest.create(1, 16);
    assert_eq!(guest.run(&mut queue, &transfer(io_opcode::WRITE_ZEROES, 4, 4, 0, 0)).status, 0);
    let mut ranges = vec![0; 32];
    ranges[4..8].copy_from_slice(&8_u32.to_le_bytes());
    ranges[8..16].copy_from_slice(&16_u64.to_le_bytes());
    guest.write(DATA, &ranges);
    let discard = |count: u32| Command {
        opcode: io_opcode::DATASET_MANAGEMENT,
        namespace: 1,
        prp1: DATA,
        dwords: [count - 1, 4, 0, 0, 0, 0],
        ..Command::default()
    };
    assert_eq!(guest.run(&mut queue, &discard(2)).status, 0);
    let image = std::fs::read(&guest.image).unwrap();
    for (at, &byte) in (0..).zip(&image) {
        let zeroed = [4..8, 16..24].iter().any(|blocks| blocks.contains(&(at / 512)));
        assert_eq!(byte, if zeroed { 0 } else { pattern(at) }, "at {at:#x}");
    }
    guest.write(DATA + 16 + 4, &64_u32.to_le_bytes());
    guest.write(DATA + 16 + 8, &1_u64.to_le_bytes());
    assert_eq!(guest.run(&mut queue, &discard(2)).status, Status::LBA_RANGE.code());
    assert_eq!(std::fs::read(&guest.image).unwrap(), image);
}

#[test]
fn a_read_only_disk_refuses_every_kind_of_write() {
    let guest = Guest::ready(64, true, 1);
    let mut queue = guest.create(1, 16);
    assert_eq!(identify(&guest, 1, 0)[99], 1);
    let before = std::fs::read(&guest.image).unwrap();
    let discard = Command {
        opcode: io_opcode::DATASET_MANAGEMENT,
        dwords: [0, 4, 0, 0, 0, 0],
        ..transfer(0, 0, 1, DATA, 0)
    };
    for command in
        [transfer(io_opcode::WRITE, 0, 8, DATA, 0), transfer(io_opcode::WRITE_ZEROES, 0, 8, 0, 0), discard]
    {
        assert_eq!(guest.run(&mut queue, &command).status, Status::READ_ONLY_RANGE.code());
    }
    assert_eq!(guest.run(&mut queue, &transfer(io_opcode::READ, 0, 8, DATA, 0)).status, 0);
    assert_eq!(guest.run(&mut queue, &flush()).status, 0);
    assert_eq!(std::fs::read(&guest.image).unwrap(), before);
    assert_eq!(guest.nvme.counters().errors, 3);
}

#[test]
fn commands_that_make_no_sense_get_their_status() {
    let guest = Guest::ready(64, false, 1);
    let mut queue = guest.create(1, 16);
    let read = |first, count, prp1, prp2| transfer(io_opcode::READ, first, count, prp1, prp2);
    let end = 16 << 20;
    let cases = [
        (read(64, 1, DATA, 0), Status::LBA_RANGE),
        (read(63, 2, DATA, 0), Status::LBA_RANGE),
        (read(u64::MAX, 1, DATA, 0), Status::LBA_RANGE),
        (read(1 << 55, 1, DATA, 0), Status::LBA_RANGE),
        (read(0, 2049, DATA, 0), Status::INVALID_FIELD),
        (read(0, 1, DATA + 2, 0), Status::PRP_OFFSET),
        (read(0, 1, end, 0), Status::DATA_TRANSFER),
        (read(0, 1, 0xfee0_0000, 0), Status::DATA_TRANSFER),
        (read(0, 16, DATA, end), Status::DATA_TRANSFER),
        (read(0, 64, DATA, end), Status::DATA_TRANSFER),
        (Command { namespace: 2, ..read(0, 1, DATA, 0) }, Status::INVALID_NAMESPACE),
        (Command { namespace: u32::MAX, ..read(0, 1, DATA, 0) }, Status::INVALID_NAMESPACE),
        (Command { flags: 0x40, ..read(0, 1, DATA, 0) }, Status::INVALID_FIELD),
        (Command { flags: 1, ..read(0, 1, DATA, 0) }, Status::INVALID_FIELD),
        (Command { opcode: 0x99, ..read(0, 1, DATA, 0) }, Status::INVALID_OPCODE),
    ];
    for (command, status) in cases {
        assert_eq!(guest.run(&mut queue, &command).status, status.code(), "{command:?}");
    }
    assert_eq!(guest.run(&mut queue, &read(63, 1, DATA, 0)).status, 0);
}

#[test]
fn a_file_that_shrank_fails_its_reads_only() {
    let guest = Guest::ready(64, false, 1);
    let mut queue = guest.create(1, 16);
    std::fs::OpenOptions::new().write(true).open(&guest.image).unwrap().set_len(8192).unwrap();
    let read = |first| transfer(io_opcode::READ, first, 8, DATA, 0);
    assert_eq!(guest.run(&mut queue, &read(16)).status, Status::READ_ERROR.code());
    assert_eq!(guest.run(&mut queue, &read(8)).status, 0);
}
