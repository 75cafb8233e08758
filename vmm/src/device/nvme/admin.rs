//! The admin queue (5): identification, features, and the making and unmaking of I/O queues.

use std::collections::BTreeMap;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::features::Features;
use super::io::Worker;
use super::queue::{CompletionQueue, Fault, SubmissionQueue};
use super::regs::AdminQueues;
use super::shared::Shared;
use super::spec::{
    CQE_SHIFT, CQE_SIZE, Command, Completion, MAX_QUEUE_ENTRIES, PAGE, SQE_SHIFT, SQE_SIZE, Status,
    admin_opcode,
};
use super::{identify, log, prp};
use crate::memory::GuestMemory;

/// Everything that exists between an enable and the next reset. Owned by the controller thread.
#[derive(Debug)]
pub(super) struct Admin {
    shared: Arc<Shared>,
    sq: SubmissionQueue,
    completion_queues: BTreeMap<u16, Arc<CompletionQueue>>,
    workers: BTreeMap<u16, Worker>,
    features: Features,
    /// Asynchronous Event Requests held. No event ever happens, so how many is all there is to know.
    events_held: u8,
}

/// What a command brings, still to be put into guest memory together with its completion.
enum Reply {
    /// Dword 0 of the completion.
    Done(u32),
    /// Data for a buffer of `len` bytes, which may be larger.
    Data { bytes: Vec<u8>, len: u64 },
    /// The doorbells move to these pages.
    Shadow { values: u64, events: u64 },
    /// No completion, for now or for ever.
    Held,
}

impl Admin {
    /// Takes up the queues that the registers describe; `None` when they are no queues in RAM.
    pub(super) fn start(shared: &Arc<Shared>, queues: AdminQueues) -> Option<Self> {
        let AdminQueues { sq, sq_size, cq, cq_size } = queues;
        // Size 1 would be a ring that is always empty (3.1.8: 2 at least).
        if sq_size < 2
            || cq_size < 2
            || !in_ram(shared, sq, u64::from(sq_size) * SQE_SIZE)
            || !in_ram(shared, cq, u64::from(cq_size) * CQE_SIZE)
        {
            return None;
        }
        shared.doorbells.reset_tail(0);
        shared.doorbells.reset_head(0);
        let completions = Arc::new(CompletionQueue::new(0, cq, cq_size, Some(0)));
        Some(Self {
            shared: Arc::clone(shared),
            sq: SubmissionQueue::new(0, sq, sq_size, completions),
            completion_queues: BTreeMap::new(),
            workers: BTreeMap::new(),
            features: Features::default(),
            events_held: 0,
        })
    }

    /// Stops every worker and returns when none touches guest memory any more.
    pub(super) fn stop(self) {
        // First all, then one after the other: they finish what they do side by side.
        self.workers.values().for_each(|worker| worker.ask_to_stop(&self.shared));
        self.workers.into_values().for_each(|worker| worker.join(&self.shared));
        self.shared.doorbells.remove_shadow();
        self.shared.write_cache.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Executes the next command; `false` when there is none.
    pub(super) fn serve(&mut self) -> Result<bool, Fault> {
        let shared = Arc::clone(&self.shared);
        let completions = Arc::clone(self.sq.completions());
        let command = {
            let access = shared.memory.enter();
            if !shared.bus_master()
                || !self.sq.pending(&access, &shared.doorbells)?
                || !completions.reserve(&access, &shared.doorbells)?
            {
                return Ok(false);
            }
            self.sq.fetch(&access)?
        };
        // Outside of the gate: making a queue starts a thread, deleting one waits for a thread that may wait
        // for the gate.
        let reply = command.check_flags().and_then(|()| self.execute(&command));
        if let Err(status) = reply {
            tracing::debug!(?command, ?status, "admin command failed");
        }
        if matches!(reply, Ok(Reply::Held)) {
            completions.release();
            return Ok(true);
        }
        let access = shared.memory.enter();
        if !shared.bus_master() {
            return Err(Fault);
        }
        let result = reply.and_then(|reply| self.deliver(&access, &command, reply));
        let completion: Completion = self.sq.completion(&command, result);
        completions.post(&access, &completion)?;
        shared.interrupt(&completions);
        Ok(true)
    }

    fn execute(&mut self, command: &Command) -> Result<Reply, Status> {
        let shared = &self.shared;
        match command.opcode {
            admin_opcode::IDENTIFY => {
                let bytes = identify::identify(shared, command)?;
                Ok(Reply::Data { bytes, len: identify::SIZE as u64 })
            }
            admin_opcode::GET_LOG_PAGE => {
                let (bytes, len) = log::page(shared, command)?;
                Ok(Reply::Data { bytes, len })
            }
            admin_opcode::GET_FEATURES => self.features.get(shared, command).map(Reply::Done),
            admin_opcode::SET_FEATURES => {
                let queues_exist = !self.completion_queues.is_empty();
                self.features.set(shared, command, queues_exist).map(Reply::Done)
            }
            admin_opcode::CREATE_CQ => self.create_cq(command),
            admin_opcode::CREATE_SQ => self.create_sq(command),
            admin_opcode::DELETE_CQ => self.delete_cq(command),
            admin_opcode::DELETE_SQ => self.delete_sq(command),
            // Bit 0 of the result: not aborted. A command either waits in its queue, where it is not looked
            // for, or is about to complete (5.1: best effort).
            admin_opcode::ABORT => Ok(Reply::Done(1)),
            admin_opcode::ASYNC_EVENT if self.events_held > identify::EVENT_LIMIT => Err(Status::ASYNC_LIMIT),
            admin_opcode::ASYNC_EVENT => {
                self.events_held += 1;
                Ok(Reply::Held)
            }
            admin_opcode::DOORBELL_BUFFER => self.doorbell_buffer(command),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// The part of a command that touches guest memory.
    fn deliver(&self, memory: &GuestMemory, command: &Command, reply: Reply) -> Result<u32, Status> {
        match reply {
            Reply::Done(result) => Ok(result),
            Reply::Data { bytes, len } => {
                let mut slices = Vec::new();
                prp::map(memory, command.prp1, command.prp2, len, &mut slices)?;
                prp::scatter(&slices, &bytes);
                Ok(0)
            }
            Reply::Shadow { values, events } => {
                let set = self.shared.doorbells.set_shadow(memory, values, events);
                set.map(|()| 0).map_err(|Fault| Status::DATA_TRANSFER)
            }
            Reply::Held => Ok(0),
        }
    }

    /// CREATE I/O COMPLETION QUEUE (5.3).
    fn create_cq(&mut self, command: &Command) -> Result<Reply, Status> {
        const INTERRUPTS: u32 = 1 << 1;
        let id = self.new_queue_id(command, self.completion_queues.contains_key(&command.low(10)))?;
        let size = self.ring(command, CQE_SIZE)?;
        let vector = command.high(11);
        // As many vectors as queues, the admin queue among them.
        if vector > self.shared.queues {
            return Err(Status::INTERRUPT_VECTOR);
        }
        let vector = (command.dword(11) & INTERRUPTS != 0).then_some(vector);
        self.shared.doorbells.reset_head(id);
        let queue = CompletionQueue::new(id, command.prp1, size, vector);
        self.completion_queues.insert(id, Arc::new(queue));
        Ok(Reply::Done(0))
    }

    /// CREATE I/O SUBMISSION QUEUE (5.4).
    fn create_sq(&mut self, command: &Command) -> Result<Reply, Status> {
        let id = self.new_queue_id(command, self.workers.contains_key(&command.low(10)))?;
        let completions = command.high(11);
        if completions == 0 || completions > self.shared.queues {
            return Err(Status::QUEUE_ID);
        }
        let queue = self.completion_queues.get(&completions).ok_or(Status::CQ_INVALID)?;
        let queue = Arc::clone(queue);
        let size = self.ring(command, SQE_SIZE)?;
        self.shared.doorbells.reset_tail(id);
        let sq = SubmissionQueue::new(id, command.prp1, size, queue);
        let worker = Worker::spawn(&self.shared, sq, completions).map_err(|error| {
            tracing::error!(%error, "cannot start a thread for NVMe queue {id}");
            Status::INTERNAL
        })?;
        self.workers.insert(id, worker);
        Ok(Reply::Done(0))
    }

    /// DELETE I/O COMPLETION QUEUE (5.5).
    fn delete_cq(&mut self, command: &Command) -> Result<Reply, Status> {
        let id = command.low(10);
        if self.workers.values().any(|worker| worker.completions() == id) {
            return Err(Status::QUEUE_DELETION);
        }
        self.completion_queues.remove(&id).map(|_| Reply::Done(0)).ok_or(Status::QUEUE_ID)
    }

    /// DELETE I/O SUBMISSION QUEUE (5.6): the command under way completes, those that wait do not.
    fn delete_sq(&mut self, command: &Command) -> Result<Reply, Status> {
        let worker = self.workers.remove(&command.low(10)).ok_or(Status::QUEUE_ID)?;
        worker.join(&self.shared);
        Ok(Reply::Done(0))
    }

    /// DOORBELL BUFFER CONFIG (5.7).
    fn doorbell_buffer(&self, command: &Command) -> Result<Reply, Status> {
        let (values, events) = (command.prp1, command.prp2);
        if !values.is_multiple_of(PAGE) || !events.is_multiple_of(PAGE) {
            return Err(Status::PRP_OFFSET);
        }
        if !in_ram(&self.shared, values, PAGE) || !in_ram(&self.shared, events, PAGE) {
            return Err(Status::INVALID_FIELD);
        }
        Ok(Reply::Shadow { values, events })
    }

    fn new_queue_id(&self, command: &Command, taken: bool) -> Result<u16, Status> {
        let id = command.low(10);
        if id == 0 || id > self.shared.queues || taken { Err(Status::QUEUE_ID) } else { Ok(id) }
    }

    /// Checks size and place of a new queue's ring; returns the size.
    fn ring(&self, command: &Command, entry: u64) -> Result<u16, Status> {
        const CONTIGUOUS: u32 = 1;
        let size = command.high(10).saturating_add(1);
        if !(2..=MAX_QUEUE_ENTRIES).contains(&size) {
            return Err(Status::QUEUE_SIZE);
        }
        // CAP.CQR: a queue is one piece. And entries have one size, which CC has to say by now (3.1.5).
        let shifts = self.shared.registers().entry_shifts();
        if command.dword(11) & CONTIGUOUS == 0 || shifts != (SQE_SHIFT, CQE_SHIFT) {
            return Err(Status::INVALID_FIELD);
        }
        if !command.prp1.is_multiple_of(PAGE) {
            return Err(Status::PRP_OFFSET);
        }
        if !in_ram(&self.shared, command.prp1, u64::from(size) * entry) {
            return Err(Status::INVALID_FIELD);
        }
        Ok(size)
    }
}

/// Whether all of a range is guest RAM. RAM never changes, so what was true of a queue stays true.
fn in_ram(shared: &Shared, start: u64, len: u64) -> bool {
    let access = shared.memory.enter();
    usize::try_from(len).is_ok_and(|len| access.check_range(GuestAddress(start), len))
}
