//! The changes of the guest's text that a patch takes, or why it cannot have them.

use super::prepared::{Prepared, PreparedReturn};
use super::refusal::not_now;
use super::{NotNow, Refusal, SwitchError, Switched, UpdateServer, unloaded};
use crate::census::Loaded;
use crate::guest::Memory;
use crate::journal::Journal;
use crate::kernel::livepatches::livepatched;
use crate::kernel::modules::ModuleState;
use crate::kernel::running::Running;
use crate::phases::quiet;
use crate::phases::rewrite;
use crate::phases::unused::Count;

impl UpdateServer {
    /// Those that make functions jump to the new ones. The guest's copy of the patch's module, and all of each old function, must be
    /// as they were made.
    pub(super) fn changes_to_apply(
        &self,
        prepared: &Prepared,
        kernel: &Running<'_, impl Memory>,
        loaded: &Loaded,
    ) -> Result<Journal, Box<SwitchError>> {
        let Prepared { id, functions, sections, linked, .. } = prepared;
        let patch = &self.entry(*id)?.patch;
        if let Some(by) = quiet::text_changer(kernel)? {
            return not_now(NotNow::TextChanges { by });
        }
        let livepatched = livepatched(kernel)?;
        if let Some(cut) = livepatched.cut.or(loaded.more_probes()) {
            return not_now(NotNow::Cut(cut));
        }
        let is_livepatched = |function: &&Switched| livepatched.entries.contains(&function.old.key(kernel));
        if let Some(function) = functions.iter().find(is_livepatched) {
            return not_now(NotNow::Livepatched { function: function.old.name.clone() });
        }
        functions.iter().try_for_each(|function| unloaded::is_live(&function.old, loaded))?;
        pinned(kernel, loaded, &patch.name, functions)?;
        let written = self.entry(*id)?.stubs_at(sections).text();
        patch.module.compare(kernel, sections, &|name| linked.get(name).copied(), &written)?;
        let mut edits = Vec::new();
        for Switched { old, to, .. } in functions {
            let from = self.target(old.key(kernel));
            rewrite::compare(kernel, old, from, self.filling(old.key(kernel)), loaded)?;
            edits.extend(rewrite::edits(kernel, old, from, Some(*to))?);
        }
        Ok(Journal::check(kernel.space(), &edits)?)
    }

    /// Those that make functions what they were without the patch: the kernel's own, or those of the patch below.
    pub(super) fn changes_to_roll_back(
        &self,
        prepared: &PreparedReturn,
        kernel: &Running<'_, impl Memory>,
        loaded: &Loaded,
    ) -> Result<Journal, Box<SwitchError>> {
        let id = prepared.id;
        if let Some(by) = quiet::text_changer(kernel)? {
            return not_now(NotNow::TextChanges { by });
        }
        if let Some(cut) = loaded.more_probes() {
            return not_now(NotNow::Cut(cut));
        }
        let mut edits = Vec::new();
        for Switched { old, .. } in &self.entry(id)?.switched {
            let stack = self.jumps.get(&old.key(kernel)).map_or(&[][..], |stack| stack);
            let [below @ .., (top, own)] = stack else { continue };
            if *top != id {
                continue;
            }
            unloaded::is_live(old, loaded)?;
            if let Some((at, owners)) = rewrite::probe_on_jump(kernel, old, loaded)? {
                return not_now(NotNow::Probed { function: old.name.clone(), at, owners });
            }
            let to = below.last().map(|(_, to)| *to);
            edits.extend(rewrite::edits(kernel, old, Some(*own), to)?);
        }
        // Old code is there again as soon as it can be called.
        edits.extend(self.emptying(id, kernel, &loaded.probes)?);
        Ok(Journal::check(kernel.space(), &edits)?)
    }

    /// Why another patch is in the way of rolling back this one.
    pub(super) fn refuse_dependents(&self, name: &str) -> Result<(), Refusal> {
        let dependent = self.applied().find(|other| other.requires.iter().any(|required| required == name));
        match dependent {
            Some(dependent) => {
                Err(Refusal::Required { name: name.to_owned(), dependent: dependent.name.clone() })
            }
            None => Ok(()),
        }
    }

    /// Why a patch that this one is built upon is missing.
    pub(super) fn refuse_missing(&self, name: &str, requires: &[String]) -> Result<(), Refusal> {
        let is_applied = |name: &&String| self.applied().any(|patch| patch.name == **name);
        match requires.iter().find(|name| !is_applied(name)) {
            Some(missing) => Err(Refusal::Requires { name: name.to_owned(), missing: missing.clone() }),
            None => Ok(()),
        }
    }
}

/// The guest must not be able to unload the module that new functions are in while others jump there.
fn pinned(
    kernel: &Running<'_, impl Memory>,
    loaded: &Loaded,
    patch: &str,
    functions: &[Switched],
) -> Result<(), Box<SwitchError>> {
    for Switched { to, .. } in functions {
        let Some(own) = loaded.modules.iter().find(|module| module.text().contains(to)) else {
            return not_now(NotNow::NoModule { name: patch.to_owned(), at: *to });
        };
        let module = own.name.clone();
        match Count::read(kernel, own)?.map(Count::users) {
            Some(Some(0)) => return Err(Refusal::Unpinned { module }.into()),
            Some(None) => return not_now(NotNow::ModuleChanges { module }),
            _ if own.state() != ModuleState::Live => return not_now(NotNow::ModuleChanges { module }),
            _ => {}
        }
    }
    Ok(())
}
