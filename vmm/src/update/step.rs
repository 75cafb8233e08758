//! What happens next to a patch, and when.

use std::time::{Duration, Instant};

use update_server::phases::drain::Draining;

use crate::control::model::PatchState;

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

impl Step {
    /// When there is something to be done.
    pub(super) fn due(&self) -> Option<Instant> {
        match self {
            Self::Loading { until, .. } => Some(*until),
            Self::Applying(tries) | Self::RollingBack(tries) | Self::Filling(tries) => Some(tries.due),
            Self::Draining(looks) | Self::Leaving(looks) => Some(looks.due),
            Self::Removing(removal) => Some(removal.due()),
            Self::Closed | Self::Resident | Self::Removed | Self::Failed | Self::Gone => None,
        }
    }

    /// What the agent is to answer.
    pub(super) fn request(&self) -> Option<u32> {
        match self {
            Self::Loading { request, .. }
            | Self::Removing(Removal { stage: Stage::Unloading { request, .. }, .. }) => Some(*request),
            _ => None,
        }
    }

    /// How that is shown.
    pub(super) fn state(&self) -> PatchState {
        match self {
            Self::Loading { .. } => PatchState::Loading,
            Self::Applying(_) => PatchState::Applying,
            Self::Draining(_) => PatchState::Draining,
            Self::Filling(_) | Self::Closed => PatchState::Closed,
            Self::RollingBack(_) => PatchState::RollingBack,
            Self::Leaving(_) => PatchState::Leaving,
            Self::Removing(_) => PatchState::Removing,
            Self::Resident => PatchState::Resident,
            Self::Removed => PatchState::Removed,
            Self::Failed => PatchState::Failed,
            Self::Gone => PatchState::Gone,
        }
    }
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

    /// One now.
    pub(super) fn at_once() -> Self {
        Self { due: Instant::now(), pause: LOOK_FIRST }
    }

    /// The next one, later than the last if that has seen nothing new.
    pub(super) fn next(self, news: bool) -> Self {
        let pause = if news { LOOK_FIRST } else { (self.pause * 2).min(LOOK_LAST) };
        Self { due: Instant::now() + pause, pause }
    }
}
