//! What everybody may read of the patches, without asking their owner.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use update_server::text_check::Written;

use crate::control::model::{AgentInfo, PatchInfo, PatchList};

/// The owner writes on it; whoever wants to know reads.
#[derive(Debug)]
pub struct Board {
    shown: Mutex<Shown>,
    revision: watch::Sender<u64>,
}

#[derive(Debug)]
struct Shown {
    list: PatchList,
    at: Instant,
    /// What patches have put into the guest's text.
    written: Arc<[Written]>,
}

impl Default for Board {
    fn default() -> Self {
        let shown = Shown { list: PatchList::default(), at: Instant::now(), written: Arc::default() };
        Self { shown: Mutex::new(shown), revision: watch::channel(0).0 }
    }
}

impl Board {
    /// All patches. What has a duration has grown since it was written.
    pub fn list(&self) -> PatchList {
        let shown = self.lock();
        let passed = u64::try_from(shown.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut list = shown.list.clone();
        drop(shown);
        for patch in &mut list.patches {
            patch.for_ms = patch.for_ms.saturating_add(passed);
            for holder in &mut patch.holders {
                holder.for_ms = holder.for_ms.saturating_add(passed);
            }
        }
        list
    }

    /// What patches have put into the guest's text.
    pub fn written(&self) -> Arc<[Written]> {
        Arc::clone(&self.lock().written)
    }

    /// Writes what that is now.
    pub(super) fn show_written(&self, written: Vec<Written>) {
        self.lock().written = written.into();
    }

    /// Tells of each change: the new revision.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Writes what there is. It is told if it says something new.
    pub fn show(&self, agent: Option<AgentInfo>, taint: Option<u64>, patches: Vec<PatchInfo>) {
        let mut shown = self.lock();
        let known = &shown.list;
        let is_known = known.agent == agent && known.taint == taint && say_the_same(&known.patches, &patches);
        let revision = known.revision + u64::from(!is_known);
        shown.list = PatchList { revision, agent, taint, patches };
        shown.at = Instant::now();
        drop(shown);
        if !is_known {
            self.revision.send_replace(revision);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether they do, but for what grows by itself: durations, and how often it was looked at who is left.
fn say_the_same(one: &[PatchInfo], other: &[PatchInfo]) -> bool {
    let said = |info: &PatchInfo| {
        let mut info = PatchInfo { for_ms: 0, looks: 0, ..info.clone() };
        info.holders.iter_mut().for_each(|holder| holder.for_ms = 0);
        info
    };
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| said(one) == said(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::model::{HolderInfo, PatchState};

    fn patch() -> PatchInfo {
        PatchInfo {
            id: 1,
            name: "fix".to_owned(),
            summary: String::new(),
            fixes: Vec::new(),
            functions: Vec::new(),
            consistency: "coexist".to_owned(),
            signed_by: None,
            from: "operator".to_owned(),
            state: PatchState::Draining,
            for_ms: 5,
            why: None,
            attempts: 1,
            paused_us: 100,
            tombstones: 0,
            holders: vec![HolderInfo {
                pid: 7,
                comm: "sleeper".to_owned(),
                function: "do_sys_poll".to_owned(),
                for_ms: 5,
                stack: Arc::default(),
                more_frames: 0,
            }],
            more_holders: 0,
            redirected: 0,
            told: 0,
            looks: 1,
            doubts: Vec::new(),
            more_doubts: 0,
        }
    }

    #[test]
    fn a_look_that_has_seen_nothing_new_is_no_news() {
        let board = Board::default();
        let changes = board.changes();
        board.show(None, None, vec![patch()]);
        assert_eq!((board.list().revision, *changes.borrow()), (1, 1));
        let mut later = PatchInfo { for_ms: 900, looks: 9, ..patch() };
        later.holders[0].for_ms = 800;
        board.show(None, None, vec![later.clone()]);
        let shown = board.list();
        assert_eq!((shown.revision, *changes.borrow()), (1, 1));
        assert_eq!(shown.patches[0].looks, 9, "it is shown all the same");
        later.holders.clear();
        board.show(None, None, vec![later]);
        assert_eq!(*changes.borrow(), 2);
        board.show(None, Some(1), Vec::new());
        assert_eq!(*changes.borrow(), 3);
    }
}
