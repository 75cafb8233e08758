//! What is done for a patch when it is due.

use std::collections::BTreeMap;

use update_server::kernel::model::Model;
use update_server::kernel::running::Running;
use update_server::phases::drain::Draining;
use update_server::phases::stack_check::Presence;
use update_server::server::{PatchId, State, UpdateServer};

use super::access::looking;
use super::drain::{self, Left};
use super::job::Job;
use super::owner::Owner;
use super::step::{Looks, Step, Tries};
use super::switch::{self, Direction, Tried};
use crate::control::model::PatchState;
use crate::inspect::GuestBytes;

impl Owner {
    /// Goes on with a patch for which something is due.
    pub(super) fn go_on(&mut self, id: PatchId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match job.step() {
            Step::Loading { request, .. } => {
                let limit = job.limit.as_secs();
                let why = match self.link.hello() {
                    None => format!(
                        "no agent has shown itself in the guest within {limit} s; start lucos-agent there"
                    ),
                    Some(_) => format!("the guest's agent has not loaded the module within {limit} s"),
                };
                self.not_loaded(id, request, why);
            }
            Step::Applying(tries) | Step::RollingBack(tries) => {
                self.switch(id, tries);
                self.show_text();
                self.show_unloaded();
            }
            Step::Draining(looks) | Step::Leaving(looks) => {
                self.look(id, looks);
                self.show_unloaded();
            }
            Step::Filling(tries) => {
                self.fill(id, tries);
                self.show_text();
            }
            Step::Removing(removal) => self.go_on_removing(id, removal),
            Step::Closed | Step::Resident | Step::Removed | Step::Failed | Step::Gone => {}
        }
    }

    /// Tries to apply a patch, or to roll it back.
    fn switch(&mut self, id: PatchId, tries: Tries) {
        let nothing = BTreeMap::new();
        let alleged = self.alleged.get(&id).unwrap_or(&nothing);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let applying = job.state() == PatchState::Applying;
        let direction = if applying { Direction::Apply(&job.admitted.module) } else { Direction::RollBack };
        let (access, server, updates) = (&*self.access, &mut self.server, &self.inbox.updates);
        let answer = switch::attempt(access, server, id, &job.generation, direction, alleged, updates);
        let (outcome, paused_us) = answer.unwrap_or_else(|error| {
            (Tried::NotNow { why: error.to_string(), holders: Vec::new(), census: None }, 0)
        });
        job.attempts += 1;
        match outcome {
            Tried::Done { presence, census } => {
                tracing::info!(
                    patch = id.0,
                    name = job.name(),
                    applying,
                    paused_us,
                    "functions are switched"
                );
                (job.paused_us, job.looks, job.told) = (paused_us, 0, 0);
                let shown = drain::shown(&*self.access, &job.generation, &census, &presence.holders);
                let draining = Draining::of(presence);
                match (applying, draining.is_over()) {
                    (true, true) => job.go(closed(&self.server, job), None),
                    (false, true) => self.remove_module(id),
                    (_, false) => {
                        let looks = Looks::of(&draining);
                        let step = if applying { Step::Draining(looks) } else { Step::Leaving(looks) };
                        job.go(step, None);
                        job.show_holders(draining, shown.unwrap_or_default());
                    }
                }
            }
            Tried::NotNow { why, holders, census } => {
                tracing::info!(patch = id.0, name = job.name(), applying, "not now: {why}");
                let Some(next) = tries.next() else {
                    let why = format!("not within {} s: {why}", job.limit.as_secs());
                    self.unchanged(id, applying, &why);
                    return;
                };
                job.go(if applying { Step::Applying(next) } else { Step::RollingBack(next) }, Some(why));
                if let Some(census) = census {
                    let shown = drain::shown(&*self.access, &job.generation, &census, &holders);
                    let draining = Draining::of(Presence { holders, ..Presence::default() });
                    job.show_holders(draining, shown.unwrap_or_default());
                }
            }
            Tried::Refused(why) => self.unchanged(id, applying, &why),
            Tried::Gone => self.is_of_another(id),
        }
    }

    /// A patch is what it was before it was tried, and is not tried again. Whether somebody is left in old code is looked at again.
    fn unchanged(&mut self, id: PatchId, applying: bool, why: &str) {
        if self.server.state(id) == Ok(State::Torn) {
            let why = format!(
                "{why}; the guest's kernel is changed in part, and nothing more is done to it: restart the guest"
            );
            tracing::error!(patch = id.0, "{why}");
            let Some(job) = self.jobs.get_mut(&id) else { return };
            job.go(Step::Failed, Some(why));
        } else if applying {
            self.end_loaded(id, PatchState::Failed, format!("not applied, and nothing was changed: {why}"));
        } else if let Some(job) = self.jobs.get_mut(&id) {
            let why = format!("not rolled back, and still applied: {why}");
            job.go(Step::Draining(Looks::begin()), Some(why));
        }
    }

    /// Shows what patches have put into the guest's text, and what of it is tombstones.
    pub(super) fn show_text(&mut self) {
        self.show_written();
        self.show_tombstones();
    }

    /// Shows what patches have put into the guest's text, for whoever compares that.
    fn show_written(&self) {
        let place = self.jobs.values().find(|job| job.state().is_applied()).map(|job| job.generation.place);
        let written = place.and_then(|place| {
            let read = |model: &Model, memory: &GuestBytes<'_>| {
                self.server.written(&Running::at(model, memory, place))
            };
            looking(&*self.access, read).ok()?.ok()
        });
        self.inbox.updates.board().show_written(written.unwrap_or_default());
    }

    /// Takes note of those who have come through stubs.
    pub(super) fn hear_stubs(&mut self) {
        for stub in self.inbox.updates.stubs().take() {
            // Whoever comes twice is believed once.
            if self.server.passed(stub) {
                self.jobs.values_mut().for_each(|job| job.passed(stub));
            }
        }
        self.inbox.updates.stubs().watch(self.server.waiting().collect());
    }

    /// Looks at who is left in code that is on its way out.
    fn look(&mut self, id: PatchId, looks: Looks) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let why = job.why.clone();
        let leaving = job.state() == PatchState::Leaving;
        let again =
            |news| if leaving { Step::Leaving(looks.next(news)) } else { Step::Draining(looks.next(news)) };
        job.looks = job.looks.saturating_add(1);
        match drain::look(&*self.access, &mut self.server, id, &job.generation, &job.draining) {
            Ok(Left::Same) => job.go(again(false), why),
            Ok(Left::These(draining, _)) if draining.is_over() => {
                if leaving {
                    self.remove_module(id);
                } else {
                    job.go(closed(&self.server, job), why);
                }
            }
            Ok(Left::These(draining, shown)) => {
                let news = draining.holders().len() != job.draining.holders().len();
                let looks = if draining.is_watched() { looks.next(news) } else { looks.told() };
                job.go(if leaving { Step::Leaving(looks) } else { Step::Draining(looks) }, why);
                job.show_holders(draining, shown);
            }
            Ok(Left::Gone) => self.is_of_another(id),
            Err(error) => {
                tracing::debug!("who is left in old code could not be looked at: {error}");
                job.go(again(false), why);
            }
        }
    }
}

/// What comes when nobody is left in old code.
fn closed(server: &UpdateServer, job: &Job) -> Step {
    if server.is_to_fill(job.id) { Step::Filling(Tries::within(job.limit)) } else { Step::Closed }
}
