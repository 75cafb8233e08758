//! The thread that owns all patches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use lucos_abi::Hello;
use update_server::addr::Gva;
use update_server::kernel::generation::Generation;
use update_server::server::{PatchId, UpdateServer};

use super::access::{Access, generation};
use super::job::Job;
use super::removal::Waiting;
use super::step::Step;
use super::tombstones::Meeting;
use super::updates::{Event, Inbox};
use crate::agent::AgentLink;
use crate::control::ControlError;
use crate::control::model::{AgentInfo, PatchInfo};

/// Why a patch is gone.
pub(super) const ANOTHER_KERNEL: &str = "the guest has started another kernel";
/// For how long the kernel may be none that is known before it counts as gone: it may be about to bring a processor up or down.
const UNKNOWN_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at it then.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(1);

/// Everything that is known of the patches of one machine.
pub struct Owner {
    pub(super) inbox: Inbox,
    pub(super) access: Arc<dyn Access>,
    pub(super) link: Arc<AgentLink>,
    pub(super) server: UpdateServer,
    pub(super) jobs: BTreeMap<PatchId, Job>,
    /// Where the agent says that modules' sections are.
    pub(super) alleged: BTreeMap<PatchId, BTreeMap<String, Gva>>,
    /// How often it was asked for each.
    pub(super) asked: BTreeMap<PatchId, u32>,
    /// Patches that wait for a module to go.
    pub(super) waiting: Vec<Waiting>,
    pub(super) hello: Option<Hello>,
    pub(super) taint: Option<u64>,
    /// Since when no kernel was found, and when to look again.
    unknown: Option<(Instant, Instant)>,
    /// Who has come to a tombstone, and waits for old code.
    pub(super) meeting: Option<Meeting>,
    /// Names of patches that the operator has rolled back, and has not applied again: the guest does not undo that.
    pub(super) taken_back: BTreeSet<String>,
    /// What became of the last patch from inside the guest, if it was refused.
    pub(super) turned_down: Option<String>,
}

impl Owner {
    /// Of the machine that `access` leads to, and the agent behind `link`.
    pub fn new(inbox: Inbox, access: Arc<dyn Access>, link: Arc<AgentLink>) -> Self {
        Self {
            inbox,
            access,
            link,
            server: UpdateServer::default(),
            jobs: BTreeMap::new(),
            alleged: BTreeMap::new(),
            asked: BTreeMap::new(),
            waiting: Vec::new(),
            hello: None,
            taint: None,
            unknown: None,
            meeting: None,
            taken_back: BTreeSet::new(),
            turned_down: None,
        }
    }

    /// Does what is due and what it is told, until the machine's end.
    pub fn run(mut self) {
        self.publish();
        loop {
            let other = self.unknown.map(|(_, due)| due).into_iter().chain(self.meeting.map(Meeting::due));
            let waiting = self.waiting.iter().map(|waiting| waiting.until);
            let due = self.jobs.values().filter_map(Job::due).chain(other).chain(waiting).min();
            let event = match due {
                Some(due) => {
                    let wait = due.saturating_duration_since(Instant::now());
                    match self.inbox.receiver.recv_timeout(wait) {
                        Ok(event) => Some(event),
                        Err(RecvTimeoutError::Timeout) => None,
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
                None => match self.inbox.receiver.recv() {
                    Ok(event) => Some(event),
                    Err(_) => return,
                },
            };
            match event {
                Some(Event::Quit) => return,
                Some(event) => self.handle(event),
                None => {}
            }
            // Whatever else comes: a guest that never stops to send events keeps nothing from being done.
            self.do_what_is_due();
            self.serve_waiting();
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            // Whoever has asked was told that nobody has answered.
            Event::Apply { until, .. } | Event::RollBack { until, .. } if Instant::now() >= until => {
                tracing::warn!("a request for a patch has waited for too long, and is not carried out");
            }
            Event::Apply { admitted, limit, reply, until } => {
                self.apply_when_free(*admitted, limit, reply, until);
            }
            Event::RollBack { id, limit, reply, .. } => {
                let answer = self.roll_back_for_good(PatchId(id), limit);
                self.publish();
                drop(reply.send(answer));
            }
            Event::Agent => {
                self.inbox.updates.heard();
                self.hear_agent();
                self.publish();
            }
            Event::Met(met) => self.meet(Meeting::of(met)),
            Event::Stubs => {
                self.hear_stubs();
                self.publish();
            }
            Event::Check(reply) => {
                self.check();
                let _ = reply.send(());
            }
            Event::Reset => {
                self.hello = None;
                self.taint = None;
                self.turned_down = None;
                self.unknown = None;
                self.gone("the machine was reset");
                self.publish();
            }
            Event::Quit => {}
        }
    }

    fn do_what_is_due(&mut self) {
        let now = Instant::now();
        if self.unknown.is_some_and(|(_, due)| due <= now) {
            self.check();
        }
        if let Some(meeting) = self.meeting.take_if(|meeting| meeting.due() <= now) {
            self.meet(meeting);
        }
        let due: Vec<PatchId> = self
            .jobs
            .values()
            .filter(|job| job.due().is_some_and(|due| due <= now))
            .map(|job| job.id)
            .collect();
        for id in due {
            self.go_on(id);
            self.publish();
        }
    }

    /// Whether the kernel still runs that patches are in.
    pub(super) fn check(&mut self) {
        if !self.jobs.values().any(|job| job.is_in_guest() || job.is_ended()) {
            self.unknown = None;
            return;
        }
        match generation(&*self.access) {
            Ok(found) => {
                self.unknown = None;
                self.compare(&found);
                self.look_for_unloaded(&found);
            }
            Err(ControlError::UnknownKernel { why }) => {
                let now = Instant::now();
                let since = self.unknown.map_or(now, |(since, _)| since);
                if now.duration_since(since) >= UNKNOWN_LIMIT {
                    self.unknown = None;
                    self.gone(&format!("the kernel that it was applied to does not run any more: {why}"));
                    self.publish();
                } else {
                    self.unknown = Some((since, now + UNKNOWN_PAUSE));
                }
            }
            // The machine is about to end, or to be reset.
            Err(_) => self.unknown = None,
        }
    }

    /// Whether it is `found`. All that is in the guest is of one run of the kernel; what has ended may be of an older one.
    pub(super) fn compare(&mut self, found: &Generation) {
        self.forget_ended(|generation| generation != found);
        if self.jobs.values().any(|job| job.is_in_guest() && job.generation != *found) {
            self.gone(ANOTHER_KERNEL);
            self.publish();
        }
    }

    /// The kernel that runs is not the one that the patch `id` is of.
    pub(super) fn is_of_another(&mut self, id: PatchId) {
        let Some(of) = self.jobs.get(&id).map(|job| job.generation.clone()) else { return };
        if self.jobs.values().any(|job| job.is_in_guest() && job.generation == of) {
            self.gone(ANOTHER_KERNEL);
        } else {
            self.forget_ended(|generation| *generation == of);
        }
    }

    /// Nothing is left in the guest of patches that have ended in a run of the kernel that `is_over`.
    fn forget_ended(&mut self, is_over: impl Fn(&Generation) -> bool) {
        for job in self.jobs.values_mut().filter(|job| job.is_ended() && is_over(&job.generation)) {
            if let Some(request) = job.step().request() {
                self.link.withdraw(request);
            }
            job.settle_ended();
            job.late = None;
            self.server.forget_module(job.id);
            self.alleged.remove(&job.id);
            self.asked.remove(&job.id);
        }
    }

    /// The kernel that all was done in is gone.
    pub(super) fn gone(&mut self, why: &str) {
        self.server.kernel_is_gone();
        self.inbox.updates.stubs().watch(Vec::new());
        self.alleged.clear();
        self.asked.clear();
        for job in self.jobs.values_mut() {
            if let Some(request) = job.step().request() {
                self.link.withdraw(request);
            }
            job.settle_ended();
        }
        for job in self.jobs.values_mut().filter(|job| job.is_in_guest()) {
            tracing::warn!(patch = job.id.0, name = job.name(), "a patch is gone: {why}");
            job.go(Step::Gone, Some(why.to_owned()));
        }
        self.forget_tombstones();
    }

    /// Shows everybody what there is.
    pub(super) fn publish(&self) {
        let agent = self.hello.map(|hello| AgentInfo {
            version: hello.version().unwrap_or_default().to_owned(),
            pid: hello.pid.get(),
            obstacle: hello.obstacle(false).map(str::to_owned),
        });
        let patches: Vec<PatchInfo> = self.jobs.values().map(Job::info).collect();
        let turned_down = self.turned_down.as_deref().unwrap_or_default();
        self.link.set_status(for_the_guest(&patches) + turned_down);
        self.inbox.updates.board().show(agent, self.taint, patches);
    }
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner").field("jobs", &self.jobs).finish_non_exhaustive()
    }
}

/// What `lucos-agent status` prints of them.
fn for_the_guest(patches: &[PatchInfo]) -> String {
    let line = |patch: &PatchInfo| {
        let why = patch.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        format!("{} {} {}{why}\n", patch.id, patch.name, patch.state)
    };
    patches.iter().map(line).collect()
}
