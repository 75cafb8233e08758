//! Old functions that are filled with traps, and emptied again.
//!
//! A function of the kernel's is filled once, however many patches are on it. It stays so as long as one of them is applied that has
//! wanted it and was closed.

use std::ops::Range;
use std::sync::Arc;

use super::patch::{PatchId, State};
use super::refusal::not_now;
use super::{Entry, NotNow, SwitchError, Switched, UpdateServer, proven};
use crate::addr::Gva;
use crate::census::Census;
use crate::guest::{Memory, Paused};
use crate::journal::{Edit, Journal};
use crate::kernel::list::Listed;
use crate::kernel::probes::{Probe, probes};
use crate::kernel::running::Running;
use crate::phases::place::OldFunction;
use crate::phases::quiet;
use crate::phases::stack_check::Presence;
use crate::phases::tombstones;
use crate::text_check::Written;

/// A function that is filled.
#[derive(Debug)]
pub(super) struct Filled {
    old: Arc<OldFunction>,
    /// For which patches.
    by: Vec<PatchId>,
    /// What was written.
    edits: Vec<Edit>,
}

impl Filled {
    fn contains(&self, at: Gva) -> bool {
        self.edits.iter().any(|edit| span(edit).contains(&at))
    }

    /// A place in it as people call it, by the function's own name and not by another one of its.
    fn name_of(&self, kernel: &Running<'_, impl Memory>, at: Gva) -> String {
        let here = self.old.home.here(kernel, at);
        let symbol = kernel.model().image().symbols().containing(here);
        match here.offset_from(self.old.text.start) {
            Some(offset) if self.old.text.contains(&here) => format!("{}+{offset:#x}", self.old.name),
            _ => symbol.map_or_else(|| at.to_string(), |(part, offset)| format!("{}+{offset:#x}", part.name)),
        }
    }
}

/// Where an edit is.
fn span(edit: &Edit) -> Range<Gva> {
    edit.at..edit.at.wrapping_add(edit.after.len() as u64)
}

/// Old code that is there again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emptied {
    /// Where it was met, as the kernel's own traces have it: `function+0x12`.
    pub place: String,
    /// The patches that it was filled for: somebody is in the code that they replace.
    pub patches: Vec<PatchId>,
}

impl UpdateServer {
    /// Whether old code is to be filled for a patch: it asks for that, is applied, and nobody has come to old code since it was
    /// added that no census knew of.
    pub fn is_to_fill(&self, id: PatchId) -> bool {
        let wants = |entry: &Entry| {
            entry.patch.tombstones
                && !entry.disturbed
                && entry.state == State::Applied
                && entry.switched.iter().any(|function| !self.is_filled_for(id, function))
        };
        self.entry(id).is_ok_and(wants)
    }

    fn is_filled_for(&self, id: PatchId, function: &Switched) -> bool {
        let mut own = self.filled.values().filter(|filled| filled.by.contains(&id));
        own.any(|filled| filled.old.text == function.old.text)
    }

    /// Fills the functions that a patch replaces, all of them or none. `census` must be one of this very pause: it proves that nobody
    /// is in them.
    pub fn fill<M: Paused>(
        &mut self,
        id: PatchId,
        kernel: &Running<'_, M>,
        guest: &M,
        census: &Census,
    ) -> Result<(), Box<SwitchError>> {
        if self.state(id)? != State::Applied {
            return Err(self.wrong_state(id, State::Applied).into());
        }
        if !self.is_to_fill(id) {
            return Ok(());
        }
        if let Some(by) = quiet::text_changer(kernel)? {
            return not_now(NotNow::TextChanges { by });
        }
        let entry = self.entry(id)?;
        let presence =
            proven(Presence::of(kernel, census, &self.replaced(kernel, &entry.switched, Some(id))))?;
        if !presence.holders.is_empty() {
            return not_now(NotNow::Inside { holders: presence.holders });
        }
        let mut filled = Vec::new();
        for Switched { old, .. } in &entry.switched {
            let key = old.key(kernel);
            let edits =
                if self.filled.contains_key(&key) { Vec::new() } else { tombstones::edits(kernel, old) };
            refuse_probes(kernel, old, &census.loaded.probes)?;
            filled.push((key, Filled { old: Arc::clone(old), by: vec![id], edits }));
        }
        let edits: Vec<Edit> = filled.iter().flat_map(|(_, filled)| filled.edits.iter().cloned()).collect();
        let done = Journal::check(kernel.space(), &edits)?.commit(guest);
        self.note_torn(id, done)?;
        self.revision += 1;
        for (key, filled) in filled {
            let by = &mut self.filled.entry(key).or_insert_with(|| Filled { by: Vec::new(), ..filled }).by;
            by.extend((!by.contains(&id)).then_some(id));
        }
        Ok(())
    }

    /// Puts back the old code of all patches that the tombstone at `at` is there for: somebody has come to it. `None` if there is
    /// none. A function that somebody has a probe in stays as it is, unless it is the one that was met: that is waited for.
    ///
    /// This needs no census: whoever stands on a tombstone is before an instruction of the old code. The locks of those who change
    /// the guest's text need not be free, either, because they write to other places; only a probe that is just being made has
    /// a copy of what is there. Who has the lock may wait for the one that has come, so that it is waited for only if `patient`.
    pub fn empty<M: Paused>(
        &mut self,
        at: Gva,
        kernel: &Running<'_, M>,
        guest: &M,
        patient: bool,
    ) -> Result<Option<Emptied>, Box<SwitchError>> {
        let Some(met) = self.filled.values().find(|filled| filled.contains(at)) else { return Ok(None) };
        let (patches, place) = (met.by.clone(), met.name_of(kernel, at));
        if patient && let Some(by) = quiet::text_changer(kernel)? {
            return not_now(NotNow::TextChanges { by });
        }
        let Listed { entries: probes, cut } = probes(kernel)?;
        if let Some(cut) = cut {
            return not_now(NotNow::Cut(cut));
        }
        refuse_probes(kernel, &met.old, &probes)?;
        let is_theirs = |filled: &Filled| filled.by.iter().any(|id| patches.contains(id));
        let is_free = |filled: &Filled| refuse_probes(kernel, &filled.old, &probes).is_ok();
        let goes = |filled: &Filled| is_theirs(filled) && is_free(filled);
        let gone: Vec<Gva> =
            self.filled.iter().filter(|(_, filled)| goes(filled)).map(|(at, _)| *at).collect();
        let edits = gone.iter().filter_map(|at| self.filled.get(at)).flat_map(|filled| &filled.edits);
        let edits: Vec<Edit> = edits.map(Edit::reversed).collect();
        Journal::check(kernel.space(), &edits)?.commit(guest)?;
        self.revision += 1;
        self.filled.retain(|at, _| !gone.contains(at));
        for id in &patches {
            if let Some(entry) = self.patches.get_mut(id) {
                entry.disturbed = true;
            }
        }
        Ok(Some(Emptied { place, patches }))
    }

    /// The edits that empty what is filled for a patch alone, before it is rolled back.
    pub(super) fn emptying<M: Memory>(
        &self,
        id: PatchId,
        kernel: &Running<'_, M>,
        probes: &[Probe],
    ) -> Result<Vec<Edit>, Box<SwitchError>> {
        let mut edits = Vec::new();
        for filled in self.filled.values().filter(|filled| filled.by == [id]) {
            refuse_probes(kernel, &filled.old, probes)?;
            edits.extend(filled.edits.iter().map(Edit::reversed));
        }
        Ok(edits)
    }

    /// The patch was rolled back.
    pub(super) fn forget_filled(&mut self, id: PatchId) {
        for filled in self.filled.values_mut() {
            filled.by.retain(|by| *by != id);
        }
        self.filled.retain(|_, filled| !filled.by.is_empty());
    }

    /// What was written into the function at `key` to fill it.
    pub(super) fn filling(&self, key: Gva) -> &[Edit] {
        self.filled.get(&key).map_or(&[], |filled| &filled.edits)
    }

    /// All tombstones, as the text holds them.
    pub(super) fn written_tombstones(&self) -> impl Iterator<Item = Written> {
        let edits = self.filled.values().flat_map(|filled| &filled.edits);
        edits.map(|edit| Written { at: edit.at, bytes: edit.after.clone() })
    }

    /// Where tombstones are in the guest, in no order.
    pub fn tombstones(&self) -> impl Iterator<Item = Range<Gva>> {
        self.filled.values().flat_map(|filled| &filled.edits).map(span)
    }

    /// How many bytes of old code are filled for a patch.
    pub fn filled_bytes(&self, id: PatchId) -> usize {
        let own = self.filled.values().filter(|filled| filled.by.contains(&id));
        own.flat_map(|filled| &filled.edits).map(|edit| edit.after.len()).sum()
    }
}

/// Nobody may have a probe in what is to be filled or emptied: it has a copy of an instruction, which it puts back when it is
/// removed. In front of the jump and on it they may be.
fn refuse_probes<M: Memory>(
    kernel: &Running<'_, M>,
    old: &OldFunction,
    probes: &[Probe],
) -> Result<(), Box<SwitchError>> {
    let is_inside = |probe: &&Probe| {
        let at = old.home.here(kernel, probe.at);
        old.parts().any(|part| part.contains(&at)) && !old.is_needed(&(at..at.wrapping_add(1)))
    };
    match probes.iter().find(is_inside) {
        Some(probe) => not_now(NotNow::ProbedInside { function: old.name.clone(), at: probe.at }),
        None => Ok(()),
    }
}
