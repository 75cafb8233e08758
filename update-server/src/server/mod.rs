//! Every patch of one guest, and what each function jumps to.
//!
//! ```text
//! add ──▶ Ready ──apply──▶ Applied ──roll_back──▶ Ready
//!           └───────────────┴──── the kernel is another one, or the patched modules are unloaded: Gone
//! ```
//!
//! Around `apply`: [`UpdateServer::link`] makes of the patch's module what the guest is to load, and [`UpdateServer::prepare`] finds in
//! the guest what can be found before it stands still.
//!
//! Patches of one function form a stack: the function jumps to what the last one brought. One further down can go without
//! anything changing in the guest.

mod patch;
mod prepared;
mod refusal;
mod unloaded;

use std::collections::{BTreeMap, HashMap};

pub use patch::{Consistency, Import, Old, Patch, PatchId, Replacement, State};
pub use prepared::Prepared;
pub use refusal::{NotNow, Refusal, SwitchError};

use crate::addr::Gva;
use crate::census::Census;
use crate::guest::{Memory, Paused};
use crate::journal::Journal;
use crate::kernel::livepatches::livepatched;
use crate::kernel::running::Running;
use crate::limits::PATCHES;
use crate::phases::place::OldFunction;
use crate::phases::quiet;
use crate::phases::rewrite;
use crate::phases::stack_check::{Presence, Watched};
use crate::text_check::Written;
use refusal::not_now;

#[derive(Debug)]
struct Entry {
    patch: Patch,
    state: State,
    /// What its module was linked with in this run of the kernel, by the names of its undefined symbols.
    linked: Option<BTreeMap<String, Gva>>,
    /// Where the guest has its module, once it was applied in this run of the kernel.
    sections: Option<BTreeMap<String, Gva>>,
    /// Its functions, while they are switched.
    switched: Vec<Switched>,
    /// Modules with such functions that were unloaded since.
    unloaded: Vec<String>,
}

/// A function that jumps to a new one, unless another patch has come on top.
#[derive(Debug, Clone)]
struct Switched {
    old: OldFunction,
    /// The symbol of the new one.
    new: String,
    /// Where that is.
    to: Gva,
}

/// All patches of one guest.
#[derive(Debug, Default)]
pub struct UpdateServer {
    patches: BTreeMap<PatchId, Entry>,
    last: u32,
    /// What each function jumps to, by where it is in the guest: the last one counts.
    jumps: HashMap<Gva, Vec<(PatchId, Gva)>>,
}

impl UpdateServer {
    /// Takes a patch in.
    pub fn add(&mut self, patch: Patch) -> Result<PatchId, Refusal> {
        if self.patches.len() >= PATCHES {
            return Err(Refusal::TooMany { limit: PATCHES });
        }
        self.last += 1;
        let id = PatchId(self.last);
        let entry = Entry {
            patch,
            state: State::Ready,
            linked: None,
            sections: None,
            switched: Vec::new(),
            unloaded: Vec::new(),
        };
        self.patches.insert(id, entry);
        Ok(id)
    }

    /// Forgets a patch that is not applied.
    pub fn remove(&mut self, id: PatchId) -> Result<(), Refusal> {
        if self.state(id)? == State::Applied {
            return Err(self.wrong_state(id, State::Ready));
        }
        self.patches.remove(&id);
        Ok(())
    }

    /// Every patch, by number.
    pub fn patches(&self) -> impl Iterator<Item = (PatchId, &Patch, State)> {
        self.patches.iter().map(|(&id, entry)| (id, &entry.patch, entry.state))
    }

    /// What a patch is doing.
    pub fn state(&self, id: PatchId) -> Result<State, Refusal> {
        self.entry(id).map(|entry| entry.state)
    }

    /// The guest's kernel is another one, or was started again: what had been applied is gone.
    pub fn kernel_is_gone(&mut self) {
        self.jumps.clear();
        for entry in self.patches.values_mut() {
            if entry.state == State::Applied {
                entry.state = State::Gone;
            }
            entry.linked = None;
            entry.sections = None;
            entry.switched.clear();
        }
    }

    /// Makes the functions of a patch jump to the new ones, all of them or none. Returns who is still inside the old functions.
    pub fn apply<M: Paused>(
        &mut self,
        prepared: &Prepared,
        kernel: &Running<'_, M>,
        guest: &M,
        census: &Census,
    ) -> Result<Presence, Box<SwitchError>> {
        let Prepared { id, functions, sections, linked } = prepared;
        self.note_unloaded(kernel, &census.loaded);
        if self.state(*id)? != State::Ready {
            return Err(self.wrong_state(*id, State::Ready).into());
        }
        let patch = &self.entry(*id)?.patch;
        let missing = patch.requires.iter().find(|name| !self.is_applied(name));
        if let Some(missing) = missing {
            let (name, missing) = (patch.name.clone(), missing.clone());
            return Err(Refusal::Requires { name, missing }.into());
        }
        if let Some(by) = quiet::text_changer(kernel)? {
            return not_now(NotNow::TextChanges { by });
        }
        let livepatched = livepatched(kernel)?;
        let is_livepatched = |function: &&Switched| livepatched.contains(&function.old.key(kernel));
        if let Some(function) = functions.iter().find(is_livepatched) {
            return not_now(NotNow::Livepatched { function: function.old.name.clone() });
        }
        functions.iter().try_for_each(|function| unloaded::is_live(&function.old, &census.loaded))?;
        patch.module.compare(kernel, sections, &|name| linked.get(name).copied())?;
        let mut edits = Vec::new();
        for Switched { old, to, .. } in functions {
            let from = self.target(old.key(kernel));
            rewrite::compare(kernel, old, from, &census.loaded.probes)?;
            edits.extend(rewrite::edits(kernel, old, from, Some(*to))?);
        }
        let presence = proven(Presence::of(kernel, census, &self.replaced(kernel, functions, None)))?;
        if let Some(holder) = presence.under() {
            return not_now(NotNow::Under { holder: Box::new(holder.clone()) });
        }
        let presence = by_policy(patch.consistency, presence)?;
        Journal::check(kernel.space(), &edits)?.commit(guest)?;
        for Switched { old, to, .. } in functions {
            self.jumps.entry(old.key(kernel)).or_default().push((*id, *to));
        }
        if let Some(entry) = self.patches.get_mut(id) {
            entry.state = State::Applied;
            entry.linked = Some(linked.clone());
            entry.sections = Some(sections.clone());
            entry.switched.clone_from(functions);
            entry.unloaded.clear();
        }
        Ok(presence)
    }

    /// Makes the functions of a patch what they were without it: the kernel's own, or those of the patch below.
    pub fn roll_back<M: Paused>(
        &mut self,
        id: PatchId,
        kernel: &Running<'_, M>,
        guest: &M,
        census: &Census,
    ) -> Result<Presence, Box<SwitchError>> {
        self.note_unloaded(kernel, &census.loaded);
        if self.state(id)? != State::Applied {
            return Err(self.wrong_state(id, State::Applied).into());
        }
        let entry = self.entry(id)?;
        let patch = &entry.patch;
        let dependent = self
            .patches()
            .find(|(_, other, state)| *state == State::Applied && other.requires.contains(&patch.name));
        if let Some((_, dependent, _)) = dependent {
            let (name, dependent) = (patch.name.clone(), dependent.name.clone());
            return Err(Refusal::Required { name, dependent }.into());
        }
        if let Some(by) = quiet::text_changer(kernel)? {
            return not_now(NotNow::TextChanges { by });
        }
        let mut edits = Vec::new();
        for Switched { old, .. } in &entry.switched {
            let stack = self.jumps.get(&old.key(kernel)).map_or(&[][..], |stack| stack);
            let [below @ .., (top, own)] = stack else { continue };
            if *top != id {
                continue;
            }
            unloaded::is_live(old, &census.loaded)?;
            if let Some(at) = rewrite::probe_on_jump(kernel, old, &census.loaded.probes)? {
                return not_now(NotNow::Probed { function: old.name.clone(), at });
            }
            let to = below.last().map(|(_, to)| *to);
            edits.extend(rewrite::edits(kernel, old, Some(*own), to)?);
        }
        let presence = Presence::of(kernel, census, &Self::brought(entry));
        let presence = by_policy(patch.consistency, presence)?;
        Journal::check(kernel.space(), &edits)?.commit(guest)?;
        for stack in self.jumps.values_mut() {
            stack.retain(|(owner, _)| *owner != id);
        }
        self.jumps.retain(|_, stack| !stack.is_empty());
        if let Some(entry) = self.patches.get_mut(&id) {
            entry.state = State::Ready;
            entry.switched.clear();
        }
        Ok(presence)
    }

    /// Who is in code that is of no more use since the patch was applied, or rolled back: in the functions that it replaces, or in
    /// its own code. The guest may run; then this is no proof of anybody's absence.
    pub fn presence<M: Memory>(
        &self,
        id: PatchId,
        kernel: &Running<'_, M>,
        census: &Census,
    ) -> Result<Presence, Refusal> {
        let entry = self.entry(id)?;
        let watched = match entry.state {
            // Where an unloaded module was, others may be by now.
            State::Applied => {
                let is_there = |function: &&Switched| unloaded::is_listed(&function.old, &census.loaded);
                self.replaced(kernel, entry.switched.iter().filter(is_there), Some(id))
            }
            State::Ready | State::Gone => Self::brought(entry),
        };
        Ok(Presence::of(kernel, census, &watched))
    }

    /// The code that a patch takes the place of: the kernel's functions, and what patches below it have brought for them.
    fn replaced<'a, M: Memory>(
        &'a self,
        kernel: &Running<'_, M>,
        functions: impl IntoIterator<Item = &'a Switched>,
        id: Option<PatchId>,
    ) -> Vec<Watched<'a>> {
        let mut watched = Vec::new();
        for Switched { old, .. } in functions {
            watched.push(Watched::Function(old));
            let key = old.key(kernel);
            let stack = self.jumps.get(&key).map_or(&[][..], |stack| stack);
            let below = stack.iter().map(|(owner, _)| *owner).take_while(|owner| Some(*owner) != id);
            for entry in below.filter_map(|owner| self.patches.get(&owner)) {
                let Some(sections) = &entry.sections else { continue };
                let same = |other: &&Switched| other.old.key(kernel) == key;
                let Some(new) = entry.switched.iter().find(same).map(|other| &*other.new) else {
                    continue;
                };
                let parts = entry.patch.module.function(new, sections).unwrap_or_default();
                watched.extend(parts.into_iter().map(|part| Watched::Code(new, part)));
            }
        }
        watched
    }

    /// All code that a patch has brought.
    fn brought(entry: &Entry) -> Vec<Watched<'_>> {
        let text = entry.sections.as_ref().and_then(|sections| entry.patch.module.text(sections).ok());
        let name = &*entry.patch.name;
        text.into_iter().flatten().map(|part| Watched::Code(name, part)).collect()
    }

    /// What all patches together have put into the guest's text.
    pub fn written(&self, kernel: &Running<'_, impl Memory>) -> Result<Vec<Written>, Refusal> {
        let mut all = Vec::new();
        for (key, stack) in &self.jumps {
            let Some((owner, to)) = stack.last() else { continue };
            let switched = self.entry(*owner)?.switched.iter();
            for Switched { old, .. } in switched.filter(|switched| switched.old.key(kernel) == *key) {
                let edits = rewrite::edits(kernel, old, None, Some(*to))?;
                all.extend(edits.into_iter().map(|edit| Written { at: edit.at, bytes: edit.after }));
            }
        }
        Ok(all)
    }

    /// What the function at `key` jumps to now.
    fn target(&self, key: Gva) -> Option<Gva> {
        self.jumps.get(&key)?.last().map(|(_, to)| *to)
    }

    fn is_applied(&self, name: &str) -> bool {
        self.patches().any(|(_, patch, state)| state == State::Applied && patch.name == name)
    }

    fn entry(&self, id: PatchId) -> Result<&Entry, Refusal> {
        self.patches.get(&id).ok_or(Refusal::Unknown { id })
    }

    fn wrong_state(&self, id: PatchId, needed: State) -> Refusal {
        match self.entry(id) {
            Ok(entry) => Refusal::WrongState { name: entry.patch.name.clone(), state: entry.state, needed },
            Err(unknown) => unknown,
        }
    }
}

/// Nothing may be in doubt.
fn proven(presence: Presence) -> Result<Presence, Box<SwitchError>> {
    if presence.doubts.is_empty() { Ok(presence) } else { not_now(NotNow::Doubt { doubts: presence.doubts }) }
}

/// Where old and new code may not run at the same time, nobody may be in what is on its way out.
fn by_policy(consistency: Consistency, presence: Presence) -> Result<Presence, Box<SwitchError>> {
    match consistency {
        Consistency::Coexist => Ok(presence),
        Consistency::Quiescent => {
            let presence = proven(presence)?;
            if presence.holders.is_empty() {
                return Ok(presence);
            }
            not_now(NotNow::Inside { holders: presence.holders })
        }
    }
}
