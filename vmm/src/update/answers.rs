//! What the guest's agent says.

use std::collections::BTreeMap;
use std::time::Instant;

use update_server::addr::Gva;

use super::admission::Origin;
use super::asked::refused;
use super::job::Job;
use super::linking;
use super::owner::Owner;
use super::step::{Step, Tries};
use super::switch::Deadline;
use crate::agent::{Answer, ModuleSection, Outcome, Submission};
use crate::control::ControlError;
use crate::control::model::{PatchInfo, PatchState};

/// Times that the agent is asked for the same: each time it has ended before it has answered.
const ASKED_MAX: u32 = 3;
/// `EEXIST` (include/uapi/asm-generic/errno-base.h): there is a module of that name.
const EEXIST: u32 = 17;

impl Owner {
    /// Takes what the agent has to say.
    pub(super) fn hear_agent(&mut self) {
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
            self.turned_down = match self.take_in(&submission) {
                Ok(info) => {
                    tracing::info!(patch = info.id, name = submission.name, "a patch came from the guest");
                    None
                }
                Err(error) => {
                    tracing::warn!(name = submission.name, "a patch from the guest was refused: {error}");
                    let Submission { number, name, .. } = submission;
                    Some(format!("{name}, handed over as number {number}, was refused: {error}\n"))
                }
            };
        }
    }

    /// Applies a patch from inside the guest, if that is for the guest to ask.
    fn take_in(&mut self, submission: &Submission) -> Result<PatchInfo, ControlError> {
        let admitted = self.inbox.updates.admit(&submission.bytes, false, Origin::Guest, &*self.access)?;
        let name = &admitted.patch.name;
        if self.taken_back.contains(name) {
            let why =
                format!("the host's operator has rolled {name} back; only the operator applies it again");
            return Err(refused("not_trusted", why));
        }
        if !self.is_free(&admitted.module) {
            let why = format!("module {} is being unloaded; hand it in again", admitted.module);
            return Err(refused("already_applied", why));
        }
        self.apply(admitted, Deadline::USUAL)
    }

    fn hear_answer(&mut self, answer: Answer) {
        let asked =
            |job: &&mut Job| matches!(job.step(), Step::Loading { request, .. } if request == answer.id);
        let Some(job) = self.jobs.values_mut().find(asked) else {
            self.hear_unloaded(&answer);
            self.hear_late(answer);
            return;
        };
        let id = job.id;
        match answer.outcome {
            Outcome::Done { taint, sections } => {
                self.taint = Some(taint);
                self.alleged.insert(id, addresses(sections));
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
            // Whether one of them has loaded it all the same is looked at.
            Outcome::Lost if self.asked.get(&id).is_some_and(|asked| *asked >= ASKED_MAX) => {
                let why =
                    format!("the guest's agent has ended {ASKED_MAX} times while it was to load the module");
                self.end_loaded(id, PatchState::Failed, why);
            }
            Outcome::Lost => {
                let until = job.due().unwrap_or_else(Instant::now);
                let (access, server) = (&*self.access, &mut self.server);
                *self.asked.entry(id).or_default() += 1;
                match linking::ask_to_load(access, server, &self.link, id, &job.admitted, &job.generation) {
                    Ok(request) => job.go(Step::Loading { request, until }, job.why.clone()),
                    // The machine is being reset, or ends: what becomes of the patch is told by that.
                    Err(ControlError::WrongState { .. }) => {}
                    Err(error) => self.end_loaded(id, PatchState::Failed, error.to_string()),
                }
            }
        }
    }

    /// The agent has done what it was asked for when nobody waited for it any more.
    fn hear_late(&mut self, answer: Answer) {
        let Some(job) = self.jobs.values_mut().find(|job| job.late == Some(answer.id)) else { return };
        job.late = None;
        let id = job.id;
        if !job.is_ended() {
            return;
        }
        match answer.outcome {
            Outcome::Done { taint, sections } => {
                tracing::info!(patch = id.0, name = job.name(), "its module was loaded late");
                self.taint = Some(taint);
                self.alleged.insert(id, addresses(sections));
            }
            Outcome::Failed { taint, .. } => {
                self.taint = Some(taint);
                return;
            }
            Outcome::Lost => {}
        }
        self.remove_module(id);
    }
}

/// Where the agent says that sections are.
fn addresses(sections: Vec<ModuleSection>) -> BTreeMap<String, Gva> {
    let known = sections.into_iter().filter(|section| section.address != 0);
    known.map(|section| (section.name, Gva(section.address))).collect()
}
