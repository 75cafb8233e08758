//! A small driver: what `drivers/nvme/host/pci.c` does, without the waiting.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use crate::device::nvme::spec::{Command, admin_opcode, io_opcode};
use crate::device::nvme::{Disk, NvmeController};
use crate::device::pci::{MsiSender, PciDevice};
use crate::memory::{DeviceMemory, DmaGate, GuestRam};

pub(super) const CC: u64 = 0x14;
pub(super) const CSTS: u64 = 0x1c;
pub(super) const CC_ENABLE: u32 = 0x0046_0001;
/// Where tests put data: behind all queues.
pub(super) const DATA: u64 = 0x80_0000;
/// Doorbell buffers.
pub(super) const SHADOW: u64 = 0x3000;
pub(super) const EVENTS: u64 = 0x4000;
const RAM: u64 = 16 << 20;
const TIMEOUT: Duration = Duration::from_secs(20);

/// Counts interrupts by their data, which is the vector's number.
#[derive(Debug)]
pub(super) struct Interrupts(Vec<AtomicU32>);

impl MsiSender for Interrupts {
    fn send(&self, address: u64, data: u32) {
        assert_eq!(address, 0xfee0_0000);
        self.0[usize::try_from(data).unwrap()].fetch_add(1, Ordering::SeqCst);
    }
}

impl Interrupts {
    pub(super) fn of(&self, vector: usize) -> u32 {
        self.0[vector].load(Ordering::SeqCst)
    }
}

/// A guest with one disk.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) ram: GuestRam,
    pub(super) gate: Arc<DmaGate>,
    pub(super) nvme: Arc<NvmeController>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) image: PathBuf,
    admin: Mutex<Queue>,
    _dir: TempDir,
}

/// The driver's side of a queue pair.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queue {
    pub(super) id: u16,
    pub(super) size: u16,
    pub(super) sq: u64,
    pub(super) cq: u64,
    pub(super) tail: u16,
    pub(super) head: u16,
    pub(super) phase: bool,
    pub(super) next: u16,
    pub(super) shadow: bool,
}

/// What came back for a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) id: u16,
    pub(super) status: u16,
    pub(super) result: u32,
}

impl Queue {
    pub(super) fn new(id: u16, size: u16) -> Self {
        let sq = 0x10_0000 + u64::from(id) * 0x2_0000;
        Self { id, size, sq, cq: sq + 0x1_0000, tail: 0, head: 0, phase: true, next: 0, shadow: false }
    }
}

impl Guest {
    pub(super) fn new(blocks: u64, read_only: bool, queues: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        let bytes: Vec<u8> = (0..blocks * 512).map(pattern).collect();
        std::fs::write(&image, bytes).unwrap();
        let ram = GuestRam::new(RAM).unwrap();
        let gate = Arc::new(DmaGate::default());
        let memory = DeviceMemory::new(ram.memory().clone(), Arc::clone(&gate));
        let interrupts = Arc::new(Interrupts((0..=queues).map(|_| AtomicU32::new(0)).collect()));
        let disk = Disk::open(&image, read_only).unwrap();
        let nvme = NvmeController::new(disk, memory, interrupts.clone(), queues, "serial-1").unwrap();
        let guest =
            Self { ram, gate, nvme, interrupts, image, admin: Mutex::new(Queue::new(0, 32)), _dir: dir };
        guest.configure(queues);
        guest
    }

    /// A guest whose controller is ready.
    pub(super) fn ready(blocks: u64, read_only: bool, queues: u16) -> Self {
        let guest = Self::new(blocks, read_only, queues);
        guest.enable();
        guest
    }

    /// Memory space, bus master, MSI-X with its table.
    fn configure(&self, queues: u16) {
        self.config_write(0x04, &[0x06, 0]);
        for vector in 0..=u64::from(queues) {
            let entry = 0x2000 + vector * 16;
            self.nvme.write_bar(0, entry, &0xfee0_0000_u64.to_le_bytes());
            self.nvme.write_bar(0, entry + 8, &u32::try_from(vector).unwrap().to_le_bytes());
            self.nvme.write_bar(0, entry + 12, &[0; 4]);
        }
        self.config_write(self.nvme.msix_capability + 2, &[0, 0x80]);
    }

    pub(super) fn config_write(&self, at: usize, data: &[u8]) {
        self.nvme.config_space().lock().unwrap().write(at, data);
        self.nvme.config_written();
    }

    pub(super) fn read32(&self, at: u64) -> u32 {
        let mut data = [0xff; 4];
        self.nvme.read_bar(0, at, &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn write32(&self, at: u64, value: u32) {
        self.nvme.write_bar(0, at, &value.to_le_bytes());
    }

    pub(super) fn wait_for_status(&self, mask: u32, value: u32) {
        let start = Instant::now();
        while self.read32(CSTS) & mask != value {
            assert!(start.elapsed() < TIMEOUT, "CSTS stays {:#x}", self.read32(CSTS));
            std::thread::yield_now();
        }
    }

    pub(super) fn enable(&self) {
        let queue = Queue::new(0, 32);
        *self.admin.lock().unwrap() = queue;
        self.clear(queue);
        self.write32(0x24, 0x001f_001f);
        self.nvme.write_bar(0, 0x28, &queue.sq.to_le_bytes());
        self.nvme.write_bar(0, 0x30, &queue.cq.to_le_bytes());
        self.write32(CC, CC_ENABLE);
        self.wait_for_status(3, 1);
    }

    pub(super) fn disable(&self) {
        self.write32(CC, CC_ENABLE & !1);
        self.wait_for_status(0xf, 0);
    }

    fn clear(&self, queue: Queue) {
        self.write(queue.cq, &vec![0; usize::from(queue.size) * 16]);
    }

    pub(super) fn write(&self, at: u64, data: &[u8]) {
        self.ram.memory().write_slice(data, GuestAddress(at)).unwrap();
    }

    pub(super) fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.memory().read_slice(&mut data, GuestAddress(at)).unwrap();
        data
    }

    /// Puts a command into the queue without telling the controller; returns its identifier.
    pub(super) fn push(&self, queue: &mut Queue, command: &Command) -> u16 {
        let id = queue.next;
        queue.next = queue.next.wrapping_add(1);
        let mut bytes = [0; 64];
        bytes[0..2].copy_from_slice(&[command.opcode, command.flags]);
        bytes[2..4].copy_from_slice(&id.to_le_bytes());
        bytes[4..8].copy_from_slice(&command.namespace.to_le_bytes());
        bytes[24..32].copy_from_slice(&command.prp1.to_le_bytes());
        bytes[32..40].copy_from_slice(&command.prp2.to_le_bytes());
        for (index, dword) in command.dwords.iter().enumerate() {
            bytes[40 + index * 4..44 + index * 4].copy_from_slice(&dword.to_le_bytes());
        }
        self.write(queue.sq + u64::from(queue.tail) * 64, &bytes);
        queue.tail = (queue.tail + 1) % queue.size;
        id
    }

    /// Tells the controller about all commands pushed.
    pub(super) fn ring(&self, queue: &Queue) {
        self.update(queue, 0, queue.tail);
    }

    /// Linux's `nvme_dbbuf_update_and_check_event` and the register write it may ask for.
    fn update(&self, queue: &Queue, half: u64, value: u16) {
        let at = u64::from(queue.id) * 8 + half;
        if queue.shadow {
            let memory = self.ram.memory();
            let old: u32 = memory.load(GuestAddress(SHADOW + at), Ordering::SeqCst).unwrap();
            memory.store(u32::from(value), GuestAddress(SHADOW + at), Ordering::SeqCst).unwrap();
            std::sync::atomic::fence(Ordering::SeqCst);
            let event: u32 = memory.load(GuestAddress(EVENTS + at), Ordering::SeqCst).unwrap();
            let (event, old) = (event.to_le_bytes(), old.to_le_bytes());
            let (event, old) =
                (u16::from_le_bytes([event[0], event[1]]), u16::from_le_bytes([old[0], old[1]]));
            if value.wrapping_sub(event).wrapping_sub(1) >= value.wrapping_sub(old) {
                return;
            }
        }
        self.write32(0x1000 + at, u32::from(value));
    }

    /// Takes one completion, if there is one.
    pub(super) fn poll(&self, queue: &mut Queue) -> Option<Done> {
        let at = queue.cq + u64::from(queue.head) * 16;
        let last: u32 = self.ram.memory().load(GuestAddress(at + 12), Ordering::Acquire).unwrap();
        if (last & (1 << 16) != 0) != queue.phase {
            return None;
        }
        let entry = self.read(at, 16);
        let word = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        assert_eq!(word(10), queue.id);
        queue.head = (queue.head + 1) % queue.size;
        queue.phase ^= queue.head == 0;
        let result = u32::from(word(0)) | (u32::from(word(2)) << 16);
        Some(Done { id: word(12), status: (word(14) >> 1) & 0x7ff, result })
    }

    /// Waits for a completion.
    pub(super) fn wait(&self, queue: &mut Queue) -> Done {
        let start = Instant::now();
        loop {
            if let Some(done) = self.poll(queue) {
                self.update(queue, 4, queue.head);
                return done;
            }
            assert!(start.elapsed() < TIMEOUT, "no completion, CSTS {:#x}", self.read32(CSTS));
            std::thread::yield_now();
        }
    }

    /// One command, there and back.
    pub(super) fn run(&self, queue: &mut Queue, command: &Command) -> Done {
        let id = self.push(queue, command);
        self.ring(queue);
        let done = self.wait(queue);
        assert_eq!(done.id, id);
        done
    }

    /// One admin command.
    pub(super) fn admin(&self, command: &Command) -> Done {
        self.run(&mut self.admin.lock().unwrap(), command)
    }

    /// The admin queue itself.
    pub(super) fn admin_queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.admin.lock().unwrap()
    }

    /// Makes queue pair `id` with interrupt vector `id`.
    pub(super) fn create(&self, id: u16, size: u16) -> Queue {
        let queue = Queue::new(id, size);
        self.clear(queue);
        assert_eq!(self.admin(&create_cq(&queue)).status, 0);
        assert_eq!(self.admin(&create_sq(&queue)).status, 0);
        queue
    }

    /// Moves the doorbells into memory, as Linux does after making its queues.
    pub(super) fn use_shadow(&self) {
        let command = Command {
            opcode: admin_opcode::DOORBELL_BUFFER,
            prp1: SHADOW,
            prp2: EVENTS,
            ..Command::default()
        };
        assert_eq!(self.admin(&command).status, 0);
    }
}

/// What byte `at` of a fresh image holds.
pub(super) fn pattern(at: u64) -> u8 {
    (at ^ (at >> 9)).wrapping_mul(167).to_le_bytes()[0]
}

pub(super) fn create_cq(queue: &Queue) -> Command {
    let id = u32::from(queue.id);
    let size = u32::from(queue.size) - 1;
    Command {
        opcode: admin_opcode::CREATE_CQ,
        prp1: queue.cq,
        dwords: [id | (size << 16), 0b11 | (id << 16), 0, 0, 0, 0],
        ..Command::default()
    }
}

pub(super) fn create_sq(queue: &Queue) -> Command {
    let id = u32::from(queue.id);
    let size = u32::from(queue.size) - 1;
    Command {
        opcode: admin_opcode::CREATE_SQ,
        prp1: queue.sq,
        dwords: [id | (size << 16), 1 | (id << 16), 0, 0, 0, 0],
        ..Command::default()
    }
}

/// A READ or WRITE of `count` blocks.
pub(super) fn transfer(opcode: u8, first: u64, count: u32, prp1: u64, prp2: u64) -> Command {
    let low = u32::try_from(first & 0xffff_ffff).unwrap();
    let high = u32::try_from(first >> 32).unwrap();
    let dwords = [low, high, count.wrapping_sub(1) & 0xffff, 0, 0, 0];
    Command { opcode, namespace: 1, prp1, prp2, dwords, ..Command::default() }
}

pub(super) fn flush() -> Command {
    Command { opcode: io_opcode::FLUSH, namespace: 1, ..Command::default() }
}
