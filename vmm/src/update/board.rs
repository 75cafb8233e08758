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

    /// Writes what is new.
    pub fn show(&self, agent: Option<AgentInfo>, taint: Option<u64>, patches: Vec<PatchInfo>) {
        let mut shown = self.lock();
        let revision = shown.list.revision + 1;
        shown.list = PatchList { revision, agent, taint, patches };
        shown.at = Instant::now();
        drop(shown);
        self.revision.send_replace(revision);
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
