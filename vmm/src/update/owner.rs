//! The thread that owns all patches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use lucos_abi::Hello;
use update_server::addr::Gva;
use update_server::kernel::generation::Generation;
use update_server::server::{PatchId, UpdateServer};

use super::access::{Access, generation};
use super::admission::{Admitted, Origin};
use super::job::{Job, Looks, Step, Tries};
use super::linking;
use super::removal::Waiting;
use super::switch::Deadline;
use super::tombstones::Meeting;
use super::updates::{Event, Inbox};
use crate::agent::{AgentLink, Answer, Outcome};
use crate::control::ControlError;
use crate::control::model::{AgentInfo, PatchInfo, PatchState};

/// Why a patch is gone.
pub(super) const ANOTHER_KERNEL: &str = "the guest has started another kernel";
/// For how long the kernel may be none that is known before it counts as gone: it may be about to bring a processor up or down.
const UNKNOWN_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at it then.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(1);
/// Times that the agent is asked for the same: each time it has ended before it has answered.
const ASKED_MAX: u32 = 3;
/// `EEXIST` (include/uapi/asm-generic/errno-base.h): there is a module of that name.
const EEXIST: u32 = 17;

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
    asked: BTreeMap<PatchId, u32>,
    /// Patches that wait for a module to go.
    pub(super) waiting: Vec<Waiting>,
    hello: Option<Hello>,
    pub(super) taint: Option<u64>,
    /// Since when no kernel was found, and when to look again.
    unknown: Option<(Instant, Instant)>,
    /// Who has come to a tombstone, and waits for old code.
    pub(super) meeting: Option<Meeting>,
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
                None => self.do_what_is_due(),
            }
            self.serve_waiting();
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Apply { admitted, limit, reply } => {
                self.apply_when_free(*admitted, limit, reply);
            }
            Event::RollBack { id, limit, reply } => {
                let answer = self.roll_back(PatchId(id), limit);
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
                self.unknown = None;
                self.gone("the machine was reset");
                self.publish();
            }
            Event::Quit => {}
        }
    }

    pub(super) fn apply(&mut self, admitted: Admitted, limit: Deadline) -> Result<PatchInfo, ControlError> {
        let name = admitted.patch.name.clone();
        if let Some(obstacle) = self.link.hello().and_then(|hello| hello.obstacle(false)) {
            return Err(refused("guest_refuses", format!("{name} cannot be loaded: {obstacle}")));
        }
        let generation = generation(&*self.access)?;
        self.compare(&generation);
        // One that was not applied may have left its module behind.
        let has_module = |job: &Job| job.is_in_guest() || matches!(job.step(), Step::Resident);
        let known = self.jobs.values().find(|job| job.name() == name && has_module(job));
        if let Some(known) = known {
            let (id, state) = (known.id, known.state());
            if !matches!(known.step(), Step::Leaving(_) | Step::Resident) {
                let why = format!("{name} is patch {} already, and {state}", id.0);
                return Err(refused("already_applied", why));
            }
            if !known.admitted.is(&admitted) {
                let module = &known.admitted.module;
                let why = format!(
                    "another patch called {name} was rolled back, and its module {module} is still in the guest; give the new \
                     one another name"
                );
                return Err(refused("other_patch", why));
            }
            let job = self.jobs.get_mut(&id).expect("it was found");
            (job.limit, job.admitted) = (limit.get(), admitted);
            job.go(Step::Applying(Tries::within(limit.get())), None);
            return Ok(job.info());
        }
        if let Some(id) = self.removed(&admitted) {
            self.asked.remove(&id);
            let step = self.load(id, &admitted, &generation, limit.get())?;
            let job = self.jobs.get_mut(&id).expect("it was found");
            (job.limit, job.admitted, job.generation) = (limit.get(), admitted, generation);
            job.go(step, None);
            return Ok(job.info());
        }
        self.forget_oldest();
        let id = self
            .server
            .add(admitted.patch.clone())
            .map_err(|error| refused("too_many", error.to_string()))?;
        let step = self.load(id, &admitted, &generation, limit.get()).inspect_err(|_| {
            // It was added just now and is not applied.
            drop(self.server.remove(id));
        })?;
        tracing::info!(patch = id.0, name, "a patch was admitted");
        let mut job = Job::new(id, admitted, generation, limit.get(), step);
        if self.link.hello().is_none() {
            job.why = Some("no agent has shown itself in the guest; start lucos-agent there".to_owned());
        }
        let info = job.info();
        self.jobs.insert(id, job);
        Ok(info)
    }

    /// The patch that `admitted` was before it was removed: it keeps its number.
    fn removed(&self, admitted: &Admitted) -> Option<PatchId> {
        let removed = self.jobs.values().filter(|job| job.state() == PatchState::Removed);
        let mut same = removed.filter(|job| job.admitted.is(admitted));
        same.next_back().map(|job| job.id)
    }

    /// Asks the agent to load a patch's module.
    fn load(
        &mut self,
        id: PatchId,
        admitted: &Admitted,
        generation: &Generation,
        limit: Duration,
    ) -> Result<Step, ControlError> {
        let (access, server) = (&*self.access, &mut self.server);
        let request = linking::ask_to_load(access, server, &self.link, id, admitted, generation)?;
        *self.asked.entry(id).or_default() += 1;
        Ok(Step::Loading { request, until: Instant::now() + limit })
    }

    fn roll_back(&mut self, id: PatchId, limit: Deadline) -> Result<PatchInfo, ControlError> {
        let job = self.jobs.get_mut(&id).ok_or(ControlError::NoPatch { id: id.0 })?;
        match job.step() {
            Step::Loading { request, .. } => {
                self.link.withdraw(request);
                job.go(Step::Failed, Some("it was taken back before it was applied".to_owned()));
            }
            // It may have been on its way out before.
            Step::Applying(_) if self.server.has_run(id) => job.go(Step::Leaving(Looks::begin()), None),
            // Or another try to remove what was left.
            Step::Applying(_) | Step::Resident => self.remove_module(id),
            Step::Draining(_) | Step::Filling(_) | Step::Closed => {
                job.limit = limit.get();
                job.go(Step::RollingBack(Tries::within(job.limit)), None);
            }
            Step::RollingBack(_)
            | Step::Leaving(_)
            | Step::Removing(_)
            | Step::Removed
            | Step::Failed
            | Step::Gone => {
                let why = format!("patch {} ({}) is {} and not applied", id.0, job.name(), job.state());
                return Err(refused("not_applied", why));
            }
        }
        self.jobs.get(&id).map(Job::info).ok_or(ControlError::NoPatch { id: id.0 })
    }

    /// Takes what the agent has to say.
    fn hear_agent(&mut self) {
        let hello = self.link.hello();
        if hello != self.hello {
            self.hello = hello;
            self.taint = hello.map(|hello| hello.taint.get());
            // A new agent may be one of a new kernel.
            self.check();
            for job in self.jobs.values_mut().filter(|job| job.state() == PatchState::Loading) {
                job.why = None;
            }
            self.remove_residents(|_, _| true);
        }
        for answer in self.link.take_answers() {
            self.hear_answer(answer);
        }
        if let Some(submission) = self.link.take_submission() {
            let updates = &self.inbox.updates;
            let admitted = updates.admit(&submission.bytes, false, Origin::Guest, &*self.access);
            let applied = admitted.and_then(|admitted| {
                if self.is_free(&admitted.module) {
                    return self.apply(admitted, Deadline::USUAL);
                }
                let why = format!("module {} is being unloaded; hand it in again", admitted.module);
                Err(refused("already_applied", why))
            });
            match applied {
                Ok(info) => {
                    tracing::info!(patch = info.id, name = submission.name, "a patch came from the guest");
                }
                Err(error) => {
                    tracing::warn!(name = submission.name, "a patch from the guest was refused: {error}");
                }
            }
        }
    }

    fn hear_answer(&mut self, answer: Answer) {
        let asked =
            |job: &&mut Job| matches!(job.step(), Step::Loading { request, .. } if request == answer.id);
        let Some(job) = self.jobs.values_mut().find(asked) else {
            self.hear_unloaded(&answer);
            return;
        };
        let id = job.id;
        match answer.outcome {
            Outcome::Done { taint, sections } => {
                self.taint = Some(taint);
                let known = sections.into_iter().filter(|section| section.address != 0);
                let known = known.map(|section| (section.name, Gva(section.address))).collect();
                self.alleged.insert(id, known);
                job.go(Step::Applying(Tries::within(job.limit)), None);
            }
            // It may be the patch's own module, from an agent that has ended before it could say so. What it is, is looked at.
            Outcome::Failed { errno: EEXIST, taint } => {
                self.taint = Some(taint);
                job.go(Step::Applying(Tries::within(job.limit)), None);
            }
            Outcome::Failed { errno, taint } => {
                self.taint = Some(taint);
                let error = std::io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or(i32::MAX));
                let module = &job.admitted.module;
                let why =
                    format!("the guest's kernel refuses module {module}: {error}; its log (dmesg) says more");
                job.go(Step::Failed, Some(why));
            }
            Outcome::Lost if self.asked.get(&id).is_some_and(|asked| *asked >= ASKED_MAX) => {
                let why =
                    format!("the guest's agent has ended {ASKED_MAX} times while it was to load the module");
                job.go(Step::Failed, Some(why));
            }
            Outcome::Lost => {
                let until = job.due().unwrap_or_else(Instant::now);
                let (access, server) = (&*self.access, &mut self.server);
                *self.asked.entry(id).or_default() += 1;
                match linking::ask_to_load(access, server, &self.link, id, &job.admitted, &job.generation) {
                    Ok(request) => job.go(Step::Loading { request, until }, job.why.clone()),
                    Err(error) => job.go(Step::Failed, Some(error.to_string())),
                }
            }
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
    fn check(&mut self) {
        if !self.jobs.values().any(Job::is_in_guest) {
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

    fn compare(&mut self, found: &Generation) {
        if self.jobs.values().any(|job| job.is_in_guest() && job.generation != *found) {
            self.gone(ANOTHER_KERNEL);
            self.publish();
        }
    }

    /// The kernel that all was done in is gone.
    pub(super) fn gone(&mut self, why: &str) {
        self.server.kernel_is_gone();
        self.inbox.updates.stubs().watch(Vec::new());
        self.alleged.clear();
        self.asked.clear();
        for job in self.jobs.values_mut() {
            if let Some(request) = job.request() {
                self.link.withdraw(request);
            }
            job.settle_failed();
        }
        for job in self.jobs.values_mut().filter(|job| job.is_in_guest()) {
            tracing::warn!(patch = job.id.0, name = job.name(), "a patch is gone: {why}");
            job.go(Step::Gone, Some(why.to_owned()));
        }
        self.forget_tombstones();
    }

    /// Makes room for another patch among those that are of no more use.
    fn forget_oldest(&mut self) {
        if self.jobs.len() < update_server::limits::PATCHES {
            return;
        }
        let server = &self.server;
        let is_over = |job: &&Job| !job.is_in_guest() && job.due().is_none() && !server.is_released(job.id);
        let oldest = self.jobs.values().find(is_over).map(|job| job.id);
        if let Some(id) = oldest
            && self.server.remove(id).is_ok()
        {
            self.jobs.remove(&id);
        }
    }

    /// Shows everybody what there is.
    pub(super) fn publish(&self) {
        let agent = self.hello.map(|hello| AgentInfo {
            version: hello.version().unwrap_or_default().to_owned(),
            pid: hello.pid.get(),
            obstacle: hello.obstacle(false).map(str::to_owned),
        });
        let patches: Vec<PatchInfo> = self.jobs.values().map(Job::info).collect();
        self.link.set_status(for_the_guest(&patches));
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

fn refused(code: &'static str, why: String) -> ControlError {
    ControlError::PatchRefused { code, why }
}
