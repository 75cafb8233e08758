//! What operators, and the guest, ask for: patches to apply, and to roll back.

use std::time::{Duration, Instant};

use update_server::kernel::generation::Generation;
use update_server::kernel::lockdown;
use update_server::kernel::model::Model;
use update_server::kernel::running::Running;
use update_server::server::PatchId;

use super::access::{generation, looking};
use super::admission::Admitted;
use super::job::Job;
use super::linking;
use super::owner::Owner;
use super::step::{Looks, Step, Tries};
use super::switch::Deadline;
use crate::control::ControlError;
use crate::control::model::{PatchInfo, PatchState};
use crate::inspect::GuestBytes;

impl Owner {
    pub(super) fn apply(&mut self, admitted: Admitted, limit: Deadline) -> Result<PatchInfo, ControlError> {
        let name = admitted.patch.name.clone();
        if let Some(obstacle) = self.link.hello().and_then(|hello| hello.obstacle(false)) {
            return Err(refused("guest_refuses", format!("{name} cannot be loaded: {obstacle}")));
        }
        let generation = generation(&*self.access)?;
        self.compare(&generation);
        if self.link.hello().is_none() && self.is_locked_down(&generation) {
            let why = "the guest's kernel is locked down, so that its agent may use no I/O port and cannot reach the host";
            return Err(refused("guest_refuses", format!("{name} cannot be loaded: {why}")));
        }
        // One that was not applied may have left its module behind.
        let is_left = |job: &Job| matches!(job.step(), Step::Resident) && job.state() != PatchState::Gone;
        let has_module = |job: &Job| job.is_in_guest() || is_left(job);
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

    /// Whether the guest's memory says why no agent has shown itself.
    fn is_locked_down(&self, generation: &Generation) -> bool {
        let look = |model: &Model, memory: &GuestBytes<'_>| {
            lockdown::is_locked_down(&Running::at(model, memory, generation.place))
        };
        looking(&*self.access, look).is_ok_and(|locked| locked.unwrap_or(false))
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

    /// Rolls a patch back for the operator, so that it is not for the guest to apply it again.
    pub(super) fn roll_back_for_good(
        &mut self,
        id: PatchId,
        limit: Deadline,
    ) -> Result<PatchInfo, ControlError> {
        let info = self.roll_back(id, limit)?;
        self.taken_back.insert(info.name.clone());
        Ok(info)
    }

    fn roll_back(&mut self, id: PatchId, limit: Deadline) -> Result<PatchInfo, ControlError> {
        let job = self.jobs.get_mut(&id).ok_or(ControlError::NoPatch { id: id.0 })?;
        match job.step() {
            Step::Loading { request, .. } => {
                self.not_loaded(id, request, "it was taken back before it was applied".to_owned());
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
}

pub(super) fn refused(code: &'static str, why: String) -> ControlError {
    ControlError::PatchRefused { code, why }
}
