//! One patch on its way.

use std::time::{Duration, Instant};

use update_server::addr::Gva;
use update_server::kernel::generation::Generation;
use update_server::phases::drain::Draining;
use update_server::server::PatchId;

use super::admission::{Admitted, Origin};
use super::sightings::Sightings;
use super::step::{Looks, Step};
use crate::control::model::{HolderInfo, PatchInfo, PatchState};

/// How a patch has ended whose module is in the guest all the same, or was.
#[derive(Debug)]
struct Ended {
    state: PatchState,
    why: String,
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
    /// What the agent was asked for in vain, and may do all the same.
    pub(super) late: Option<u32>,
    step: Step,
    ended: Option<Ended>,
    since: Instant,
    /// The first of those who are left, as they are to be shown.
    holders: Vec<HolderInfo>,
    /// Since when each of those who are left has been seen.
    seen: Sightings,
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
            late: None,
            step,
            ended: None,
            since: Instant::now(),
            holders: Vec::new(),
            seen: Sightings::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.admitted.patch.name
    }

    pub(super) fn step(&self) -> Step {
        self.step
    }

    /// It has failed, or is gone, for the reason `why`, and its module is in the guest.
    pub(super) fn end_loaded(&mut self, state: PatchState, why: String) {
        self.go(Step::Resident, None);
        self.ended = Some(Ended { state, why });
        self.since = Instant::now();
    }

    /// If it has ended, nothing more is to be done for it; whether it has.
    pub(super) fn settle_ended(&mut self) -> bool {
        let Some(Ended { state, why }) = self.ended.take() else { return false };
        self.step = if state == PatchState::Gone { Step::Gone } else { Step::Failed };
        self.why = Some(why);
        true
    }

    /// Whether it has ended, and its module was in the guest.
    pub(super) fn is_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Goes on to another step; `why` is what there is to say of it.
    pub(super) fn go(&mut self, step: Step, why: Option<String>) {
        let before = self.state();
        if !matches!(step, Step::Removing(_) | Step::Resident | Step::Removed) {
            self.ended = None;
        }
        if !matches!(step, Step::Draining(_) | Step::Leaving(_)) {
            self.draining = Draining::default();
            self.holders = Vec::new();
            self.seen = Sightings::default();
        }
        self.step = step;
        self.why = why;
        if self.state() != before {
            self.since = Instant::now();
        }
    }

    /// When there is something to be done.
    pub(super) fn due(&self) -> Option<Instant> {
        self.step.due()
    }

    pub(super) fn state(&self) -> PatchState {
        self.ended.as_ref().map_or_else(|| self.step.state(), |ended| ended.state)
    }

    /// Whether the guest has something of it that a new kernel would not have.
    pub(super) fn is_in_guest(&self) -> bool {
        !matches!(self.state(), PatchState::Removed | PatchState::Failed | PatchState::Gone)
    }

    /// Why it is not further, and why its module is still there.
    fn why(&self) -> Option<String> {
        let Some(ended) = &self.ended else { return self.why.clone() };
        Some(match (self.step, &self.why) {
            (Step::Resident, Some(why)) => format!("{}; its module stays in the guest: {why}", ended.why),
            _ => ended.why.clone(),
        })
    }

    /// Who is left, and the first of them as they are to be shown.
    pub(super) fn show_holders(&mut self, draining: Draining, shown: Vec<HolderInfo>) {
        self.seen.renew(draining.holders(), Instant::now());
        (self.draining, self.holders) = (draining, shown);
    }

    /// Somebody has come through the stub at `stub`. If he was the last here, that is confirmed at once.
    pub(super) fn passed(&mut self, stub: Gva) {
        let places = self.draining.passed(stub);
        for place in places.iter().rev().copied() {
            // The rest is not shown, nor are those whose names could not be read.
            if place < self.holders.len() {
                self.holders.remove(place);
            }
        }
        let (Step::Draining(looks) | Step::Leaving(looks)) = &mut self.step else { return };
        if places.is_empty() {
            return;
        }
        self.told += 1;
        if self.draining.is_over() {
            *looks = Looks::at_once();
        } else if !self.draining.is_watched() {
            *looks = looks.told();
        }
    }

    /// All that is to be shown.
    pub(super) fn info(&self) -> PatchInfo {
        let left = self.draining.holders();
        let mut holders = self.holders.clone();
        for (shown, holder) in holders.iter_mut().zip(left) {
            shown.for_ms = self.seen.since(holder).map_or(0, milliseconds);
        }
        let doubts = self.draining.doubts();
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
            more_holders: left.len().saturating_sub(holders.len()) as u64,
            holders,
            doubts: doubts.told().to_vec(),
            more_doubts: doubts.more() as u64,
        }
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
