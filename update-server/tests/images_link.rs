//! A patch's module, linked on the host and held against what a linker of others has made of it and put into a guest.
//! `LUCOS_IMAGES` names the folder with the kernels that the guest runs.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod patch_module;
mod small_guest;

use std::collections::BTreeMap;
use std::fs;

use images::models;
use patch_module::{linked_by_others, put, resolve};
use small_guest::{Guest, Plan};
use update_server::addr::Gva;
use update_server::guest::Paused;
use update_server::kernel::running::Running;
use update_server::phases::patch_module::{ModuleError, PatchModule};

#[test]
fn what_the_guest_has_loaded_is_told_from_what_it_has_not() {
    let folder = tempfile::tempdir().unwrap();
    let (at, linked) = linked_by_others(folder.path());
    let file = fs::read(folder.path().join("patch.o")).unwrap();
    let module = PatchModule::read(&file).unwrap();
    let mut undefined: Vec<_> = module.undefined().collect();
    undefined.sort_unstable();
    assert_eq!(undefined, ["counter", "outside"]);
    for (name, model) in models("what_the_guest_has_loaded_is_told_from_what_it_has_not") {
        let plan = Plan::new(&model);
        let guest = Guest::new(&plan);
        for (at, bytes) in &linked {
            put(&guest, *at, bytes);
        }
        let compare = || {
            let kernel = Running::find(&model, &guest, guest.vcpus()).unwrap();
            module.compare(&kernel, &at, &resolve, &[])
        };
        assert_eq!(compare(), Ok(()), "{name}");
        let text = &module.text(&at).unwrap()[0];
        assert_eq!(text.start, at[".text"]);
        let (replaced, helper) = (module.symbol("replaced", &at), module.symbol("helper", &at));
        assert!(text.contains(&replaced.unwrap()) && text.contains(&helper.unwrap()), "{name}");
        // The one place that a table of the module names may differ; every other byte may not.
        let (start, code) = &linked[0];
        // The compiler puts what stands outside of all functions first.
        assert_eq!(code[0], 0xe9, "{name}");
        for (offset, &byte) in code.iter().enumerate() {
            let here = start.wrapping_add(offset as u64);
            put(&guest, here, &[byte ^ 0x55]);
            let expected = offset < 5;
            let found = compare();
            let differs = matches!(found, Err(ModuleError::Differs { at, .. }) if at == here);
            assert_eq!(found.is_ok(), expected, "{name}, {offset}: {found:?}");
            assert_eq!(differs, !expected, "{name}, {offset}: {found:?}");
            put(&guest, here, &[byte]);
        }
        let constants = at[".rodata"];
        put(&guest, constants, &[0xaa]);
        assert!(matches!(compare(), Err(ModuleError::Differs { .. })), "{name}");
    }
    // As a guest's loader is to have it, nothing is undefined any more.
    let resolved = PatchModule::read(&module.resolved(resolve)).unwrap();
    assert_eq!(resolved.undefined().count(), 0);
    let mut short = at.clone();
    short.remove(".rodata");
    assert!(module.text(&short).is_ok());
    assert!(matches!(module.symbol("table", &short), Err(ModuleError::NoSection { .. })));
}

#[test]
fn files_that_are_no_modules_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    linked_by_others(folder.path());
    let file = fs::read(folder.path().join("patch.o")).unwrap();
    assert!(PatchModule::read(&fs::read(folder.path().join("linked")).unwrap()).is_err());
    // Cut short or damaged anywhere it is an error or another module, and never a panic.
    for len in 0..file.len() {
        let _ = PatchModule::read(&file[..len]);
    }
    let at: BTreeMap<String, Gva> = [(".text".to_owned(), Gva(0xffff_ffff_c000_8000))].into();
    for place in 0..file.len() {
        for value in [0, 0xff, 0x80] {
            let mut damaged = file.clone();
            damaged[place] = value;
            if let Ok(module) = PatchModule::read(&damaged) {
                let _ = module.resolved(resolve);
                let _ = module.symbol("replaced", &at);
                let _ = module.text(&at);
            }
        }
    }
}
