//! Submission and completion queues (4.1): rings in guest memory.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, GuestAddress};

use super::doorbell::Doorbells;
use super::spec::{CQE_SIZE, Command, Completion, SQE_SIZE, Status};
use crate::memory::GuestMemory;

/// A ring or a doorbell page is not in guest memory: the controller cannot go on (CSTS.CFS).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a queue or doorbell page lies outside guest memory")]
pub(super) struct Fault;

#[derive(Debug)]
struct CqState {
    head: u16,
    tail: u16,
    phase: bool,
    /// Slots promised to commands under way.
    reserved: u16,
}

/// A completion queue, which several submission queues may share.
#[derive(Debug)]
pub(super) struct CompletionQueue {
    id: u16,
    base: u64,
    size: u16,
    vector: Option<u16>,
    /// Taken by workers only, inside the gate.
    state: Mutex<CqState>,
}

impl CompletionQueue {
    /// An empty queue of `size` entries (2 at least) at `base`.
    pub(super) fn new(id: u16, base: u64, size: u16, vector: Option<u16>) -> Self {
        let state = Mutex::new(CqState { head: 0, tail: 0, phase: true, reserved: 0 });
        Self { id, base, size, vector, state }
    }

    /// The interrupt vector, if the queue has interrupts.
    pub(super) fn vector(&self) -> Option<u16> {
        self.vector
    }

    /// Promises a slot to a command, so that its completion can follow its data without waiting; `false`
    /// when the guest has to make room first (its doorbell wakes the workers then).
    pub(super) fn reserve(&self, memory: &GuestMemory, doorbells: &Doorbells) -> Result<bool, Fault> {
        let mut state = self.lock();
        if self.free(&state) == 0 {
            state.head = self.valid(doorbells.head(memory, self.id)?, state.head);
            if self.free(&state) == 0 {
                doorbells.arm_head(memory, self.id, state.head)?;
                state.head = self.valid(doorbells.head(memory, self.id)?, state.head);
                if self.free(&state) == 0 {
                    return Ok(false);
                }
            }
        }
        state.reserved += 1;
        Ok(true)
    }

    /// Writes a completion into the slot promised to its command.
    pub(super) fn post(&self, memory: &GuestMemory, completion: &Completion) -> Result<(), Fault> {
        let mut state = self.lock();
        let (bytes, last) = completion.encode(state.phase);
        let at = self.base + u64::from(state.tail) * CQE_SIZE;
        memory.write_slice(&bytes, GuestAddress(at)).map_err(|_| Fault)?;
        // The phase tag makes the entry valid: it has to come last, and in one piece.
        memory.store(last, GuestAddress(at + 12), Ordering::Release).map_err(|_| Fault)?;
        state.reserved = state.reserved.saturating_sub(1);
        state.tail = (state.tail + 1) % self.size;
        state.phase ^= state.tail == 0;
        Ok(())
    }

    /// Takes back a promise, for a command that will not complete.
    pub(super) fn release(&self) {
        let mut state = self.lock();
        state.reserved = state.reserved.saturating_sub(1);
    }

    /// Slots neither filled nor promised. One always stays empty (4.1.2).
    fn free(&self, state: &CqState) -> u16 {
        let used = (state.tail + self.size - state.head) % self.size;
        (self.size - 1 - used).saturating_sub(state.reserved)
    }

    /// A head out of range is ignored; one that is merely wrong harms only the guest's own queue.
    fn valid(&self, head: u32, last: u16) -> u16 {
        u16::try_from(head).ok().filter(|&head| head < self.size).unwrap_or(last)
    }

    fn lock(&self) -> MutexGuard<'_, CqState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A submission queue, owned by the worker that serves it.
#[derive(Debug)]
pub(super) struct SubmissionQueue {
    id: u16,
    base: u64,
    size: u16,
    head: u16,
    tail: u16,
    completions: Arc<CompletionQueue>,
}

impl SubmissionQueue {
    /// An empty queue of `size` entries (2 at least) at `base`.
    pub(super) fn new(id: u16, base: u64, size: u16, completions: Arc<CompletionQueue>) -> Self {
        Self { id, base, size, head: 0, tail: 0, completions }
    }

    /// Its identifier.
    pub(super) fn id(&self) -> u16 {
        self.id
    }

    /// Where its completions go.
    pub(super) fn completions(&self) -> &Arc<CompletionQueue> {
        &self.completions
    }

    /// Whether a command waits. `false` means that the doorbell will ring for the next one.
    pub(super) fn pending(&mut self, memory: &GuestMemory, doorbells: &Doorbells) -> Result<bool, Fault> {
        if self.head != self.tail || self.look(memory, doorbells)? {
            return Ok(true);
        }
        doorbells.arm_tail(memory, self.id, self.tail)?;
        self.look(memory, doorbells)
    }

    /// Takes the next command; only after [`SubmissionQueue::pending`] said that there is one.
    pub(super) fn fetch(&mut self, memory: &GuestMemory) -> Result<Command, Fault> {
        let mut bytes = [0; 64];
        let at = self.base + u64::from(self.head) * SQE_SIZE;
        memory.read_slice(&mut bytes, GuestAddress(at)).map_err(|_| Fault)?;
        self.head = (self.head + 1) % self.size;
        Ok(Command::parse(&bytes))
    }

    /// The completion of `command`.
    pub(super) fn completion(&self, command: &Command, result: Result<u32, Status>) -> Completion {
        let (result, status) = match result {
            Ok(result) => (result, Status::SUCCESS),
            Err(status) => (0, status),
        };
        Completion { result, sq_head: self.head, sq_id: self.id, command: command.id, status }
    }

    /// A tail out of range is ignored: there is no command it could stand for.
    fn look(&mut self, memory: &GuestMemory, doorbells: &Doorbells) -> Result<bool, Fault> {
        if let Some(tail) =
            u16::try_from(doorbells.tail(memory, self.id)?).ok().filter(|&tail| tail < self.size)
        {
            self.tail = tail;
        }
        Ok(self.head != self.tail)
    }
}
