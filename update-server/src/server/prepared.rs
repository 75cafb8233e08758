//! What is found in the guest before it stands still.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::patch::{Old, PatchId};
use super::{Entry, Refusal, Switched, UpdateServer};
use crate::addr::Gva;
use crate::guest::Memory;
use crate::kernel::modules::Module;
use crate::kernel::running::Running;
use crate::phases::loaded_module::LoadedModuleError;
use crate::phases::module_function;
use crate::phases::place::OldFunction;

/// A patch of which everything was found that is needed to apply it.
#[derive(Debug)]
pub struct Prepared {
    pub(super) id: PatchId,
    pub(super) functions: Vec<Switched>,
    /// Where the guest has the patch's module.
    pub(super) sections: BTreeMap<String, Gva>,
    /// What that was linked with.
    pub(super) linked: BTreeMap<String, Gva>,
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
        let linked = linked(entry, kernel, modules)?;
        let file = entry.patch.module.resolved(|name| linked.get(name).copied());
        if let Some(entry) = self.patches.get_mut(&id) {
            entry.linked = Some(linked);
        }
        Ok(file)
    }

    /// Finds what is needed to apply a patch to a guest whose kernel has loaded `modules`, the patch's own to `sections`. The guest
    /// may run.
    pub fn prepare(
        &self,
        id: PatchId,
        kernel: &Running<'_, impl Memory>,
        modules: &[Arc<Module>],
        sections: BTreeMap<String, Gva>,
    ) -> Result<Prepared, Refusal> {
        let entry = self.entry(id)?;
        let linked = linked(entry, kernel, modules)?;
        let differs = |known: &BTreeMap<String, Gva>| {
            linked.iter().find(|(name, at)| known.get(*name) != Some(*at)).map(|(name, _)| name.clone())
        };
        if let Some(symbol) = entry.linked.as_ref().and_then(differs) {
            return Err(Refusal::Moved { name: entry.patch.name.clone(), symbol });
        }
        let olds = self.old_functions(entry, kernel, modules)?;
        let functions = olds.into_iter().zip(&entry.patch.functions).map(|(old, function)| {
            let to = entry.patch.module.symbol(&function.new, &sections)?;
            Ok(Switched { old, new: function.new.clone(), to })
        });
        let functions = functions.collect::<Result<Vec<_>, Refusal>>()?;
        Ok(Prepared { id, functions, sections, linked })
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
