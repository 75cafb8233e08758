//! The way to the owner of patches, for everybody else: events, and what may be read without asking.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use lucos_lup::PublicKey;

use super::access::Access;
use super::admission::{Admitted, Origin};
use super::board::Board;
use super::stubs::StubExits;
use super::switch::Deadline;
use crate::agent::AgentEvents;
use crate::control::ControlError;
use crate::control::model::PatchInfo;
use crate::vcpu::{Met, Tombstones};

/// How long a request of the control API may wait for the owner, who may be in the middle of something.
const REQUEST_LIMIT: Duration = Duration::from_mins(1);
/// How long after a request was made it may be begun: whoever has made it is still there to hear what came of it.
const BEGIN_LIMIT: Duration = Duration::from_secs(45);

pub(super) type Reply = SyncSender<Result<PatchInfo, ControlError>>;

/// What others tell the owner.
pub(super) enum Event {
    Apply {
        admitted: Box<Admitted>,
        limit: Deadline,
        reply: Reply,
        /// When it is too late to begin.
        until: Instant,
    },
    RollBack {
        id: u32,
        limit: Deadline,
        reply: Reply,
        /// See `Apply`.
        until: Instant,
    },
    /// The agent's side has something new.
    Agent,
    /// A vCPU has come to a tombstone.
    Met(Met),
    /// Somebody has come through a stub.
    Stubs,
    /// Whether the kernel still runs that patches were applied to.
    Check(SyncSender<()>),
    /// The machine was reset.
    Reset,
    Quit,
}

/// The way to the owner, for everybody.
#[derive(Debug, Clone)]
pub struct Updates {
    sender: Sender<Event>,
    board: Arc<Board>,
    keys: Arc<[PublicKey]>,
    /// Whether [`Event::Agent`] is on its way, so that a guest cannot fill the queue.
    told: Arc<AtomicBool>,
    /// Where old code is filled with traps, for vCPUs.
    tombstones: Arc<Tombstones>,
    stubs: Arc<StubExits>,
}

impl Updates {
    /// A way to an owner who has not begun yet. Signatures of `keys` count.
    pub fn new(keys: Vec<PublicKey>) -> (Self, Inbox) {
        let (sender, receiver) = channel();
        let told = Arc::new(AtomicBool::new(false));
        let events = sender.clone();
        // Only at the machine's end nobody is there.
        let stubs = Arc::new(StubExits::new(move || drop(events.send(Event::Stubs))));
        let met = sender.clone();
        let tombstones = Arc::new(Tombstones::new(move |at| drop(met.send(Event::Met(at)))));
        let updates = Self { sender, board: Arc::default(), keys: keys.into(), told, tombstones, stubs };
        let inbox = Inbox { receiver, updates: updates.clone() };
        (updates, inbox)
    }

    /// What vCPUs see of those who leave old code.
    pub fn stubs(&self) -> &Arc<StubExits> {
        &self.stubs
    }

    /// What everybody may read.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Where old code is filled with traps.
    pub(crate) fn tombstones(&self) -> &Arc<Tombstones> {
        &self.tombstones
    }

    /// Takes a patch of the operator's; `unsigned` says that it needs no signature.
    pub(crate) fn apply(
        &self,
        file: &[u8],
        unsigned: bool,
        limit: Deadline,
        access: &dyn Access,
    ) -> Result<PatchInfo, ControlError> {
        let admitted = self.admit(file, unsigned, Origin::Operator, access)?;
        self.ask(|reply, until| Event::Apply { admitted: Box::new(admitted), limit, reply, until })
    }

    /// Rolls a patch back.
    pub(crate) fn roll_back(&self, id: u32, limit: Deadline) -> Result<PatchInfo, ControlError> {
        self.ask(|reply, until| Event::RollBack { id, limit, reply, until })
    }

    /// Makes sure that what is on the board is of the kernel that runs.
    pub(crate) fn check(&self) {
        if self.board.list().patches.iter().all(|patch| !patch.state.is_applied()) {
            return;
        }
        let (reply, done) = sync_channel(1);
        if self.sender.send(Event::Check(reply)).is_ok() {
            // Whoever waits is told what is known, in any case.
            let _ = done.recv_timeout(REQUEST_LIMIT);
        }
    }

    /// The machine was reset.
    pub(crate) fn reset(&self) {
        self.send(Event::Reset);
    }

    /// The machine is at its end.
    pub(crate) fn quit(&self) {
        self.send(Event::Quit);
    }

    pub(super) fn admit(
        &self,
        file: &[u8],
        unsigned: bool,
        origin: Origin,
        access: &dyn Access,
    ) -> Result<Admitted, ControlError> {
        let model =
            access.inspector().model().map_err(|error| ControlError::Host { why: error.to_string() })?;
        Admitted::read(file, &self.keys, unsigned, origin, &model)
    }

    fn ask(&self, event: impl FnOnce(Reply, Instant) -> Event) -> Result<PatchInfo, ControlError> {
        let (reply, answer) = sync_channel(1);
        self.send(event(reply, Instant::now() + BEGIN_LIMIT));
        let slow =
            || ControlError::Host { why: "the patches' owner does not answer; see the VMM's log".into() };
        answer.recv_timeout(REQUEST_LIMIT).map_err(|_| slow())?
    }

    /// The owner is about to hear the agent's side.
    pub(super) fn heard(&self) {
        self.told.store(false, Ordering::Release);
    }

    fn send(&self, event: Event) {
        // Only at the machine's end nobody is there.
        drop(self.sender.send(event));
    }
}

impl AgentEvents for Updates {
    fn changed(&self) {
        if !self.told.swap(true, Ordering::AcqRel) {
            self.send(Event::Agent);
        }
    }
}

/// The owner's end.
#[derive(Debug)]
pub struct Inbox {
    pub(super) receiver: Receiver<Event>,
    pub(super) updates: Updates,
}
