//! The way to a guest without a patch's module: it is given free when it is unused, the agent is asked to unload it, and if the
//! guest does not, it is held again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lucos_abi::Known;
use update_server::addr::Gva;
use update_server::census::Loaded;
use update_server::kernel::generation::Generation;
use update_server::kernel::running::Running;
use update_server::server::{Held, PatchId, SwitchError, UpdateServer};

use super::access::{Access, looking, pausing};
use super::admission::Admitted;
use super::job::Job;
use super::owner::Owner;
use super::step::{Removal, Stage, Step};
use super::switch::Deadline;
use super::updates::Reply;
use crate::agent::{Answer, Order, Outcome};
use crate::control::ControlError;
use crate::control::model::PatchState;
use crate::inspect;

/// For how long the agent may take to unload a module: the kernel waits for all that may be about to use it.
const UNLOAD_LIMIT: Duration = Duration::from_secs(30);
/// `EWOULDBLOCK` (include/uapi/asm-generic/errno-base.h, `EAGAIN`): the module is used.
const EWOULDBLOCK: u32 = 11;
/// What is still to be looked at.
const SAYS_UNLOADED: &str = "the guest says that it has unloaded the module";
/// A patch that is to be applied when its module, which is about to be unloaded, has gone.
pub(super) struct Waiting {
    admitted: Admitted,
    limit: Deadline,
    reply: Reply,
    /// Until when it waits.
    pub(super) until: Instant,
}

/// What a pause has shown.
enum Looked {
    /// The module is there, and what was wanted is done.
    Here,
    /// It is not.
    Absent,
    /// Another time, perhaps.
    NotNow(String),
    /// Never.
    Never(String),
    /// The kernel is another one.
    Gone,
}

impl Looked {
    fn of(result: Option<Result<Held, Box<SwitchError>>>) -> Self {
        match result {
            None => Self::Gone,
            Some(Ok(Held::Here)) => Self::Here,
            Some(Ok(Held::Absent)) => Self::Absent,
            Some(Err(error)) => match *error {
                SwitchError::NotNow(why) => Self::NotNow(why.to_string()),
                SwitchError::Refused(why) => Self::Never(why.to_string()),
            },
        }
    }
}

impl Owner {
    /// Begins to remove the module of a patch that is not applied, or says why it stays.
    pub(super) fn remove_module(&mut self, id: PatchId) {
        let user = self.user_of_module(id).map(str::to_owned);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let stays = job.admitted.patch.module.stays().map(|why| why.to_string());
        match user.map(|user| format!("patch {user} uses the same module")).or(stays) {
            // Given free, and not held again in time: that comes first.
            _ if self.server.is_released(id) => {
                let hold = Removal::begin().at(Stage::Holding { due: Instant::now() });
                job.go(Step::Removing(hold), None);
            }
            Some(why) => job.go(Step::Resident, Some(why)),
            None => job.go(Step::Removing(Removal::begin()), None),
        }
    }

    /// Another patch that has, or will have, its code in a module of the same name.
    fn user_of_module(&self, id: PatchId) -> Option<&str> {
        let module = &self.jobs.get(&id)?.admitted.module;
        let mut others = self.jobs.values().filter(|job| job.id != id && job.admitted.module == *module);
        let uses =
            |job: &&Job| job.is_in_guest() && !matches!(job.step(), Step::Removing(_) | Step::Resident);
        others.find(uses).map(Job::name)
    }

    /// A patch has failed, or is gone, and its module is in the guest.
    pub(super) fn end_loaded(&mut self, id: PatchId, state: PatchState, why: String) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.end_loaded(state, why);
        self.remove_module(id);
    }

    /// A patch is not applied, as nobody waits any longer for the `request` to load its module. The agent may be about to do it.
    pub(super) fn not_loaded(&mut self, id: PatchId, request: u32, why: String) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if self.link.withdraw(request) {
            job.late = Some(request);
            self.end_loaded(id, PatchState::Failed, why);
        } else {
            job.go(Step::Failed, Some(why));
        }
    }

    /// Tries again to remove what stays in the guest and need not, of those that are `meant`.
    pub(super) fn remove_residents(&mut self, meant: impl Fn(&Job, &UpdateServer) -> bool) {
        let is_meant = |job: &&Job| matches!(job.step(), Step::Resident) && meant(job, &self.server);
        let residents: Vec<PatchId> = self.jobs.values().filter(is_meant).map(|job| job.id).collect();
        for id in residents {
            self.remove_module(id);
        }
    }

    /// Goes on with what is due.
    pub(super) fn go_on_removing(&mut self, id: PatchId, removal: Removal) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match removal.stage {
            Stage::Releasing { .. } => self.release(id, removal),
            Stage::Unloading { request, .. } => {
                self.link.withdraw(request);
                let limit = UNLOAD_LIMIT.as_secs();
                let why = format!("the guest's agent has not unloaded the module within {limit} s");
                job.go(Step::Removing(removal.at(Stage::Holding { due: Instant::now() })), Some(why));
            }
            Stage::Holding { .. } => self.hold(id, removal),
        }
    }

    fn release(&mut self, id: PatchId, removal: Removal) {
        let obstacle = match self.link.hello() {
            None => Some("no agent has shown itself in the guest, which would unload it"),
            Some(hello) if hello.modules_disabled() == Some(Known::Yes) => Some(
                "the guest's kernel unloads no module until its next boot (kernel.modules_disabled is 1)",
            ),
            Some(_) => None,
        };
        let nothing = BTreeMap::new();
        let alleged = self.alleged.get(&id).unwrap_or(&nothing);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if let Some(obstacle) = obstacle {
            job.go(Step::Resident, Some(obstacle.to_owned()));
            return;
        }
        let module = job.admitted.module.clone();
        let looked = release(&*self.access, &mut self.server, id, &module, &job.generation, alleged);
        match looked.unwrap_or_else(|error| Looked::NotNow(error.to_string())) {
            Looked::Here => {
                let why = job.why.clone();
                let (stage, why) = match self.link.ask(Order::Unload { name: module }) {
                    Ok(request) => (Stage::Unloading { request, until: Instant::now() + UNLOAD_LIMIT }, why),
                    Err(error) => (Stage::Holding { due: Instant::now() }, Some(error.to_string())),
                };
                job.go(Step::Removing(removal.at(stage)), why);
            }
            Looked::NotNow(why) => {
                tracing::debug!(patch = id.0, module, "not now: {why}");
                self.again(id, removal.next(|due| Stage::Releasing { due }), why);
            }
            other => self.end_removal(id, other),
        }
    }

    /// The agent has answered.
    pub(super) fn hear_unloaded(&mut self, answer: &Answer) {
        let asked = |job: &&mut Job| match job.step() {
            Step::Removing(Removal { stage: Stage::Unloading { request, .. }, .. }) => request == answer.id,
            _ => false,
        };
        let Some(job) = self.jobs.values_mut().find(asked) else { return };
        let Step::Removing(removal) = job.step() else { return };
        let why = match answer.outcome {
            Outcome::Done { taint, .. } => {
                self.taint = Some(taint);
                SAYS_UNLOADED.to_owned()
            }
            Outcome::Failed { errno: EWOULDBLOCK, taint } => {
                self.taint = Some(taint);
                "the guest does not unload the module: somebody there uses it".to_owned()
            }
            Outcome::Failed { errno, taint } => {
                self.taint = Some(taint);
                let error = std::io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or(i32::MAX));
                format!("the guest does not unload the module: {error}")
            }
            Outcome::Lost => "the guest's agent has ended while it was to unload the module".to_owned(),
        };
        // Whatever it says is looked at.
        job.go(Step::Removing(removal.at(Stage::Holding { due: Instant::now() })), Some(why));
    }

    fn hold(&mut self, id: PatchId, removal: Removal) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let said = job.why.clone().unwrap_or_default();
        let looked = hold(&*self.access, &mut self.server, id, &job.admitted.module, &job.generation);
        match looked.unwrap_or_else(|error| Looked::NotNow(error.to_string())) {
            Looked::Here => {
                let said = if said == SAYS_UNLOADED { format!("{said}, and has it still") } else { said };
                self.again(id, removal.next(|due| Stage::Releasing { due }), said);
            }
            Looked::NotNow(why) => self.again(id, removal.next(|due| Stage::Holding { due }), why),
            other => self.end_removal(id, other),
        }
    }

    /// Tries again later, unless there were tries enough, or somebody wants to have the module as it is.
    fn again(&mut self, id: PatchId, next: Option<Removal>, why: String) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let is_wanted = self.waiting.iter().any(|waiting| waiting.admitted.module == job.admitted.module);
        match next.filter(|next| !is_wanted || matches!(next.stage, Stage::Holding { .. })) {
            Some(next) => job.go(Step::Removing(next), Some(why)),
            None => job.go(Step::Resident, Some(why)),
        }
    }

    fn end_removal(&mut self, id: PatchId, looked: Looked) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match looked {
            Looked::Absent => {
                tracing::info!(patch = id.0, name = job.name(), "its module is not in the guest any more");
                let module = job.admitted.module.clone();
                // Others may have had the same.
                let same = |other: &&mut Job| other.admitted.module == module;
                for job in self.jobs.values_mut().filter(same) {
                    if job.id == id || matches!(job.step(), Step::Resident) {
                        job.go(Step::Removed, None);
                        self.server.forget_module(job.id);
                        self.alleged.remove(&job.id);
                    }
                }
            }
            Looked::Never(why) | Looked::NotNow(why) => job.go(Step::Resident, Some(why)),
            Looked::Gone => self.is_of_another(id),
            Looked::Here => {}
        }
    }

    /// Answers a request to apply a patch, if need be when a module of its name that is about to be unloaded has gone.
    pub(super) fn apply_when_free(
        &mut self,
        admitted: Admitted,
        limit: Deadline,
        reply: Reply,
        until: Instant,
    ) {
        self.remove_residents(|job, server| {
            job.admitted.module == admitted.module && server.is_released(job.id)
        });
        self.waiting.push(Waiting { admitted, limit, reply, until });
        self.serve_waiting();
    }

    /// Serves those who have waited for long enough.
    pub(super) fn serve_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.until <= Instant::now() {
                let module = &waiting.admitted.module;
                let why =
                    format!("the guest is unloading module {module}, and has not done so in time; try again");
                drop(waiting.reply.send(Err(ControlError::PatchRefused { code: "module_goes", why })));
            } else if self.is_free(&waiting.admitted.module) {
                let module = waiting.admitted.module.clone();
                // It is the operator's will again.
                self.taken_back.remove(&waiting.admitted.patch.name);
                let answer = self.apply(waiting.admitted, waiting.limit);
                if answer.is_err() {
                    // Removals have made room for it.
                    self.remove_residents(|job, _| job.admitted.module == module);
                }
                self.publish();
                drop(waiting.reply.send(answer));
            } else {
                self.waiting.push(waiting);
            }
        }
    }

    /// Whether nobody is about to unload the module called `module`. Whoever has not begun yet does not.
    pub(super) fn is_free(&mut self, module: &str) -> bool {
        let mut free = true;
        for job in self.jobs.values_mut().filter(|job| job.admitted.module == module) {
            match job.step() {
                Step::Removing(Removal { stage: Stage::Releasing { .. }, .. }) => {
                    job.go(Step::Resident, Some("a patch with the same module is being applied".to_owned()));
                }
                Step::Removing(_) => free = false,
                Step::Resident if self.server.is_released(job.id) => free = false,
                _ => {}
            }
        }
        free
    }
}

/// Gives the module free, if it is unused.
fn release(
    access: &dyn Access,
    server: &mut UpdateServer,
    id: PatchId,
    module: &str,
    expected: &Generation,
    alleged: &BTreeMap<String, Gva>,
) -> Result<Looked, ControlError> {
    let mut known = access.inspector().stacks();
    let sections = looking(access, |model, memory| {
        inspect::prepare(model, memory, expected, &mut known);
        inspect::sections(model, memory, expected.place, &known, module)
    })?;
    // Whether there is a module at all is looked at in the pause.
    let sections = sections.unwrap_or_else(|_| alleged.clone());
    let (released, _) = pausing(access, |model, guest| {
        inspect::settle_and(model, guest, &mut known, |kernel, generation, census| {
            (generation == expected).then(|| server.release(id, module, kernel, guest, census, &sections))
        })
    })?;
    Ok(Looked::of(released))
}

/// Holds the module again, if it is still there.
fn hold(
    access: &dyn Access,
    server: &mut UpdateServer,
    id: PatchId,
    module: &str,
    expected: &Generation,
) -> Result<Looked, ControlError> {
    let known = looking(access, |model, memory| inspect::loaded(model, memory, expected.place))?;
    let (held, _) = pausing(access, |model, guest| {
        if inspect::generation(model, guest)? != *expected {
            return Ok(None);
        }
        let loaded: Loaded = inspect::confirm_loaded(model, guest, expected, &known)?;
        let kernel = Running::at(model, guest, expected.place);
        Ok(Some(server.hold(id, module, &kernel, guest, &loaded)))
    })?;
    Ok(Looked::of(held))
}
