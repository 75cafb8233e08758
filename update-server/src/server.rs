//! Every patch of one guest, and what each function jumps to.
//!
//! ```text
//! add ──▶ Ready ──apply──▶ Applied ──roll_back──▶ Ready
//!           └───────────────┴──── the kernel is another one: Gone
//! ```
//!
//! Patches of one function form a stack: the function jumps to what the last one brought. One further down can go without
//! anything changing in the guest.

use std::collections::{BTreeMap, HashMap};

use crate::addr::Gva;
use crate::census::Census;
use crate::guest::Paused;
use crate::journal::{Journal, JournalError};
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;
use crate::limits::PATCHES;
use crate::phases::link::{ModuleError, PatchModule};
use crate::phases::place::OldFunction;
use crate::phases::quiet;
use crate::phases::rewrite::{self, TextError};
use crate::phases::stack_check::{Holder, Presence, Watched};

/// By which a patch is called, from when it was added on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PatchId(pub u32);

/// Whether old and new code may run at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// They may: it is applied at once, and who is inside an old function finishes there (LUCOS, VEE 2006).
    Coexist,
    /// They may not: it is applied when nobody is inside an old function (Ksplice, `EuroSys` 2009).
    Quiescent,
}

/// One function, and what takes its place.
#[derive(Debug, Clone)]
pub struct Replacement {
    /// The kernel's function.
    pub old: OldFunction,
    /// The symbol of the new one in the patch's module.
    pub new: String,
}

/// A symbol of the kernel that a patch's module refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Import {
    /// Where it was linked for.
    pub linked: Gva,
    /// Whether it stays there under KASLR.
    pub absolute: bool,
}

impl Import {
    /// Where it is in a kernel that has been moved by `distance`.
    pub fn now(&self, distance: u64) -> Gva {
        if self.absolute { self.linked } else { self.linked.wrapping_add(distance) }
    }
}

/// A patch that everything static is known of.
#[derive(Debug, Clone)]
pub struct Patch {
    /// Its name.
    pub name: String,
    /// What it replaces.
    pub functions: Vec<Replacement>,
    /// The code that it brings.
    pub module: PatchModule,
    /// What that refers to in the kernel, by the name that it has there.
    pub imports: BTreeMap<String, Import>,
    /// Patches that must have been applied before it, and stay.
    pub requires: Vec<String>,
    /// Its policy.
    pub consistency: Consistency,
}

impl Patch {
    /// The module as a guest is to load it whose kernel has been moved by `distance`.
    pub fn module_for(&self, distance: u64) -> Vec<u8> {
        self.module.resolved(|name| self.import(name, distance))
    }

    fn import(&self, name: &str, distance: u64) -> Option<Gva> {
        self.imports.get(name).map(|import| import.now(distance))
    }
}

/// What a patch is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing in the guest is changed by it.
    Ready,
    /// Its functions are switched.
    Applied,
    /// The kernel that it was applied to is gone, and all of its changes with it.
    Gone,
}

/// Why a patch was not applied or rolled back. Nothing in the guest was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There are too many.
    #[error("there are {limit} patches already; remove one that is not applied")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// There is none of that number.
    #[error("there is no patch {}", id.0)]
    Unknown {
        /// The number.
        id: PatchId,
    },
    /// It is not in the state for it.
    #[error("patch {name} is {state:?}, and not {needed:?}")]
    WrongState {
        /// Its name.
        name: String,
        /// Its state.
        state: State,
        /// The state it would have to be in.
        needed: State,
    },
    /// What it is built upon is not there.
    #[error("patch {name} is built upon {missing}, which is not applied; apply that first")]
    Requires {
        /// Its name.
        name: String,
        /// The other's name.
        missing: String,
    },
    /// Another one is built upon it.
    #[error("patch {dependent} is built upon {name}; roll that back first")]
    Required {
        /// Its name.
        name: String,
        /// The other's name.
        dependent: String,
    },
    /// The guest's text is not as it must be.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The guest's copy of the module is not as it must be.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The bytes could not be changed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The guest's memory cannot be followed.
    #[error("the kernel's data cannot be followed: {0}")]
    Unreadable(#[from] ReadError),
}

/// Why a patch cannot be applied or rolled back at this moment. Nothing in the guest was changed; a moment later it may work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// The guest is changing its own text.
    #[error("the guest is changing its text (the task at {by} has the lock for it)")]
    TextChanges {
        /// Who has the lock.
        by: Gva,
    },
    /// Somebody stands where the jump is to be.
    #[error("{} ({}) stands where {} is to jump", holder.comm, holder.pid, holder.function)]
    Under {
        /// Who.
        holder: Box<Holder>,
    },
    /// Somebody is inside, and may not finish there.
    #[error("{} frames are inside the old functions, the first one of {} ({}) in {}", holders.len(), holders[0].comm, holders[0].pid, holders[0].function)]
    Inside {
        /// Who; at least one.
        holders: Vec<Holder>,
    },
    /// Not everybody's whereabouts are proven.
    #[error("of {} stacks not everything is proven: {}", doubts.len(), doubts[0])]
    Doubt {
        /// What is not; at least one.
        doubts: Vec<String>,
    },
    /// The guest has put a probe on the jump, which would be lost.
    #[error("a probe is on the jump at {at} in {function}; it must be removed first")]
    Probed {
        /// The function.
        function: String,
        /// Where.
        at: Gva,
    },
}

/// Either.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// It will not work later either.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It may work later.
    #[error(transparent)]
    NotNow(#[from] NotNow),
}

impl<E: Into<Refusal>> From<E> for Box<SwitchError> {
    fn from(error: E) -> Self {
        Self::new(SwitchError::Refused(error.into()))
    }
}

fn not_now<T>(why: NotNow) -> Result<T, Box<SwitchError>> {
    Err(Box::new(SwitchError::NotNow(why)))
}

#[derive(Debug)]
struct Entry {
    patch: Patch,
    state: State,
}

/// All patches of one guest.
#[derive(Debug, Default)]
pub struct UpdateServer {
    patches: BTreeMap<PatchId, Entry>,
    last: u32,
    /// What each function jumps to, by where it was linked for: the last one counts.
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
        self.patches.insert(id, Entry { patch, state: State::Ready });
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
        for entry in self.patches.values_mut().filter(|entry| entry.state == State::Applied) {
            entry.state = State::Gone;
        }
    }

    /// Makes the functions of a patch jump to the new ones, all of them or none. The guest has loaded its module to `sections`.
    /// Returns who is still inside the old functions.
    pub fn apply<M: Paused>(
        &mut self,
        id: PatchId,
        kernel: &Running<'_, M>,
        guest: &M,
        census: &Census,
        sections: &BTreeMap<String, Gva>,
    ) -> Result<Presence, Box<SwitchError>> {
        if self.state(id)? != State::Ready {
            return Err(self.wrong_state(id, State::Ready).into());
        }
        let patch = &self.entry(id)?.patch;
        let missing = patch.requires.iter().find(|name| !self.is_applied(name));
        if let Some(missing) = missing {
            let (name, missing) = (patch.name.clone(), missing.clone());
            return Err(Refusal::Requires { name, missing }.into());
        }
        if let Some(by) = quiet::text_changer(kernel)? {
            return not_now(NotNow::TextChanges { by });
        }
        let distance = kernel.place().distance;
        patch.module.compare(kernel, sections, &|name| patch.import(name, distance))?;
        let mut edits = Vec::new();
        let mut targets = Vec::new();
        for Replacement { old, new } in &patch.functions {
            let from = self.target(old);
            let to = patch.module.symbol(new, sections)?;
            rewrite::compare(kernel, old, from, &census.loaded.probes)?;
            edits.extend(rewrite::edits(kernel, old, from, Some(to))?);
            targets.push((old.text.start, to));
        }
        let watched: Vec<_> =
            patch.functions.iter().map(|function| Watched::Function(&function.old)).collect();
        let presence = Presence::of(kernel, census, &watched);
        if !presence.doubts.is_empty() {
            return not_now(NotNow::Doubt { doubts: presence.doubts });
        }
        if let Some(holder) = presence.under() {
            return not_now(NotNow::Under { holder: Box::new(holder.clone()) });
        }
        if patch.consistency == Consistency::Quiescent && !presence.holders.is_empty() {
            return not_now(NotNow::Inside { holders: presence.holders });
        }
        Journal::check(kernel.space(), &edits)?.commit(guest)?;
        for (function, to) in targets {
            self.jumps.entry(function).or_default().push((id, to));
        }
        self.set_state(id, State::Applied);
        Ok(presence)
    }

    /// Makes the functions of a patch what they were without it: the kernel's own, or those of the patch below.
    pub fn roll_back<M: Paused>(
        &mut self,
        id: PatchId,
        kernel: &Running<'_, M>,
        guest: &M,
        census: &Census,
    ) -> Result<(), Box<SwitchError>> {
        if self.state(id)? != State::Applied {
            return Err(self.wrong_state(id, State::Applied).into());
        }
        let patch = &self.entry(id)?.patch;
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
        for Replacement { old, .. } in &patch.functions {
            let stack = self.jumps.get(&old.text.start).map_or(&[][..], |stack| stack);
            let [below @ .., (top, own)] = stack else { continue };
            if *top != id {
                continue;
            }
            if let Some(at) = rewrite::probe_on_jump(kernel, old, &census.loaded.probes)? {
                return not_now(NotNow::Probed { function: old.name.clone(), at });
            }
            let to = below.last().map(|(_, to)| *to);
            edits.extend(rewrite::edits(kernel, old, Some(*own), to)?);
        }
        Journal::check(kernel.space(), &edits)?.commit(guest)?;
        for stack in self.jumps.values_mut() {
            stack.retain(|(owner, _)| *owner != id);
        }
        self.jumps.retain(|_, stack| !stack.is_empty());
        self.set_state(id, State::Ready);
        Ok(())
    }

    /// What a function jumps to now.
    fn target(&self, old: &OldFunction) -> Option<Gva> {
        self.jumps.get(&old.text.start)?.last().map(|(_, to)| *to)
    }

    fn is_applied(&self, name: &str) -> bool {
        self.patches().any(|(_, patch, state)| state == State::Applied && patch.name == name)
    }

    fn entry(&self, id: PatchId) -> Result<&Entry, Refusal> {
        self.patches.get(&id).ok_or(Refusal::Unknown { id })
    }

    fn set_state(&mut self, id: PatchId, state: State) {
        if let Some(entry) = self.patches.get_mut(&id) {
            entry.state = state;
        }
    }

    fn wrong_state(&self, id: PatchId, needed: State) -> Refusal {
        match self.entry(id) {
            Ok(entry) => Refusal::WrongState { name: entry.patch.name.clone(), state: entry.state, needed },
            Err(unknown) => unknown,
        }
    }
}
