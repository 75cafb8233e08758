//! A patch, as far as everything static is known of it.

use std::collections::BTreeMap;

use crate::addr::Gva;
use crate::phases::link::PatchModule;
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

    pub(super) fn import(&self, name: &str, distance: u64) -> Option<Gva> {
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
