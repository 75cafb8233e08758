//! From a patch's file to what the host knows of it: everything that can be held against the kernel image alone, before the guest
//! is asked for anything. What is in a module can only be looked for in the guest.

use std::collections::BTreeMap;

use lucos_lup::manifest::{self, Draining, Function, Manifest};

use super::module_function::ModuleFunction;
use super::object::is_filler;
use super::patch_module::{ModuleError, PatchModule};
use super::place::{NoPlace, OldFunction};
use super::tombstones;
use crate::image::{Image, Symbol};
use crate::server::{Consistency, Import, Old, Patch, Replacement};

/// Why a patch is not for this kernel, or cannot be applied at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// It was made for others.
    #[error(
        "the guest runs {release} (build-id {build_id}), and the patch is for {}; get the one for this kernel",
        list(listed)
    )]
    OtherKernel {
        /// The guest's.
        release: String,
        /// The guest's.
        build_id: String,
        /// The releases that the patch is for.
        listed: Vec<String>,
    },
    /// It asks for something that this version does not do.
    #[error("the patch asks for {what}, which this version does not do")]
    NotBuilt {
        /// What.
        what: &'static str,
    },
    /// It would have a module's code filled, of which it has only a part.
    #[error(
        "the patch asks for tombstones in {function} of module {module}; they are for functions of the kernel image only"
    )]
    InModule {
        /// The function.
        function: String,
        /// Its module.
        module: String,
    },
    /// Its module cannot redirect returns.
    #[error(
        "the patch wants return addresses redirected, and its module has no room for that: {why}; make it with `lucos-patch make \
         --draining redirect`, or set policy.draining to \"watch\""
    )]
    NoStubs {
        /// What is wrong with it.
        why: String,
    },
    /// A function cannot be made to jump, or not be filled.
    #[error(transparent)]
    NoPlace(#[from] NoPlace),
    /// The kernel has another function of that name than the patch was made for.
    #[error("the kernel's {function} is not the one that the patch was made for: it differs at +{offset:#x}")]
    OtherCode {
        /// The function.
        function: String,
        /// The first byte that differs, or where one of both ends.
        offset: usize,
    },
    /// The module is none, or lacks something.
    #[error(transparent)]
    Module(#[from] ModuleError),
}

fn list(releases: &[String]) -> String {
    releases.join(", ")
}

/// Holds a patch against the image of the kernel that the guest runs.
pub fn admit(image: &Image, manifest: &Manifest, module: &[u8]) -> Result<Patch, NotAdmitted> {
    let is_ours = |kernel: &manifest::Kernel| kernel.build_id.as_bytes()[..] == *image.build_id().bytes();
    if !manifest.kernels.iter().any(is_ours) {
        return Err(NotAdmitted::OtherKernel {
            release: image.release().to_owned(),
            build_id: image.build_id().to_string(),
            listed: manifest.kernels.iter().map(|kernel| kernel.release.clone()).collect(),
        });
    }
    let consistency = match manifest.policy.consistency {
        manifest::Consistency::Coexist => Consistency::Coexist,
        manifest::Consistency::Quiescent => Consistency::Quiescent,
        manifest::Consistency::PerTask => return Err(NotAdmitted::NotBuilt { what: "the policy per-task" }),
    };
    let module = PatchModule::read(module)?;
    let redirect = manifest.policy.draining == Draining::Redirect;
    if redirect {
        module.check_stubs().map_err(|why| NotAdmitted::NoStubs { why })?;
    }
    let functions = replacements(image, &manifest.functions)?;
    for function in &functions {
        module.check_function(&function.new)?;
        if manifest.policy.tombstones {
            check_tombstones(image, &function.old)?;
        }
    }
    Ok(Patch {
        name: manifest.name.to_string(),
        functions,
        imports: imports(image, manifest, &module)?,
        module,
        requires: manifest.requires.iter().map(ToString::to_string).collect(),
        consistency,
        tombstones: manifest.policy.tombstones,
        redirect,
    })
}

/// Whether a function can be filled with traps.
fn check_tombstones(image: &Image, old: &Old) -> Result<(), NotAdmitted> {
    match old {
        Old::Image(old) => Ok(tombstones::refuse_others(image, old)?),
        // The patch has no bytes of the parts that are set aside, and what a module's tables name only the guest says.
        Old::Module(old) => {
            let (function, module) = (old.name.clone(), old.object.clone());
            Err(NotAdmitted::InModule { function, module })
        }
    }
}

/// The functions: where each jumps, if it is the one that the patch was made for.
fn replacements(image: &Image, functions: &[Function]) -> Result<Vec<Replacement>, NotAdmitted> {
    let of_image = functions.iter().filter(|function| function.object.is_none());
    let wanted = of_image.map(|function| (&*function.name, index(function.position)));
    let mut olds = OldFunction::find_all(image, wanted)?.into_iter();
    let replacement = |function: &Function| {
        let old = if let Some(object) = &function.object {
            Old::Module(of_module(object, function))
        } else {
            let old = olds.next().expect("as many were found as were wanted");
            compare(image, &old, function)?;
            Old::Image(old)
        };
        Ok(Replacement { old, new: function.new.clone() })
    };
    functions.iter().map(replacement).collect()
}

/// A module's function, of which the patch has the code.
fn of_module(object: &str, function: &Function) -> ModuleFunction {
    let holes = function.holes.iter().map(|hole| {
        let from = usize::try_from(hole.offset).unwrap_or(usize::MAX);
        from..from.saturating_add(usize::try_from(hole.len).unwrap_or(usize::MAX))
    });
    ModuleFunction {
        object: object.to_owned(),
        name: function.name.clone(),
        position: index(function.position),
        code: function.code.as_bytes().to_vec(),
        holes: holes.collect(),
    }
}

/// Whether the image's function is the one that the patch was made for.
fn compare(image: &Image, old: &OldFunction, function: &Function) -> Result<(), NotAdmitted> {
    let expected = function.code.as_bytes();
    let len = usize::try_from(old.text.end.0 - old.text.start.0).unwrap_or(0);
    let found = image.bytes(old.text.start, len).unwrap_or_default();
    let same = found.iter().zip(expected).take_while(|(found, expected)| found == expected).count();
    // What a function is filled up with may be counted as a part of it.
    let rest = &expected[same..];
    if same < found.len() || !rest.iter().all(|&byte| is_filler(byte)) {
        return Err(NotAdmitted::OtherCode { function: function.name.clone(), offset: same });
    }
    Ok(())
}

/// A position as the manifest counts it, from 1 on and with 0 for the only one.
fn index(position: u32) -> Option<usize> {
    usize::try_from(position).ok().and_then(|position| position.checked_sub(1))
}

/// What each undefined symbol of the module stands for: as the manifest says, or by its own name.
fn imports(
    image: &Image,
    manifest: &Manifest,
    module: &PatchModule,
) -> Result<BTreeMap<String, Import>, NotAdmitted> {
    let mut found = BTreeMap::new();
    for name in module.undefined() {
        let listed = manifest.module.symbols.iter().find(|import| import.name == name);
        let symbol = match listed.map(|import| &import.source) {
            None => image.symbols().only(name),
            Some(manifest::Symbol { name: symbol, object: Some(object), position }) => {
                let (object, symbol) = (object.clone(), symbol.clone());
                let import = Import::Module { object, name: symbol, position: index(*position) };
                found.insert(name.to_owned(), import);
                continue;
            }
            Some(source) => nth(image, &source.name, source.position),
        };
        let missing = || ModuleError::Symbol { symbol: name.to_owned() };
        let symbol = symbol.ok_or_else(missing)?;
        found.insert(name.to_owned(), Import::Image { linked: symbol.address, absolute: symbol.absolute });
    }
    Ok(found)
}

/// The only symbol of a name, or the n-th by address.
fn nth<'i>(image: &'i Image, name: &str, position: u32) -> Option<Symbol<'i>> {
    match index(position) {
        None => image.symbols().only(name),
        Some(index) => image.symbols().named(name).nth(index),
    }
}
