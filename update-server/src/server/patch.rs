//! A patch, as far as everything static is known of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::addr::Gva;
use crate::guest::Memory;
use crate::kernel::modules::Module;
use crate::kernel::running::Running;
use crate::phases::loaded_module::{LoadedModuleError, live};
use crate::phases::module_function::ModuleFunction;
use crate::phases::patch_module::PatchModule;
use crate::phases::place::OldFunction;

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

/// A function that is replaced, as it is known before the guest is asked.
#[derive(Debug, Clone)]
pub enum Old {
    /// One of the kernel's image, found there.
    Image(OldFunction),
    /// One of a module, to be found in the guest.
    Module(ModuleFunction),
}

/// One function, and what takes its place.
#[derive(Debug, Clone)]
pub struct Replacement {
    /// The kernel's function.
    pub old: Old,
    /// The symbol of the new one in the patch's module.
    pub new: String,
}

/// A symbol of the kernel that a patch's module refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Import {
    /// One of the kernel's image.
    Image {
        /// Where it was linked for.
        linked: Gva,
        /// Whether it stays there under KASLR.
        absolute: bool,
    },
    /// One of a module.
    Module {
        /// The module's name.
        object: String,
        /// The symbol's name there.
        name: String,
        /// Which of several of that name, by address from 0 on.
        position: Option<usize>,
    },
}

impl Import {
    /// Where it is now, in a guest that has `modules`.
    pub(super) fn now(
        &self,
        kernel: &Running<'_, impl Memory>,
        modules: &[Arc<Module>],
    ) -> Result<Gva, LoadedModuleError> {
        match self {
            Self::Image { linked, absolute: true } => Ok(*linked),
            Self::Image { linked, absolute: false } => Ok(kernel.now(*linked)),
            Self::Module { object, name, position } => {
                let symbols = &live(modules, object)?.symbols;
                let found = match position {
                    None => symbols.only(name),
                    Some(index) => symbols.named(name).nth(*index),
                };
                let missing = || LoadedModuleError::Symbol { module: object.clone(), symbol: name.clone() };
                found.map(|symbol| symbol.address).ok_or_else(missing)
            }
        }
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
    /// Whether the functions that it replaces, all of the image, are to be filled with traps once nobody is in them.
    pub tombstones: bool,
    /// Whether the returns of those who are in code on its way out are redirected, where that is possible.
    pub redirect: bool,
}

impl Patch {
    /// Whether it has to do with modules of the kernel, so that they must be known before its own is linked.
    pub fn needs_modules(&self) -> bool {
        let import = |import: &Import| matches!(import, Import::Module { .. });
        self.module_functions().next().is_some() || self.imports.values().any(import)
    }

    pub(super) fn module_functions(&self) -> impl Iterator<Item = &ModuleFunction> {
        self.functions.iter().filter_map(|function| match &function.old {
            Old::Image(_) => None,
            Old::Module(function) => Some(function),
        })
    }
}

/// What a patch is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing in the guest is changed by it.
    Ready,
    /// Its functions are switched.
    Applied,
    /// Some of its changes were made and could not be taken back, as the guest's memory could not be written to any more. Until the
    /// kernel is another one, nothing more is done to it.
    Torn,
    /// The kernel that it was applied to is gone, or all modules that it has changed are, and its changes with them.
    Gone,
}
