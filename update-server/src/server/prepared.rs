//! What is found in the guest before it stands still.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::checked::Checked;
use super::patch::{Old, PatchId};
use super::{Entry, Refusal, Switched, UpdateServer};
use crate::addr::Gva;
use crate::census::{Census, Loaded};
use crate::guest::Memory;
use crate::journal::Journal;
use crate::kernel::modules::Module;
use crate::kernel::running::Running;
use crate::phases::loaded_module::LoadedModuleError;
use crate::phases::module_function;
use crate::phases::place::OldFunction;
use crate::phases::stack_check::{Watch, Watched};

/// A patch of which everything was found that is needed to apply it.
#[derive(Debug)]
pub struct Prepared {
    pub(super) id: PatchId,
    pub(super) functions: Vec<Switched>,
    /// Where the guest has the patch's module.
    pub(super) sections: Arc<BTreeMap<String, Gva>>,
    /// What that was linked with.
    pub(super) linked: Arc<BTreeMap<String, Gva>>,
    pub(super) foreseen: Option<Foreseen>,
}

/// A patch of which everything was found that is needed to roll it back.
#[derive(Debug)]
pub struct PreparedReturn {
    pub(super) id: PatchId,
    pub(super) foreseen: Option<Foreseen>,
}

/// What was seen while the guest ran.
#[derive(Debug)]
pub(super) struct Foreseen {
    /// Who was where.
    pub(super) watch: Watch,
    /// What is to be changed.
    checked: Option<Checked>,
    /// What the guest had loaded.
    loaded: Arc<Loaded>,
    /// What other patches there were.
    revision: u64,
}

impl Foreseen {
    /// Whether it is of use in a pause, where the guest has `loaded`.
    pub(super) fn holds(&self, server: &UpdateServer, loaded: &Arc<Loaded>) -> bool {
        self.revision == server.revision && Arc::ptr_eq(&self.loaded, loaded)
    }

    /// What is to be changed, if that is still so.
    pub(super) fn changes(&self, kernel: &Running<'_, impl Memory>) -> Option<&Journal> {
        self.checked.as_ref()?.still(kernel)
    }
}

impl UpdateServer {
    /// The patch's module as the guest is to load it, whose kernel has loaded `modules`. The guest may run.
    ///
    /// The functions that the patch replaces must be there already. What they and the symbols are is remembered: what the guest has
    /// of the patch will be compared with that.
    pub fn link(
        &mut self,
        id: PatchId,
        kernel: &Running<'_, impl Memory>,
        modules: &[Arc<Module>],
    ) -> Result<Vec<u8>, Refusal> {
        let entry = self.entry(id)?;
        self.old_functions(entry, kernel, modules)?;
        let linked = Arc::new(linked(entry, kernel, modules)?);
        let file = entry.patch.module.resolved(|name| linked.get(name).copied());
        if let Some(entry) = self.patches.get_mut(&id) {
            entry.linked = Some(linked);
        }
        Ok(file)
    }

    /// Finds what is needed to apply a patch to a guest of which `census` is known, and which has loaded the patch's module to
    /// `sections`. The guest may run.
    pub fn prepare(
        &self,
        id: PatchId,
        kernel: &Running<'_, impl Memory>,
        census: &Census,
        sections: BTreeMap<String, Gva>,
    ) -> Result<Prepared, Refusal> {
        let entry = self.entry(id)?;
        let modules = &census.loaded.modules;
        let linked = linked(entry, kernel, modules)?;
        let differs = |known: &Arc<BTreeMap<String, Gva>>| {
            linked.iter().find(|(name, at)| known.get(*name) != Some(*at)).map(|(name, _)| name.clone())
        };
        if let Some(symbol) = entry.linked.as_ref().and_then(differs) {
            return Err(Refusal::Moved { name: entry.patch.name.clone(), symbol });
        }
        let olds = self.old_functions(entry, kernel, modules)?;
        let functions = olds.into_iter().zip(&entry.patch.functions).map(|(old, function)| {
            let to = entry.patch.module.symbol(&function.new, &sections)?;
            Ok(Switched { old: Arc::new(old), new: function.new.as_str().into(), to })
        });
        let functions = functions.collect::<Result<Vec<_>, Refusal>>()?;
        let (sections, linked) = (Arc::new(sections), Arc::new(linked));
        let watched = self.replaced(kernel, &functions, None);
        let mut prepared = Prepared { id, functions, sections, linked, foreseen: None };
        let checked =
            Checked::before(kernel, |kernel| self.changes_to_apply(&prepared, kernel, &census.loaded));
        prepared.foreseen = Some(self.foreseen(kernel, census, watched, checked));
        Ok(prepared)
    }

    /// Finds what is needed to roll a patch back. The guest may run.
    pub fn prepare_return(
        &self,
        id: PatchId,
        kernel: &Running<'_, impl Memory>,
        census: &Census,
    ) -> Result<PreparedReturn, Refusal> {
        let watched = Self::brought(self.entry(id)?);
        let mut prepared = PreparedReturn { id, foreseen: None };
        let checked =
            Checked::before(kernel, |kernel| self.changes_to_roll_back(&prepared, kernel, &census.loaded));
        prepared.foreseen = Some(self.foreseen(kernel, census, watched, checked));
        Ok(prepared)
    }

    fn foreseen(
        &self,
        kernel: &Running<'_, impl Memory>,
        census: &Census,
        watched: Vec<Watched>,
        checked: Option<Checked>,
    ) -> Foreseen {
        let watch = Watch::begin(kernel, census, watched);
        Foreseen { watch, checked, loaded: Arc::clone(&census.loaded), revision: self.revision }
    }

    /// The functions that a patch replaces, in its order.
    fn old_functions(
        &self,
        entry: &Entry,
        kernel: &Running<'_, impl Memory>,
        modules: &[Arc<Module>],
    ) -> Result<Vec<OldFunction>, LoadedModuleError> {
        let switched: Vec<_> = self.patches.values().flat_map(|entry| &entry.switched).collect();
        let is_ours = |at: Gva| switched.iter().any(|switched| switched.old.is_module_place(at));
        let of_modules: Vec<_> = entry.patch.module_functions().collect();
        let mut found = module_function::find(kernel, modules, &of_modules, &is_ours)?.into_iter();
        let mut old = |old: &Old| match old {
            Old::Image(old) => Some(old.clone()),
            Old::Module(_) => found.next(),
        };
        Ok(entry.patch.functions.iter().filter_map(|function| old(&function.old)).collect())
    }
}

/// Where each undefined symbol of a patch's module is.
fn linked(
    entry: &Entry,
    kernel: &Running<'_, impl Memory>,
    modules: &[Arc<Module>],
) -> Result<BTreeMap<String, Gva>, LoadedModuleError> {
    let now =
        entry.patch.imports.iter().map(|(name, import)| Ok((name.clone(), import.now(kernel, modules)?)));
    now.collect()
}
