//! Every patch of one guest, and what each function jumps to.
//!
//! ```text
//! add ──▶ Ready ──apply──▶ Applied ──roll_back──▶ Ready
//!           └───────────────┴──── the kernel is another one, or the patched modules are unloaded: Gone
//!                            └─── the embedder can write only some of the bytes: Torn
//! ```
//!
//! Around `apply`: [`UpdateServer::link`] makes of the patch's module what the guest is to load, and [`UpdateServer::prepare`] finds and
//! checks in the guest what can be before it stands still; so does [`UpdateServer::prepare_return`] for `roll_back`.
//!
//! Those who are in old code when a patch is applied can be made to say when they leave it, if the patch wants that: by a write to
//! [`crate::x86::stub::PORT`] from a stub, which the embedder tells by the vCPU's RIP. [`UpdateServer::waiting`] names the stubs, and
//! [`UpdateServer::passed`] is told.
//!
//! Once it is rolled back and nobody is in its code, [`UpdateServer::release`] lets the guest unload the module.
//!
//! Patches of one function form a stack: the function jumps to what the last one brought. One further down can go without
//! anything changing in the guest.

mod changes;
mod checked;
mod patch;
mod prepared;
mod redirected;
mod refusal;
mod removal;
mod tombstones;
mod unloaded;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub use patch::{Consistency, Import, Old, Patch, PatchId, Replacement, State};
pub use prepared::{Prepared, PreparedReturn};
pub use refusal::{NotNow, Refusal, SwitchError};
pub use removal::Held;
pub use tombstones::Emptied;

use crate::addr::Gva;
use crate::census::Census;
use crate::guest::{Memory, Paused};
use crate::journal::JournalError;
use crate::kernel::running::Running;
use crate::limits::PATCHES;
use crate::phases::place::OldFunction;
use crate::phases::redirect::Stubs;
use crate::phases::rewrite;
use crate::phases::stack_check::{Presence, Watched};
use crate::text_check::Written;
use refusal::not_now;

#[derive(Debug)]
struct Entry {
    patch: Patch,
    state: State,
    /// What its module was linked with in this run of the kernel, by the names of its undefined symbols.
    linked: Option<Arc<BTreeMap<String, Gva>>>,
    /// Where the guest has its module, once it was applied in this run of the kernel.
    sections: Option<Arc<BTreeMap<String, Gva>>>,
    /// Its functions, while they are switched.
    switched: Vec<Switched>,
    /// Modules with such functions that were unloaded since.
    unloaded: Vec<String>,
    /// Whether somebody has met a tombstone of it.
    disturbed: bool,
    /// What was made of its module's stubs, where `sections` says that it is.
    stubs: Stubs,
    /// Whether the guest may unload its module at any moment.
    released: bool,
}

/// A function that jumps to a new one, unless another patch has come on top.
#[derive(Debug, Clone)]
struct Switched {
    old: Arc<OldFunction>,
    /// The symbol of the new one.
    new: Arc<str>,
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
    /// The functions that are filled with tombstones, by where they are in the guest.
    filled: HashMap<Gva, tombstones::Filled>,
    /// How often the text has changed by that.
    revision: u64,
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
            disturbed: false,
            stubs: Stubs::default(),
            released: false,
        };
        self.patches.insert(id, entry);
        Ok(id)
    }

    /// Forgets a patch that is not applied.
    pub fn remove(&mut self, id: PatchId) -> Result<(), Refusal> {
        if matches!(self.state(id)?, State::Applied | State::Torn) {
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
        self.revision += 1;
        self.filled.clear();
        for entry in self.patches.values_mut() {
            if matches!(entry.state, State::Applied | State::Torn) {
                entry.state = State::Gone;
            }
            entry.linked = None;
            entry.sections = None;
            entry.switched.clear();
            entry.stubs = Stubs::default();
            entry.released = false;
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
        let Prepared { id, functions, sections, linked, .. } = prepared;
        self.note_unloaded(kernel, &census.loaded);
        if self.state(*id)? != State::Ready {
            return Err(self.wrong_state(*id, State::Ready).into());
        }
        if self.is_released(*id) {
            return not_now(NotNow::Released { name: self.entry(*id)?.patch.name.clone() });
        }
        let patch = &self.entry(*id)?.patch;
        self.refuse_missing(&patch.name, &patch.requires)?;
        let known = prepared.foreseen.as_ref().filter(|known| known.holds(self, &census.loaded));
        let presence = match known {
            Some(known) => known.watch.presence(kernel, census),
            None => Presence::of(kernel, census, &self.replaced(kernel, functions, None)),
        };
        let anew;
        let journal = if let Some(journal) = known.and_then(|known| known.changes(kernel)) {
            journal
        } else {
            anew = self.changes_to_apply(prepared, kernel, &census.loaded)?;
            &anew
        };
        let presence = proven(presence)?;
        if let Some(holder) = presence.under() {
            return not_now(NotNow::Under { holder: Box::new(holder.clone()) });
        }
        let mut presence = by_policy(patch.consistency, presence)?;
        self.believe(&mut presence);
        let stubs = self.entry(*id)?.stubs_at(sections);
        let plan = patch.redirect(&stubs, kernel, census, &presence, sections);
        let done = journal.with(&plan.edits, kernel.space())?.commit(guest);
        self.note_torn(*id, done)?;
        self.revision += 1;
        for Switched { old, to, .. } in functions {
            self.jumps.entry(old.key(kernel)).or_default().push((*id, *to));
        }
        if let Some(entry) = self.patches.get_mut(id) {
            entry.state = State::Applied;
            entry.linked = Some(Arc::clone(linked));
            entry.sections = Some(Arc::clone(sections));
            entry.switched.clone_from(functions);
            entry.unloaded.clear();
            entry.stubs = stubs;
            entry.stubs.take(plan, &mut presence);
        }
        Ok(presence)
    }

    /// Makes the functions of a patch what they were without it: the kernel's own, or those of the patch below. Returns who is still
    /// in the new code.
    pub fn roll_back<M: Paused>(
        &mut self,
        prepared: &PreparedReturn,
        kernel: &Running<'_, M>,
        guest: &M,
        census: &Census,
    ) -> Result<Presence, Box<SwitchError>> {
        let id = prepared.id;
        self.note_unloaded(kernel, &census.loaded);
        if self.state(id)? != State::Applied {
            return Err(self.wrong_state(id, State::Applied).into());
        }
        let entry = self.entry(id)?;
        self.refuse_dependents(&entry.patch.name)?;
        let known = prepared.foreseen.as_ref().filter(|known| known.holds(self, &census.loaded));
        let presence = match known {
            Some(known) => known.watch.presence(kernel, census),
            None => Presence::of(kernel, census, &Self::brought(entry)),
        };
        let anew;
        let journal = if let Some(journal) = known.and_then(|known| known.changes(kernel)) {
            journal
        } else {
            anew = self.changes_to_roll_back(prepared, kernel, &census.loaded)?;
            &anew
        };
        let mut presence = by_policy(entry.patch.consistency, presence)?;
        self.believe(&mut presence);
        let nowhere = Arc::default();
        let sections = entry.sections.as_ref().unwrap_or(&nowhere);
        let plan = entry.patch.redirect(&entry.stubs, kernel, census, &presence, sections);
        let done = journal.with(&plan.edits, kernel.space())?.commit(guest);
        self.note_torn(id, done)?;
        self.revision += 1;
        for stack in self.jumps.values_mut() {
            stack.retain(|(owner, _)| *owner != id);
        }
        self.jumps.retain(|_, stack| !stack.is_empty());
        self.forget_filled(id);
        if let Some(entry) = self.patches.get_mut(&id) {
            entry.state = State::Ready;
            entry.switched.clear();
            entry.stubs.take(plan, &mut presence);
        }
        Ok(presence)
    }

    /// Notes whether some changes of a patch were made, and others not.
    fn note_torn(&mut self, id: PatchId, done: Result<(), JournalError>) -> Result<(), JournalError> {
        if let (Err(JournalError::Failed { undone: false, .. }), Some(entry)) =
            (&done, self.patches.get_mut(&id))
        {
            entry.state = State::Torn;
        }
        done
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
            State::Ready | State::Gone | State::Torn => Self::brought(entry),
        };
        let mut presence = Presence::of(kernel, census, &watched);
        self.believe(&mut presence);
        Ok(presence)
    }

    /// The code that a patch takes the place of: the kernel's functions, and what patches below it have brought for them.
    fn replaced<'a, M: Memory>(
        &self,
        kernel: &Running<'_, M>,
        functions: impl IntoIterator<Item = &'a Switched>,
        id: Option<PatchId>,
    ) -> Vec<Watched> {
        let mut watched = Vec::new();
        for Switched { old, .. } in functions {
            watched.push(Watched::Function(Arc::clone(old)));
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
                watched.extend(parts.into_iter().map(|part| Watched::Code(new.to_owned(), part)));
            }
        }
        watched
    }

    /// All code that a patch has brought.
    fn brought(entry: &Entry) -> Vec<Watched> {
        let text = entry.sections.as_ref().and_then(|sections| entry.patch.module.text(sections).ok());
        let named = |part| Watched::Code(entry.patch.name.clone(), part);
        text.into_iter().flatten().map(named).collect()
    }

    /// What all patches together have put into the guest's text.
    pub fn written(&self, kernel: &Running<'_, impl Memory>) -> Result<Vec<Written>, Refusal> {
        let mut all: Vec<Written> = self.written_tombstones().collect();
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

    fn applied(&self) -> impl Iterator<Item = &Patch> {
        self.patches.values().filter(|entry| entry.state == State::Applied).map(|entry| &entry.patch)
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
