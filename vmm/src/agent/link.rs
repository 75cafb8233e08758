//! What is known of the agent, and all that goes to it and comes from it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use lucos_abi::{ErrorCode, Hello, Place, Report, Request, WAKE};

use super::requests::{Answer, AskError, Order, Requests};
use super::uploads::{Submission, Uploads};
use crate::device::serial::Uart;
use crate::log_limit::LogLimit;

/// Whoever owns updates, as the link calls it.
pub trait AgentEvents: Send + Sync {
    /// Something waits to be looked at: another agent ([`AgentLink::hello`]), answers ([`AgentLink::take_answers`]), or a
    /// patch from inside ([`AgentLink::take_submission`]).
    ///
    /// Called on the thread of a vCPU, by a guest as often as it likes: it wakes a thread, and neither waits nor keeps
    /// anything.
    fn changed(&self);
}

#[derive(Debug, Default)]
struct State {
    hello: Option<Hello>,
    requests: Requests,
    uploads: Uploads,
    status: Arc<str>,
}

/// The host's end of the way to the agent. It outlives a reset of the guest.
pub struct AgentLink {
    state: Mutex<State>,
    events: Arc<dyn AgentEvents>,
    uart: OnceLock<Arc<Uart>>,
    hellos: LogLimit,
}

impl fmt::Debug for AgentLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentLink").field("state", &self.state).finish_non_exhaustive()
    }
}

impl AgentLink {
    /// A way to an agent that has not said anything yet.
    pub fn new(events: Arc<dyn AgentEvents>) -> Self {
        Self { state: Mutex::default(), events, uart: OnceLock::new(), hellos: LogLimit::default() }
    }

    /// The agent is woken through `uart` from now on; only the first call counts.
    pub fn wake_through(&self, uart: Arc<Uart>) {
        // A second machine on one link would be a mistake of the embedder's, and the first one's agent is still there.
        drop(self.uart.set(uart));
    }

    /// The guest was reset: its agent is gone, and with it all that it was asked for or has begun.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.hello = None;
        state.requests.lose(true);
        state.uploads.reset();
        drop(state);
        self.events.changed();
    }

    /// What the agent has said of itself and its kernel.
    pub fn hello(&self) -> Option<Hello> {
        self.lock().hello
    }

    /// Asks the agent to do something; returns the id that the answer will have. An agent that is not there yet is asked
    /// when it comes.
    pub fn ask(&self, order: Order) -> Result<u32, AskError> {
        let id = self.lock().requests.ask(order)?;
        if let Some(uart) = self.uart.get() {
            uart.offer(WAKE);
        }
        Ok(id)
    }

    /// Takes a request back. Returns whether the agent may carry it out all the same, as it was told of it: then it is answered.
    pub fn withdraw(&self, id: u32) -> bool {
        self.lock().requests.withdraw(id)
    }

    /// The answers since the last time.
    pub fn take_answers(&self) -> Vec<Answer> {
        self.lock().requests.take_answers()
    }

    /// Whether patches may be handed in from inside the guest. At first they may not.
    pub fn allow_submissions(&self, allowed: bool) {
        self.lock().uploads.allow(allowed);
    }

    /// The patch that was handed in; until it is taken there is no other.
    pub fn take_submission(&self) -> Option<Submission> {
        self.lock().uploads.take()
    }

    /// What the guest reads when it asks what is known of its patches.
    pub fn set_status(&self, text: impl Into<Arc<str>>) {
        self.lock().status = text.into();
    }

    /// Somebody in the guest says that it is the agent.
    pub(super) fn say_hello(&self, hello: Hello) {
        let mut state = self.lock();
        state.hello = Some(hello);
        state.requests.lose(false);
        drop(state);
        if let Some(count) = self.hellos.pass() {
            let (version, release) =
                (hello.version().unwrap_or_default(), hello.release().unwrap_or_default());
            tracing::info!(count, version, pid = hello.pid.get(), release, "the guest's agent is here");
            if let Some(obstacle) = hello.obstacle(false) {
                tracing::warn!("no patch without a signature can be loaded: {obstacle}");
            }
        }
        self.events.changed();
    }

    /// Hands the next request out.
    pub(super) fn next(&self) -> Result<Option<Request>, ErrorCode> {
        Ok(self.lock_for_agent()?.requests.next())
    }

    /// The agent could not be told of a request.
    pub(super) fn put_back(&self, id: u32) {
        self.lock().requests.put_back(id);
    }

    /// The module that goes with a request.
    pub(super) fn module(&self, id: u32) -> Result<Arc<[u8]>, ErrorCode> {
        self.lock_for_agent()?.requests.module(id).ok_or(ErrorCode::UnknownRequest)
    }

    /// The agent answers a request.
    pub(super) fn report(&self, report: &Report, text: &[u8]) -> Result<(), ErrorCode> {
        self.lock_for_agent()?.requests.report(report, text)?;
        self.events.changed();
        Ok(())
    }

    /// Whether bytes of a patch would be taken now.
    pub(super) fn check_upload(&self, place: Place, len: usize) -> Result<(), ErrorCode> {
        self.lock().uploads.check(place, len)
    }

    /// Takes bytes of a patch.
    pub(super) fn upload(&self, place: Place, bytes: &[u8]) -> Result<(), ErrorCode> {
        self.lock().uploads.write(place, bytes)
    }

    /// A patch is handed over.
    pub(super) fn submit(&self, place: Place, name: &str) -> Result<u32, ErrorCode> {
        let number = self.lock().uploads.submit(place, name)?;
        self.events.changed();
        Ok(number)
    }

    /// What is said of the patches.
    pub(super) fn status(&self) -> Arc<str> {
        Arc::clone(&self.lock().status)
    }

    fn lock_for_agent(&self) -> Result<MutexGuard<'_, State>, ErrorCode> {
        let state = self.lock();
        if state.hello.is_some() { Ok(state) } else { Err(ErrorCode::NoAgent) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
