//! I/O workers: one thread for each submission queue.
//!
//! Linux gives each vCPU its own queue, so one thread each serves as many vCPUs at once as the host has CPUs
//! for, without a lock between them, and does the transfer itself: a system call on the page cache costs less
//! than handing the command to another thread. A queue whose reads miss the page cache does wait for them
//! one after the other.
//!
//! Work is done in batches. One batch is one access to guest memory and ends with one interrupt, however
//! many commands it completed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::disk::Extent;
use super::prp;
use super::queue::{Fault, SubmissionQueue};
use super::shared::Shared;
use super::spec::{ALL_NAMESPACES, BLOCK_SHIFT, Command, MAX_TRANSFER, NAMESPACE, Status, io_opcode};
use crate::device::STACK;
use crate::memory::{GuestMemory, GuestSlice};

/// Most commands in one batch, and most bytes before it ends.
///
/// A pause waits for the batch under way, and the guest's interrupt for its end: long enough to make the
/// access and the interrupt cheap, short enough that the guest works on the first results while the worker
/// goes on.
const BATCH_COMMANDS: u32 = 16;
const BATCH_BYTES: u64 = 256 << 10;
/// Most ranges in one DATASET MANAGEMENT command (6.7: NR is 8 bits, zero-based), and the size of each.
const MAX_RANGES: usize = 256;
const RANGE_SIZE: usize = 16;
/// Command dword 12 of READ, WRITE and WRITE ZEROES: Force Unit Access, and Deallocate.
const FUA: u32 = 1 << 30;
const DEALLOCATE: u32 = 1 << 25;
/// Command dword 11 of DATASET MANAGEMENT: Attribute - Deallocate.
const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;

/// A worker as the controller thread holds it.
#[derive(Debug)]
pub(super) struct Worker {
    queue: u16,
    completions: u16,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts serving `sq`, whose completion queue is number `completions`.
    pub(super) fn spawn(shared: &Arc<Shared>, sq: SubmissionQueue, completions: u16) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let queue = sq.id();
        let mut server = Server { shared: Arc::clone(shared), sq, stop: Arc::clone(&stop) };
        let thread = thread::Builder::new()
            .name(format!("nvme-queue-{queue}"))
            .stack_size(STACK)
            .spawn(move || server.run())?;
        Ok(Self { queue, completions, stop, thread })
    }

    /// The completion queue it posts to.
    pub(super) fn completions(&self) -> u16 {
        self.completions
    }

    /// Asks it to stop after the command under way. Several can stop at the same time.
    pub(super) fn ask_to_stop(&self, shared: &Shared) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(pair) = shared.doorbells.pair(self.queue) {
            pair.bell.ring();
        }
    }

    /// Waits for its end; it touches nothing any more then. Never inside the gate, which it may wait for.
    pub(super) fn join(self, shared: &Shared) {
        self.ask_to_stop(shared);
        if self.thread.join().is_err() {
            tracing::error!(queue = self.queue, "NVMe worker panicked");
        }
    }
}

/// How a batch ended.
enum Next {
    /// Nothing to do until the bell rings.
    Sleep,
    /// There may be more.
    Continue,
    /// A command needs the disk for long.
    Deferred(Command, Deferred),
}

/// The rest of a command that is done outside of the gate, because it may take long.
#[derive(Debug)]
enum Deferred {
    /// FLUSH.
    Flush,
    /// A read or write with Force Unit Access: the data has moved, now it has to be stable.
    Stable,
    /// DATASET MANAGEMENT, Deallocate.
    Deallocate(Vec<Extent>),
    /// WRITE ZEROES.
    Zero { extent: Extent, deallocate: bool, stable: bool },
}

struct Server {
    shared: Arc<Shared>,
    sq: SubmissionQueue,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn run(&mut self) {
        let shared = Arc::clone(&self.shared);
        let Some(pair) = shared.doorbells.pair(self.sq.id()) else { return };
        pair.bell.attach();
        while !self.stopped() {
            let next = match self.batch() {
                Ok(Next::Deferred(command, work)) => {
                    let result = self.perform(&work);
                    self.complete(&command, result).map(|()| Next::Continue)
                }
                next => next,
            };
            match next {
                Ok(Next::Continue | Next::Deferred(..)) => {}
                Ok(Next::Sleep) => pair.bell.wait(),
                Err(fault) => {
                    shared.fail(&fault.to_string());
                    while !self.stopped() {
                        pair.bell.wait();
                    }
                }
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Executes what waits in the queue, up to a limit, in one access to guest memory.
    fn batch(&mut self) -> Result<Next, Fault> {
        let shared = Arc::clone(&self.shared);
        let access = shared.memory.enter();
        if !shared.bus_master() {
            return Ok(Next::Sleep);
        }
        let completions = Arc::clone(self.sq.completions());
        let mut slices = Vec::new();
        let (mut commands, mut bytes) = (0, 0);
        let next = loop {
            if commands >= BATCH_COMMANDS || bytes >= BATCH_BYTES || self.stopped() {
                break Ok(Next::Continue);
            }
            let ready = self
                .sq
                .pending(&access, &shared.doorbells)
                .and_then(|pending| Ok(pending && completions.reserve(&access, &shared.doorbells)?));
            match ready {
                Ok(true) => {}
                Ok(false) => break Ok(Next::Sleep),
                Err(fault) => break Err(fault),
            }
            let command = match self.sq.fetch(&access) {
                Ok(command) => command,
                Err(fault) => break Err(fault),
            };
            slices.clear();
            let result = match self.execute(&access, &command, &mut slices) {
                Ok(Outcome::Deferred(work)) => break Ok(Next::Deferred(command, work)),
                Ok(Outcome::Moved(moved)) => {
                    bytes += moved;
                    Ok(0)
                }
                Err(status) => {
                    self.refused(&command, status);
                    Err(status)
                }
            };
            if let Err(fault) = completions.post(&access, &self.sq.completion(&command, result)) {
                break Err(fault);
            }
            commands += 1;
        };
        if commands > 0 {
            shared.interrupt(&completions);
        }
        next
    }

    /// Posts the completion of a deferred command.
    fn complete(&self, command: &Command, result: Result<(), Status>) -> Result<(), Fault> {
        if let Err(status) = result {
            self.refused(command, status);
        }
        let access = self.shared.memory.enter();
        if !self.shared.bus_master() {
            // The guest forbade all access meanwhile, as before a kexec; it cannot expect an answer.
            return Err(Fault);
        }
        let completions = self.sq.completions();
        completions.post(&access, &self.sq.completion(command, result.map(|()| 0)))?;
        self.shared.interrupt(completions);
        Ok(())
    }

    fn refused(&self, command: &Command, status: Status) {
        self.shared.counters.error();
        tracing::debug!(queue = self.sq.id(), ?command, ?status, "I/O command failed");
    }

    fn execute<'a>(
        &self,
        memory: &'a GuestMemory,
        command: &Command,
        slices: &mut Vec<GuestSlice<'a>>,
    ) -> Result<Outcome, Status> {
        command.check_flags()?;
        let broadcast = command.opcode == io_opcode::FLUSH && command.namespace == ALL_NAMESPACES;
        if command.namespace != NAMESPACE && !broadcast {
            return Err(Status::INVALID_NAMESPACE);
        }
        match command.opcode {
            io_opcode::READ => self.transfer(memory, command, slices, false),
            io_opcode::WRITE => self.transfer(memory, command, slices, true),
            io_opcode::FLUSH => Ok(Outcome::Deferred(Deferred::Flush)),
            io_opcode::WRITE_ZEROES => {
                let extent = self.extent(command)?;
                self.check_writable()?;
                let deallocate = command.dword(12) & DEALLOCATE != 0;
                let stable = self.must_be_stable(command);
                Ok(Outcome::Deferred(Deferred::Zero { extent, deallocate, stable }))
            }
            io_opcode::DATASET_MANAGEMENT => self.dataset_management(memory, command, slices),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// READ (6.9) and WRITE (6.15).
    fn transfer<'a>(
        &self,
        memory: &'a GuestMemory,
        command: &Command,
        slices: &mut Vec<GuestSlice<'a>>,
        write: bool,
    ) -> Result<Outcome, Status> {
        if (u64::from(command.low(12)) + 1) << BLOCK_SHIFT > MAX_TRANSFER {
            return Err(Status::INVALID_FIELD);
        }
        let extent = self.extent(command)?;
        if write {
            self.check_writable()?;
        }
        prp::map(memory, command.prp1, command.prp2, extent.len(), slices)?;
        let disk = &self.shared.disk;
        if write {
            disk.write(extent, slices)
                .map_err(|error| self.host_error("write", &error, Status::WRITE_FAULT))?;
            self.shared.counters.write(extent.len());
        } else {
            disk.read(extent, slices).map_err(|error| self.host_error("read", &error, Status::READ_ERROR))?;
            self.shared.counters.read(extent.len());
        }
        let stable = if write { self.must_be_stable(command) } else { command.dword(12) & FUA != 0 };
        Ok(if stable { Outcome::Deferred(Deferred::Stable) } else { Outcome::Moved(extent.len()) })
    }

    /// DATASET MANAGEMENT (6.7): reads the ranges; every attribute but Deallocate is a hint not taken.
    fn dataset_management<'a>(
        &self,
        memory: &'a GuestMemory,
        command: &Command,
        slices: &mut Vec<GuestSlice<'a>>,
    ) -> Result<Outcome, Status> {
        let mut buffer = [0; MAX_RANGES * RANGE_SIZE];
        let ranges = &mut buffer[..(usize::from(command.low(10) & 0xff) + 1) * RANGE_SIZE];
        prp::map(memory, command.prp1, command.prp2, ranges.len() as u64, slices)?;
        prp::gather(slices, ranges);
        if command.dword(11) & ATTRIBUTE_DEALLOCATE == 0 {
            return Ok(Outcome::Moved(0));
        }
        self.check_writable()?;
        let mut extents = Vec::new();
        for range in ranges.chunks_exact(RANGE_SIZE) {
            let number =
                |bytes: &[u8]| bytes.iter().rev().fold(0, |number, &byte| (number << 8) | u64::from(byte));
            // Context attributes (4 bytes), length in blocks (4), first block (8).
            let (count, first) = (number(&range[4..8]), number(&range[8..16]));
            let extent = self.shared.disk.extent(first, count).ok_or(Status::LBA_RANGE)?;
            if count > 0 {
                extents.push(extent);
            }
        }
        Ok(Outcome::Deferred(Deferred::Deallocate(extents)))
    }

    /// What a deferred command does on the host, outside of the gate.
    fn perform(&self, work: &Deferred) -> Result<(), Status> {
        let disk = &self.shared.disk;
        let sync = || disk.sync().map_err(|error| self.host_error("flush", &error, Status::WRITE_FAULT));
        match work {
            Deferred::Flush => {
                sync()?;
                self.shared.counters.flush();
            }
            Deferred::Stable => sync()?,
            Deferred::Deallocate(extents) => {
                for &extent in extents {
                    // Advice: a file system that cannot punch holes keeps the data, which is allowed (6.7).
                    if let Err(error) = disk.deallocate(extent) {
                        tracing::debug!(%error, ?extent, "deallocate not taken");
                        break;
                    }
                    self.shared.counters.discard();
                }
            }
            Deferred::Zero { extent, deallocate, stable } => {
                if !*deallocate || disk.deallocate(*extent).is_err() {
                    disk.zero(*extent)
                        .map_err(|error| self.host_error("write zeroes", &error, Status::WRITE_FAULT))?;
                }
                if *stable {
                    sync()?;
                }
                self.shared.counters.discard();
            }
        }
        Ok(())
    }

    /// The blocks that dwords 10 to 12 name.
    fn extent(&self, command: &Command) -> Result<Extent, Status> {
        let first = u64::from(command.dword(10)) | (u64::from(command.dword(11)) << 32);
        self.shared.disk.extent(first, u64::from(command.low(12)) + 1).ok_or(Status::LBA_RANGE)
    }

    fn check_writable(&self) -> Result<(), Status> {
        if self.shared.disk.read_only() { Err(Status::READ_ONLY_RANGE) } else { Ok(()) }
    }

    fn must_be_stable(&self, command: &Command) -> bool {
        command.dword(12) & FUA != 0 || !self.shared.write_cache.load(Ordering::Relaxed)
    }

    /// Says so to the operator too: at the 1st, 2nd, 4th, 8th, … of them, because a guest that tries again and
    /// again on a full host disk would fill the log as well.
    fn host_error(&self, what: &str, error: &io::Error, status: Status) -> Status {
        let count = self.shared.counters.host_error();
        if count.is_power_of_two() {
            tracing::error!(disk = %self.shared.disk.path().display(), %error, count, "disk cannot {what}");
        }
        status
    }
}

enum Outcome {
    /// Done; so many bytes went between disk and guest.
    Moved(u64),
    /// To be finished outside of the gate.
    Deferred(Deferred),
}
