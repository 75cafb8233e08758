//! Modules of patches that are of no more use: given free so that the guest can unload them, and held again if it does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::patch::{Import, PatchId, State};
use super::refusal::not_now;
use super::{NotNow, Refusal, SwitchError, UpdateServer, proven};
use crate::addr::Gva;
use crate::census::{Census, Loaded};
use crate::guest::Paused;
use crate::journal::Journal;
use crate::kernel::modules::{Module, ModuleState};
use crate::kernel::running::Running;
use crate::phases::redirect::Stubs;
use crate::phases::unused::{self, Count};

/// Whether the guest still has a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It has, and does not unload it.
    Here,
    /// It has not.
    Absent,
}

impl UpdateServer {
    /// Takes back what keeps the guest from unloading the module `module` of a patch, which is at `sections`. Nobody may be in its
    /// code, and nobody may have a reference to it. Whether an address of it may be left elsewhere is not asked here
    /// ([`crate::phases::patch_module::PatchModule::stays`]). Returns [`Held::Absent`] if the guest does not have the module.
    ///
    /// From then on the patch cannot be applied until [`Self::hold`] was called.
    pub fn release<M: Paused>(
        &mut self,
        id: PatchId,
        module: &str,
        kernel: &Running<'_, M>,
        guest: &M,
        census: &Census,
        sections: &BTreeMap<String, Gva>,
    ) -> Result<Held, Box<SwitchError>> {
        let Some(own) = found(&census.loaded, module)? else {
            self.forget_module(id);
            return Ok(Held::Absent);
        };
        let entry = self.entry(id)?;
        let sections = entry.sections.as_deref().unwrap_or(sections);
        if matches!(entry.state, State::Applied | State::Torn) {
            return Err(self.wrong_state(id, State::Ready).into());
        }
        self.check_unneeded(id, module, sections)?;
        if own.state() != ModuleState::Live || entry.released {
            return not_now(NotNow::ModuleChanges { module: module.to_owned() });
        }
        let code = &entry.patch.module;
        if entry.sections.is_some() {
            // It was compared when it was applied; probes may be on it since.
            if sections.get(".text").is_some_and(|text| !own.text().contains(text)) {
                return Err(Refusal::OtherModule { module: module.to_owned() }.into());
            }
        } else {
            let linked = entry.linked.as_ref();
            code.compare(kernel, sections, &|name| linked?.get(name).copied(), &[])?;
        }
        let mut texts = code.whole_text(sections)?;
        texts.push(own.text().clone());
        let presence = proven(unused::presence(kernel, census, &entry.patch.name, &texts))?;
        if !presence.holders.is_empty() {
            return not_now(NotNow::Inside { holders: presence.holders });
        }
        let count = Count::read(kernel, &own)?.ok_or(Refusal::NeverUnloaded)?;
        match count.users() {
            Some(1) => {}
            Some(0) => return Err(Refusal::Unpinned { module: module.to_owned() }.into()),
            Some(users) => {
                return not_now(NotNow::Referenced { module: module.to_owned(), others: users - 1 });
            }
            None => return not_now(NotNow::ModuleChanges { module: module.to_owned() }),
        }
        Journal::check(kernel.space(), &[count.edit(false)])?.commit(guest)?;
        if let Some(entry) = self.patches.get_mut(&id) {
            entry.released = true;
        }
        Ok(Held::Here)
    }

    /// Keeps the guest from unloading the module `module` of a patch again, if it still has it.
    pub fn hold<M: Paused>(
        &mut self,
        id: PatchId,
        module: &str,
        kernel: &Running<'_, M>,
        guest: &M,
        loaded: &Loaded,
    ) -> Result<Held, Box<SwitchError>> {
        let Some(own) = found(loaded, module)? else {
            self.forget_module(id);
            return Ok(Held::Absent);
        };
        if !self.entry(id)?.released {
            return Ok(Held::Here);
        }
        let count = Count::read(kernel, &own)?.ok_or(Refusal::NeverUnloaded)?;
        if own.state() != ModuleState::Live || count.users().is_none() {
            return not_now(NotNow::ModuleChanges { module: module.to_owned() });
        }
        Journal::check(kernel.space(), &[count.edit(true)])?.commit(guest)?;
        if let Some(entry) = self.patches.get_mut(&id) {
            entry.released = false;
        }
        Ok(Held::Here)
    }

    /// Whether the code of a patch that is not applied has been, so that somebody may be in it.
    pub fn has_run(&self, id: PatchId) -> bool {
        self.entry(id).is_ok_and(|entry| entry.sections.is_some())
    }

    /// Whether the guest may unload a patch's module at any moment.
    pub fn is_released(&self, id: PatchId) -> bool {
        self.entry(id).is_ok_and(|entry| entry.released)
    }

    /// The guest does not have the module of a patch any more, which is not applied.
    pub fn forget_module(&mut self, id: PatchId) {
        if let Some(entry) = self.patches.get_mut(&id) {
            entry.released = false;
            entry.linked = None;
            entry.sections = None;
            entry.stubs = Stubs::default();
        }
    }

    /// No other patch may use the module or be linked with it, as the kernel knows nothing of that.
    fn check_unneeded(
        &self,
        id: PatchId,
        module: &str,
        sections: &BTreeMap<String, Gva>,
    ) -> Result<(), Refusal> {
        let text = sections.get(".text");
        let mut others = self.patches.iter().filter(|(other, _)| **other != id);
        let user = others.find(|(_, other)| {
            let imports =
                |import: &Import| matches!(import, Import::Module { object, .. } if object == module);
            let is_patched = |function: &super::Switched| {
                function.old.home.module().is_some_and(|patched| patched.name == module)
            };
            let is_same =
                other.sections.as_deref().is_some_and(|other| text.is_some() && other.get(".text") == text);
            other.sections.is_some() && other.patch.imports.values().any(imports)
                || other.switched.iter().any(is_patched)
                || other.state == State::Applied && is_same
        });
        match user {
            Some((_, other)) => {
                Err(Refusal::ModuleUsed { module: module.to_owned(), by: other.patch.name.clone() })
            }
            None => Ok(()),
        }
    }
}

/// The module of this name, if the guest has one. A list that cannot be read to its end is no proof that it has none.
fn found(loaded: &Loaded, name: &str) -> Result<Option<Arc<Module>>, Box<SwitchError>> {
    let found = loaded.modules.iter().find(|module| module.name == name);
    match loaded.doubts() {
        [_, ..] if found.is_none() => not_now(NotNow::Doubt { doubts: loaded.doubts().iter().collect() }),
        _ => Ok(found.cloned()),
    }
}
