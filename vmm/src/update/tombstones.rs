//! Old code that is filled with traps once nobody is in it, and emptied when somebody comes to one all the same.

use std::time::{Duration, Instant};

use update_server::addr::Gva;
use update_server::census::{Census, Found, Frame};
use update_server::kernel::generation::Generation;
use update_server::phases::drain::Draining;
use update_server::phases::stack_check::Presence;
use update_server::server::{Emptied, NotNow, PatchId, SwitchError, UpdateServer};

use super::access::{Access, looking, pausing};
use super::drain;
use super::owner::{ANOTHER_KERNEL, Owner};
use super::step::{Looks, Step, Tries};
use crate::control::ControlError;
use crate::inspect;
use crate::vcpu::{Met, Tombstones};

/// How often it is tried to put old code back while nobody changes the guest's text. From then on it does not matter: who changes it
/// may wait for the one who has come to the tombstone.
const PATIENT: u32 = 6;
/// For how long it is tried in all before it is begun again.
const LIMIT: Duration = Duration::from_hours(1);

/// Somebody who has come to a tombstone, and waits there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meeting {
    met: Met,
    tries: Tries,
}

impl Meeting {
    pub(super) fn of(met: Met) -> Self {
        Self { met, tries: Tries::within(LIMIT) }
    }

    /// When it is to be tried to put old code back.
    pub(super) fn due(self) -> Instant {
        self.tries.due()
    }
}

/// Tells vCPUs where tombstones are; in the pause in which that changes.
pub(super) fn show(server: &UpdateServer, tombstones: &Tombstones) {
    tombstones.set(server.tombstones().map(|place| place.start.0..place.end.0));
}

impl Owner {
    /// Shows where tombstones are, and how many each patch has.
    pub(super) fn show_tombstones(&mut self) {
        show(&self.server, self.inbox.updates.tombstones());
        for job in self.jobs.values_mut() {
            job.tombstones = self.server.filled_bytes(job.id);
        }
    }

    /// Tries to fill the old code of a patch that is closed.
    pub(super) fn fill(&mut self, id: PatchId, tries: Tries) {
        let tombstones = self.inbox.updates.tombstones();
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let filled = fill(&*self.access, &mut self.server, tombstones, id, &job.generation);
        let later = |why: String| match tries.next() {
            Some(next) => (Step::Filling(next), Some(format!("old code is not filled yet: {why}"))),
            None => (Step::Closed, Some(format!("old code was not filled: {why}"))),
        };
        let (step, why) = match filled {
            Ok(None) => return self.is_of_another(id),
            Ok(Some(Ok(()))) => {
                tracing::info!(patch = id.0, name = job.name(), "old code is filled with traps");
                (Step::Closed, None)
            }
            Ok(Some(Err(error))) => match *error {
                // Looked at again, as any other who is there.
                SwitchError::NotNow(NotNow::Inside { .. }) => (Step::Draining(Looks::begin()), None),
                SwitchError::NotNow(not_now) => later(not_now.to_string()),
                SwitchError::Refused(refusal) => {
                    (Step::Closed, Some(format!("old code was not filled: {refusal}")))
                }
            },
            Err(error) => later(error.to_string()),
        };
        job.go(step, why);
    }

    /// The kernel that they were in is gone.
    pub(super) fn forget_tombstones(&mut self) {
        self.meeting = None;
        self.show_text();
        self.inbox.updates.tombstones().heard();
    }

    /// Puts old code back for the one who waits for it.
    pub(super) fn meet(&mut self, meeting: Meeting) {
        self.put_back(meeting);
        self.publish();
    }

    fn put_back(&mut self, Meeting { met, tries }: Meeting) {
        let tombstones = self.inbox.updates.tombstones();
        let patched = self.jobs.values().find(|job| job.tombstones > 0);
        let Some(generation) = patched.map(|job| job.generation.clone()) else {
            // A kernel that is gone, with all that was in it.
            show(&self.server, tombstones);
            return tombstones.heard();
        };
        let patient = tries.count() < PATIENT;
        match empty(&*self.access, &mut self.server, tombstones, met, &generation, patient) {
            Ok(None) => self.gone(ANOTHER_KERNEL),
            Ok(Some(Ok(None))) => {}
            Ok(Some(Ok(Some(visit)))) => self.show_visit(met, &generation, visit),
            Ok(Some(Err(error))) => return self.meet_later(met, tries, &error.to_string()),
            Err(error) => return self.meet_later(met, tries, &error.to_string()),
        }
        self.inbox.updates.tombstones().heard();
        self.show_text();
    }

    fn meet_later(&mut self, met: Met, tries: Tries, why: &str) {
        if tries.count().is_power_of_two() {
            tracing::warn!(
                vcpu = met.vcpu,
                at = format_args!("{:#x}", met.rip),
                "a vCPU waits on a tombstone, and the old code is not put back yet: {why}"
            );
        }
        let tries = tries.next().unwrap_or_else(|| Tries::within(LIMIT));
        self.meeting = Some(Meeting { met, tries });
    }

    /// Tells of somebody whom no census knew.
    fn show_visit(&mut self, met: Met, generation: &Generation, visit: Visit) {
        let Visit { emptied: Emptied { place, patches }, caller, left, census } = visit;
        let caller = caller.unwrap_or_else(|| "somebody".to_owned());
        tracing::warn!(
            at = format_args!("{:#x}", met.rip),
            place,
            caller,
            vcpu = met.vcpu,
            ?patches,
            "old code was called that nobody was in; its tombstones were taken away"
        );
        let mut left = left.into_iter();
        for id in patches {
            let presence = left.next().unwrap_or_default();
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let why = Some(format!("{place} was called by {caller}; tombstones were taken away"));
            match job.step() {
                Step::Filling(_) | Step::Closed | Step::Draining(_) => {
                    let shown = census
                        .as_ref()
                        .map(|census| drain::shown(&*self.access, generation, census, &presence.holders));
                    job.go(Step::Draining(Looks::begin()), why);
                    job.show_holders(Draining::of(presence), shown.and_then(Result::ok).unwrap_or_default());
                }
                _ => job.why = why,
            }
        }
    }
}

/// What the owner finds where a tombstone was met.
#[derive(Debug)]
struct Visit {
    emptied: Emptied,
    /// The task that stands there, or that the vCPU runs, if that is known.
    caller: Option<String>,
    /// Who is in old code, for each patch.
    left: Vec<Presence>,
    /// All stacks at that moment, if they could be looked at.
    census: Option<Census>,
}

/// What an engine's answer is wrapped in: `None` is another kernel.
type InKernel<T> = Option<Result<T, Box<SwitchError>>>;

/// Fills the old code of a patch, in a pause whose census proves that nobody is in it.
fn fill(
    access: &dyn Access,
    server: &mut UpdateServer,
    tombstones: &Tombstones,
    id: PatchId,
    expected: &Generation,
) -> Result<InKernel<()>, ControlError> {
    let mut known = access.inspector().stacks();
    looking(access, |model, memory| inspect::prepare(model, memory, expected, &mut known))?;
    let (filled, _) = pausing(access, |model, guest| {
        inspect::settle_and(model, guest, &mut known, |kernel, generation, census| {
            if generation != expected {
                return None;
            }
            let filled = server.fill(id, kernel, guest, census);
            show(server, tombstones);
            Some(filled)
        })
    })?;
    Ok(filled)
}

/// Puts old code back, and then looks at who is in it.
fn empty(
    access: &dyn Access,
    server: &mut UpdateServer,
    tombstones: &Tombstones,
    met: Met,
    expected: &Generation,
    patient: bool,
) -> Result<InKernel<Option<Visit>>, ControlError> {
    let mut known = access.inspector().stacks();
    looking(access, |model, memory| inspect::prepare(model, memory, expected, &mut known))?;
    let (visit, _) = pausing(access, |model, guest| {
        let emptied = inspect::find_and(model, guest, |kernel, generation| {
            if generation != expected {
                return None;
            }
            let emptied = server.empty(Gva(met.rip), kernel, guest, patient);
            show(server, tombstones);
            Some(emptied)
        })?;
        let emptied = match emptied {
            None => return Ok(None),
            Some(Ok(Some(emptied))) => emptied,
            Some(other) => return Ok(Some(other.map(|_| None))),
        };
        // Old code is back, whatever can be told of those who are in it.
        let seen = inspect::settle_and(model, guest, &mut known, |kernel, _, census| {
            let presence = |id: &PatchId| server.presence(*id, kernel, census).unwrap_or_default();
            let left = emptied.patches.iter().map(presence).collect::<Vec<_>>();
            // It may have been switched out since.
            let there = |frame: &Frame| frame.address == Gva(met.rip) && !frame.behind_call;
            let running = Found::OnCpu { vcpu: met.vcpu.into() };
            let stacks = || census.stacks();
            let stack = stacks().find(|stack| stack.frames.iter().any(there));
            let stack = stack.or_else(|| stacks().find(|stack| stack.found == running));
            (stack.map(|stack| format!("{} ({})", stack.task.comm, stack.task.pid)), left, census.clone())
        });
        let visit = match seen {
            Ok((caller, left, census)) => Visit { emptied, caller, left, census: Some(census) },
            Err(error) => {
                tracing::debug!("who is in old code could not be looked at: {error}");
                Visit { emptied, caller: None, left: Vec::new(), census: None }
            }
        };
        Ok(Some(Ok(Some(visit))))
    })?;
    Ok(visit)
}
