//! Who is still in code that nobody enters any more, until the last has left.
//!
//! Their number only falls. Whether one may have left is seen without a pause: a task that has not run since is where it was.
//! Those whose return is redirected (`redirect.rs`) tell by themselves. That the last has left is believed to a census alone.

use std::sync::Arc;

use super::doubts::Doubts;
use super::stack_check::{Holder, Presence};
use crate::addr::Gva;
use crate::guest::Memory;
use crate::kernel::running::Running;

/// Those who are left.
#[derive(Debug, Clone, Default)]
pub struct Draining {
    holders: Vec<Holder>,
    doubts: Doubts,
}

impl Draining {
    /// As a census has found it.
    pub fn of(presence: Presence) -> Self {
        Self { holders: presence.holders, doubts: presence.doubts }
    }

    /// Who was found last.
    pub fn holders(&self) -> &[Holder] {
        &self.holders
    }

    /// What is not proven of others.
    pub fn doubts(&self) -> &Doubts {
        &self.doubts
    }

    /// Whether the last has left: nobody was found, and nothing is in doubt.
    pub fn is_over(&self) -> bool {
        self.holders.is_empty() && self.doubts.is_empty()
    }

    /// Whether somebody must be looked at, who does not tell that he leaves. The rest comes by [`Draining::passed`], unless a task
    /// ends without leaving, which is seen whenever somebody looks.
    pub fn is_watched(&self) -> bool {
        !self.doubts.is_empty() || self.holders.iter().any(|one| one.stub().is_none())
    }

    /// How many tell by themselves that they leave.
    pub fn redirected(&self) -> usize {
        self.holders.iter().filter(|holder| holder.stub().is_some()).count()
    }

    /// Takes out those who leave by the stub at `stub`, and says at which places they were.
    pub fn passed(&mut self, stub: Gva) -> Vec<usize> {
        let places = (0..).zip(&self.holders).filter(|(_, holder)| holder.stub() == Some(stub));
        let places = places.map(|(place, _)| place).collect();
        self.holders.retain(|holder| holder.stub() != Some(stub));
        places
    }

    /// Whether another census could find fewer of them, in a guest that may run. One that cannot be read says yes: its task may
    /// have ended.
    pub fn may_have_left(&self, kernel: &Running<'_, impl Memory>) -> bool {
        let mut tasks = self.holders.chunk_by(|one, next| Arc::ptr_eq(&one.task, &next.task));
        let moved = |holders: &[Holder]| holders[0].task.has_run(kernel).unwrap_or(true);
        !self.doubts.is_empty() || self.holders.is_empty() || tasks.any(moved)
    }
}
