//! A function of a module that is to be replaced: as the patch has it, and as it is found in the guest.
//!
//! The host has no file of the module. The patch has the function's bytes, and says which of them loading fills in. A jump is only
//! written over bytes that the patch has, so that whatever the guest says of its modules, no other byte of it is changed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::loaded_module::{LoadedModule, LoadedModuleError};
use super::object::{Home, ModuleHome, Object, without_filler};
use super::place::{NoPlace, OldFunction, only_function};
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::{JumpLabel, NOP5, Site, SiteKind, Sites, Symbols};
use crate::kernel::modules::Module;
use crate::kernel::running::Running;

/// A function of a module, as the patch has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleFunction {
    /// The module's name.
    pub object: String,
    /// The function's name.
    pub name: String,
    /// Which of several of that name, by address from 0 on.
    pub position: Option<usize>,
    /// Its bytes in the module's file.
    pub code: Vec<u8>,
    /// Which of them loading fills in, in order.
    pub holes: Vec<Range<usize>>,
}

/// ENDBR64 (Intel SDM vol. 2A, ENDBR64).
const ENDBR: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// The first byte of a direct call (Intel SDM vol. 2A, CALL): what ftrace makes a NOP of when it is loaded.
const CALL: u8 = 0xe8;

/// Finds `functions` in the modules that the guest has loaded, each with its places. Where other patches have written, `is_ours`
/// says; what is there is not looked at. The guest may run.
pub fn find(
    kernel: &Running<'_, impl Memory>,
    modules: &[Arc<Module>],
    functions: &[&ModuleFunction],
    is_ours: &dyn Fn(Gva) -> bool,
) -> Result<Vec<OldFunction>, LoadedModuleError> {
    let mut read = BTreeMap::new();
    for object in functions.iter().map(|function| &*function.object) {
        if !read.contains_key(object) {
            read.insert(object, LoadedModule::read(kernel, modules, object)?);
        }
    }
    let found = functions.iter().map(|function| function.find_in(&read[&*function.object], is_ours));
    let found = found.collect::<Result<Vec<_>, _>>()?;
    // All jumps into one module are asked for at once: it is searched as a whole.
    for (object, loaded) in read {
        let own = || found.iter().zip(functions).filter(|(_, function)| function.object == object);
        let jumps: Vec<_> = own().flat_map(|(old, _)| old.jumps()).collect();
        let leading = loaded.leading_to(&jumps);
        for (old, function) in own() {
            old.refuse_branches(&leading).map_err(|source| function.no_place(source))?;
        }
    }
    Ok(found)
}

impl ModuleFunction {
    fn no_place(&self, source: NoPlace) -> LoadedModuleError {
        LoadedModuleError::NoPlace { module: self.object.clone(), source }
    }

    fn hole_at(&self, offset: usize) -> bool {
        let next = self.holes.partition_point(|hole| hole.end <= offset);
        self.holes.get(next).is_some_and(|hole| hole.contains(&offset))
    }

    fn find_in(
        &self,
        loaded: &LoadedModule,
        is_ours: &dyn Fn(Gva) -> bool,
    ) -> Result<OldFunction, LoadedModuleError> {
        let start = only_function(&loaded.module.symbols, &self.name, self.position)
            .map_err(|source| self.no_place(source))?;
        // What it is filled up with is nobody's, and may be counted as a part of it.
        let text = without_filler(start, &self.code);
        let len = usize::try_from(text.end.0.wrapping_sub(start.0)).unwrap_or(0);
        let gone = || self.no_place(NoPlace::Gone { function: self.name.clone() });
        let found = loaded.bytes(start, len).ok_or_else(gone)?;
        let mut code = self.code[..len].to_vec();
        for (offset, (expected, &found)) in code.iter_mut().zip(found).enumerate() {
            let at = start.wrapping_add(offset as u64);
            if self.hole_at(offset) {
                *expected = found;
            } else if *expected != found && loaded.sites.rewritten_at(at).is_none() && !is_ours(at) {
                let (module, function) = (self.object.clone(), self.name.clone());
                return Err(LoadedModuleError::OtherCode { module, function, offset });
            }
        }
        let object = InModule { loaded, function: self, start, code: &code };
        let home = ModuleHome {
            module: Arc::clone(&loaded.module),
            start,
            code: code.clone(),
            sites: Arc::clone(&loaded.sites),
        };
        let old = OldFunction::placed(&object, &self.name, Home::Module(Box::new(home)), text)
            .map_err(|source| self.no_place(source))?;
        for place in &old.places {
            // A part that is set aside may follow, by what the guest says. The patch does not have its bytes.
            if !old.text.contains(&place.at) {
                let (function, at, end) = (self.name.clone(), place.at, old.text.end);
                return Err(self.no_place(NoPlace::TooShort { function, at, end }));
            }
            let from = usize::try_from(place.at.0.wrapping_sub(start.0)).unwrap_or(usize::MAX);
            let mut taken = from..from.saturating_add(place.len.into());
            if let Some(offset) = taken.find(|&offset| self.hole_at(offset)) {
                let (module, function) = (self.object.clone(), self.name.clone());
                return Err(LoadedModuleError::Hole { module, function, offset });
            }
        }
        Ok(old)
    }
}

/// A module with one function in it that the patch has.
struct InModule<'a> {
    loaded: &'a LoadedModule,
    function: &'a ModuleFunction,
    start: Gva,
    code: &'a [u8],
}

impl Object for InModule<'_> {
    fn symbols(&self) -> &Symbols {
        &self.loaded.module.symbols
    }

    fn sites(&self) -> &Sites {
        &self.loaded.sites
    }

    fn bytes(&self, at: Gva, len: usize) -> Option<&[u8]> {
        let own = at.offset_from(self.start).and_then(|from| usize::try_from(from).ok());
        let own = own.and_then(|from| self.code.get(from..from.checked_add(len)?));
        own.or_else(|| self.loaded.bytes(at, len))
    }

    fn text_of(&self, start: Gva) -> Option<Range<Gva>> {
        self.loaded.text_of(start)
    }

    /// Only the patch says that there is a NOP, or a call that becomes one (`-mrecord-mcount` without `-mnop-mcount`).
    fn is_tracers(&self, site: &Site) -> bool {
        let code = &self.function.code;
        let from = if code.starts_with(&ENDBR) { ENDBR.len() } else { 0 };
        let is_call =
            code.get(from) == Some(&CALL) && (from + 1..from + 5).all(|at| self.function.hole_at(at));
        let is_nop = code.get(from..from + NOP5.len()) == Some(&NOP5);
        let is_first = site.start == self.start.wrapping_add(from as u64);
        site.kind == SiteKind::Ftrace && is_first && (is_call || is_nop)
    }

    /// Where it leads only the guest says, so that it is not followed.
    fn key(&self, _: Gva) -> Option<JumpLabel> {
        None
    }
}
