//! One patch on its way.

use std::time::{Duration, Instant};

use update_server::addr::Gva;
use update_server::kernel::generation::Generation;
use update_server::phases::drain::Draining;
use update_server::server::PatchId;

use super::admission::{Admitted, Origin};
use crate::control::model::{HolderInfo, PatchInfo, PatchState};

/// Between two looks at those who are left: at first, and when nothing changes.
const LOOK_FIRST: Duration = Duration::from_millis(50);
/// The same while all who are left tell by themselves that they leave: it is for tasks that end without that, as after an oops.
const LOOK_TOLD: Duration = Duration::from_mins(1);
/// See [`LOOK_FIRST`]. Whoever has left is noticed this late at most; a look costs the host some microseconds for each.
const LOOK_LAST: Duration = Duration::from_secs(5);
/// Between two tries to switch: at first, and after many. Each stops the guest for a moment.
const TRY_FIRST: Duration = Duration::from_millis(10);
/// See [`TRY_FIRST`].
const TRY_LAST: Duration = Duration::from_secs(1);

/// Between two tries to remove a module: at first, and at last. Whoever has taken a reference in the guest mostly gives it back
/// soon.
const REMOVE_FIRST: Duration = Duration::from_millis(100);
/// See [`REMOVE_FIRST`].
const REMOVE_LAST: Duration = Duration::from_secs(5);
/// Tries; each stops the guest for a moment. After these, some 20 s, the module stays until somebody asks again.
const REMOVE_TRIES: u32 = 9;

/// What happens next, and when.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// The agent is to answer a request.
    Loading { request: u32, until: Instant },
    /// A try to apply it.
    Applying(Tries),
    /// A look at who is left in old code.
    Draining(Looks),
    /// A try to fill old code with traps.
    Filling(Tries),
    /// Nothing.
    Closed,
    /// A try to roll it back.
    RollingBack(Tries),
    /// A look at who is left in its own code.
    Leaving(Looks),
    /// Its module is to be unloaded.
    Removing(Removal),
    /// Nothing; its module stays.
    Resident,
    /// Nothing; its module is gone.
    Removed,
    /// Nothing.
    Failed,
    /// Nothing.
    Gone,
}

/// On the way to a guest without the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct Removal {
    pub(super) stage: Stage,
    tries: u32,
}

/// How far that is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stage {
    /// A look whether it is unused, so that it is given free.
    Releasing { due: Instant },
    /// The agent is to answer a request.
    Unloading { request: u32, until: Instant },
    /// A look whether it is still there; then it is held again.
    Holding { due: Instant },
}

impl Removal {
    /// The first try, now.
    pub(super) fn begin() -> Self {
        Self { stage: Stage::Releasing { due: Instant::now() }, tries: 0 }
    }

    /// Another stage of the same try.
    pub(super) fn at(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }

    /// A look of the same kind, later; `None` if there were enough.
    pub(super) fn next(self, stage: impl Fn(Instant) -> Stage) -> Option<Self> {
        let pause = (REMOVE_FIRST * 2_u32.saturating_pow(self.tries)).min(REMOVE_LAST);
        let tries = self.tries + 1;
        (tries < REMOVE_TRIES).then(|| Self { stage: stage(Instant::now() + pause), tries })
    }

    fn due(self) -> Instant {
        match self.stage {
            Stage::Releasing { due } | Stage::Holding { due } => due,
            Stage::Unloading { until, .. } => until,
        }
    }
}

/// Tries to switch functions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tries {
    count: u32,
    due: Instant,
    until: Instant,
}

impl Tries {
    /// The first one now, the last one within `limit`.
    pub(super) fn within(limit: Duration) -> Self {
        let now = Instant::now();
        Self { count: 0, due: now, until: now + limit }
    }

    /// How many came before.
    pub(super) fn count(self) -> u32 {
        self.count
    }

    /// When it is due.
    pub(super) fn due(self) -> Instant {
        self.due
    }

    /// The one after this; `None` if there is no time for it.
    pub(super) fn next(self) -> Option<Self> {
        let now = Instant::now();
        let pause = (TRY_FIRST * 2_u32.saturating_pow(self.count.min(16))).min(TRY_LAST);
        let due = now + pause;
        (due <= self.until).then_some(Self { count: self.count + 1, due, ..self })
    }
}

/// Looks at who is left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Looks {
    due: Instant,
    pause: Duration,
}

impl Looks {
    /// The first one soon.
    pub(super) fn begin() -> Self {
        Self { due: Instant::now() + LOOK_FIRST, pause: LOOK_FIRST }
    }

    /// The first one soon if somebody must be looked at.
    pub(super) fn of(draining: &Draining) -> Self {
        if draining.is_watched() { Self::begin() } else { Self::begin().told() }
    }

    /// As long as all tell by themselves that they leave.
    pub(super) fn told(self) -> Self {
        Self { due: Instant::now() + LOOK_TOLD, ..self }
    }

    /// The next one, later than the last if that has seen nothing new.
    pub(super) fn next(self, news: bool) -> Self {
        let pause = if news { LOOK_FIRST } else { (self.pause * 2).min(LOOK_LAST) };
        Self { due: Instant::now() + pause, pause }
    }
}

/// Since when somebody has been seen somewhere.
#[derive(Debug, Clone)]
struct Seen {
    task: u64,
    began: u64,
    function: String,
    since: Instant,
}

/// A patch, from when it was admitted on.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: PatchId,
    pub(super) admitted: Admitted,
    /// The run of the kernel that it was applied to, or will be.
    pub(super) generation: Generation,
    /// For how long it may be tried: what whoever applied it has said, or whoever has it rolled back since.
    pub(super) limit: Duration,
    pub(super) why: Option<String>,
    pub(super) attempts: u32,
    pub(super) paused_us: u64,
    pub(super) draining: Draining,
    /// Bytes of old code that are filled with traps.
    pub(super) tombstones: usize,
    /// How often it was looked at who is left, and how many have told by themselves that they leave, since functions were switched.
    pub(super) looks: u32,
    pub(super) told: u32,
    step: Step,
    /// Why it was not applied, if its module is in the guest all the same, or was.
    failed: Option<String>,
    since: Instant,
    holders: Vec<HolderInfo>,
    seen: Vec<Seen>,
}

impl Job {
    pub(super) fn new(
        id: PatchId,
        admitted: Admitted,
        generation: Generation,
        limit: Duration,
        step: Step,
    ) -> Self {
        Self {
            id,
            admitted,
            generation,
            limit,
            why: None,
            attempts: 0,
            paused_us: 0,
            draining: Draining::default(),
            tombstones: 0,
            looks: 0,
            told: 0,
            step,
            failed: None,
            since: Instant::now(),
            holders: Vec::new(),
            seen: Vec::new(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.admitted.patch.name
    }

    pub(super) fn step(&self) -> Step {
        self.step
    }

    /// It has failed, for the reason `why`, and its module is in the guest.
    pub(super) fn fail_loaded(&mut self, why: String) {
        self.go(Step::Failed, None);
        self.step = Step::Resident;
        self.failed = Some(why);
    }

    /// If it has failed, nothing more is to be done for it; whether it has.
    pub(super) fn settle_failed(&mut self) -> bool {
        let Some(failed) = self.failed.take() else { return false };
        self.step = Step::Failed;
        self.why = Some(failed);
        true
    }

    /// Goes on to another step; `why` is what there is to say of it.
    pub(super) fn go(&mut self, step: Step, why: Option<String>) {
        let before = self.state();
        let failed = self.failed.take();
        self.failed = failed.filter(|_| matches!(step, Step::Removing(_) | Step::Resident | Step::Removed));
        if self.state_of(&step) != before {
            self.since = Instant::now();
        }
        if !matches!(step, Step::Draining(_) | Step::Leaving(_)) {
            self.draining = Draining::default();
            self.holders = Vec::new();
            self.seen = Vec::new();
        }
        self.step = step;
        self.why = why;
    }

    /// When there is something to be done.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.step {
            Step::Loading { until, .. } => Some(until),
            Step::Applying(tries) | Step::RollingBack(tries) | Step::Filling(tries) => Some(tries.due),
            Step::Draining(looks) | Step::Leaving(looks) => Some(looks.due),
            Step::Removing(removal) => Some(removal.due()),
            Step::Closed | Step::Resident | Step::Removed | Step::Failed | Step::Gone => None,
        }
    }

    /// What the agent is to answer.
    pub(super) fn request(&self) -> Option<u32> {
        match self.step {
            Step::Loading { request, .. }
            | Step::Removing(Removal { stage: Stage::Unloading { request, .. }, .. }) => Some(request),
            _ => None,
        }
    }

    pub(super) fn state(&self) -> PatchState {
        self.state_of(&self.step)
    }

    fn state_of(&self, step: &Step) -> PatchState {
        if self.failed.is_some() { PatchState::Failed } else { state(step) }
    }

    /// Whether the guest has something of it that a new kernel would not have.
    pub(super) fn is_in_guest(&self) -> bool {
        !matches!(self.state(), PatchState::Removed | PatchState::Failed | PatchState::Gone)
    }

    /// Why it is not further, and why its module is still there.
    fn why(&self) -> Option<String> {
        let Some(failed) = &self.failed else { return self.why.clone() };
        Some(match (self.step, &self.why) {
            (Step::Resident, Some(why)) => format!("{failed}; its module stays in the guest: {why}"),
            _ => failed.clone(),
        })
    }

    /// Who is left, as they are to be shown.
    pub(super) fn show_holders(&mut self, draining: Draining, mut shown: Vec<HolderInfo>) {
        let mut seen = Vec::new();
        for (holder, shown) in draining.holders().iter().zip(&mut shown) {
            let known = self.seen.iter().find(|seen| {
                (seen.task, seen.began, &*seen.function)
                    == (holder.task.address.0, holder.task.start_time, &*holder.function)
            });
            let since = known.map_or_else(Instant::now, |known| known.since);
            shown.for_ms = milliseconds(since);
            seen.push(Seen {
                task: holder.task.address.0,
                began: holder.task.start_time,
                function: holder.function.clone(),
                since,
            });
        }
        (self.draining, self.seen, self.holders) = (draining, seen, shown);
    }

    /// Somebody has come through the stub at `stub`. If he was the last here, that is confirmed at once.
    pub(super) fn passed(&mut self, stub: Gva) {
        let places = self.draining.passed(stub);
        for place in places.iter().rev().copied() {
            // Those whose names could not be read are not shown.
            if place < self.seen.len() && place < self.holders.len() {
                self.holders.remove(place);
                self.seen.remove(place);
            }
        }
        let (Step::Draining(looks) | Step::Leaving(looks)) = &mut self.step else { return };
        if places.is_empty() {
            return;
        }
        self.told += 1;
        if self.draining.is_over() {
            *looks = Looks { due: Instant::now(), pause: LOOK_FIRST };
        } else if !self.draining.is_watched() {
            *looks = looks.told();
        }
    }

    /// All that is to be shown.
    pub(super) fn info(&self) -> PatchInfo {
        let mut holders = self.holders.clone();
        for (shown, seen) in holders.iter_mut().zip(&self.seen) {
            shown.for_ms = milliseconds(seen.since);
        }
        PatchInfo {
            id: self.id.0,
            name: self.name().to_owned(),
            summary: self.admitted.summary.clone(),
            fixes: self.admitted.fixes.clone(),
            functions: self.admitted.functions.clone(),
            consistency: self.admitted.consistency.to_owned(),
            signed_by: self.admitted.signed_by.clone(),
            from: match self.admitted.origin {
                Origin::Operator => "operator",
                Origin::Guest => "guest",
            }
            .to_owned(),
            state: self.state(),
            for_ms: milliseconds(self.since),
            why: self.why(),
            attempts: self.attempts,
            paused_us: self.paused_us,
            tombstones: self.tombstones as u64,
            redirected: u32::try_from(self.draining.redirected()).unwrap_or(u32::MAX),
            told: self.told,
            looks: self.looks,
            holders,
            doubts: self.draining.doubts().to_vec(),
        }
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn state(step: &Step) -> PatchState {
    match step {
        Step::Loading { .. } => PatchState::Loading,
        Step::Applying(_) => PatchState::Applying,
        Step::Draining(_) => PatchState::Draining,
        Step::Filling(_) | Step::Closed => PatchState::Closed,
        Step::RollingBack(_) => PatchState::RollingBack,
        Step::Leaving(_) => PatchState::Leaving,
        Step::Removing(_) => PatchState::Removing,
        Step::Resident => PatchState::Resident,
        Step::Removed => PatchState::Removed,
        Step::Failed => PatchState::Failed,
        Step::Gone => PatchState::Gone,
    }
}
