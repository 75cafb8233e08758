//! Patched modules that the guest unloads: their changes are gone with them.

use super::patch::{PatchId, State};
use super::refusal::not_now;
use super::{NotNow, Refusal, SwitchError, Switched, UpdateServer};
use crate::census::Loaded;
use crate::guest::Memory;
use crate::kernel::modules::ModuleState;
use crate::kernel::running::Running;
use crate::phases::place::{OldFunction, Place};

impl UpdateServer {
    /// Forgets what was changed in modules that the guest has unloaded since, as `loaded` of a guest that stands still says. A patch
    /// of which nothing is left is [`State::Gone`].
    pub fn note_unloaded<M: Memory>(&mut self, kernel: &Running<'_, M>, loaded: &Loaded) {
        // A list that is cut short is no proof.
        if !loaded.doubts().is_empty() {
            return;
        }
        let applied = self.patches.iter_mut().filter(|(_, entry)| entry.state == State::Applied);
        for (id, entry) in applied {
            let lost = entry.switched.extract_if(.., |function| !is_there(kernel, loaded, &function.old));
            for Switched { old, .. } in lost {
                let key = old.key(kernel);
                self.revision += 1;
                if let Some(stack) = self.jumps.get_mut(&key) {
                    stack.retain(|(owner, _)| owner != id);
                }
                let name = old.home.module().map_or("", |module| &*module.name);
                if !entry.unloaded.iter().any(|known| known == name) {
                    entry.unloaded.push(name.to_owned());
                }
            }
            if entry.switched.is_empty() {
                entry.state = State::Gone;
            }
        }
        self.jumps.retain(|_, stack| !stack.is_empty());
    }

    /// Whether a patch has changed modules that may be unloaded.
    pub fn is_in_modules(&self) -> bool {
        let mut functions = self.patches.values().flat_map(|entry| &entry.switched);
        functions.any(|function| function.old.home.module().is_some())
    }

    /// The modules with functions of a patch that were unloaded while it was applied.
    pub fn unloaded(&self, id: PatchId) -> Result<&[String], Refusal> {
        self.entry(id).map(|entry| &*entry.unloaded)
    }
}

/// Whether a function that was switched is still there. A module that is loaded again mostly comes to the same place; then it has
/// its own bytes where the jump was.
fn is_there(kernel: &Running<'_, impl Memory>, loaded: &Loaded, old: &OldFunction) -> bool {
    if old.home.module().is_none() {
        return true;
    }
    let untouched = |place: &Place| {
        let mut found = vec![0; usize::from(place.len)];
        let read = kernel.space().read(old.now(kernel, place.at), &mut found);
        read.is_err() || old.home.original(kernel, place.at, found.len()).is_none_or(|bytes| bytes == found)
    };
    is_listed(old, loaded) && !old.places.iter().any(untouched)
}

/// Whether the guest says that the module of a function is loaded; the image always is.
pub(super) fn is_listed(old: &OldFunction, loaded: &Loaded) -> bool {
    old.home.module().is_none_or(|own| loaded.modules.iter().any(|module| module.is(own)))
}

/// Refuses to change a function for now whose module is not in use.
pub(super) fn is_live(old: &OldFunction, loaded: &Loaded) -> Result<(), Box<SwitchError>> {
    let Some(own) = old.home.module() else { return Ok(()) };
    let found = loaded.modules.iter().find(|module| module.is(own));
    if found.is_some_and(|module| module.state() == ModuleState::Live) {
        return Ok(());
    }
    not_now(NotNow::ModuleChanges { module: own.name.clone() })
}
