//! Patches held against the image of the kernel that they are for, or are not. `LUCOS_IMAGES` names the folder that has them.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod patch_module;
mod small_guest;

use std::fs;

use images::models;
use lucos_lup::manifest::{
    self, Code, Draining, Function, Import, Kernel, Manifest, ModuleInfo, Policy, Symbol,
};
use patch_module::linked_by_others;

use update_server::image::Image;
use update_server::phases::admit::{NotAdmitted, admit};
use update_server::phases::module_function::ModuleFunction;
use update_server::phases::patch_module::ModuleError;
use update_server::phases::place::NoPlace;
use update_server::phases::tombstones;
use update_server::server::{self, Old};

fn symbol(name: &str) -> Symbol {
    Symbol { name: name.to_owned(), object: None, position: 0 }
}

/// A patch for two functions, whose module refers to two symbols of the kernel by other names.
fn manifest(image: &Image) -> Manifest {
    let function = |name: &str, new: &str| {
        let start = image.symbols().only(name).unwrap().address;
        // What it is filled up with included, as the size of a symbol may have it.
        let end = image.symbols().function(start).unwrap().1.unwrap();
        let size = usize::try_from(end.0 - start.0).unwrap();
        Function {
            name: name.to_owned(),
            object: None,
            position: 0,
            new: new.to_owned(),
            size: u32::try_from(size).unwrap(),
            code: Code::from(image.bytes(start, size).unwrap().to_vec()),
            holes: Vec::new(),
        }
    };
    let import = |name: &str, source| Import { name: name.to_owned(), source: symbol(source) };
    let build_id: [u8; 20] = image.build_id().bytes().try_into().unwrap();
    Manifest {
        name: "two-functions".parse().unwrap(),
        summary: "for a test".to_owned(),
        fixes: Vec::new(),
        kernels: vec![Kernel { release: image.release().to_owned(), build_id: build_id.into() }],
        module: ModuleInfo {
            name: "two_functions".to_owned(),
            symbols: vec![import("outside", "schedule"), import("counter", "total_forks")],
        },
        functions: vec![function("ipc_addid", "replaced"), function("__schedule", "helper")],
        policy: Policy {
            consistency: manifest::Consistency::Quiescent,
            coexist_is_safe: None,
            draining: Draining::Watch,
            tombstones: false,
        },
        requires: Vec::new(),
    }
}

#[test]
fn a_patch_for_another_kernel_or_of_another_code_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    linked_by_others(folder.path());
    let module = fs::read(folder.path().join("patch.o")).unwrap();
    for (kernel, model) in models("a_patch_for_another_kernel_or_of_another_code_is_refused") {
        let image = model.image();
        let good = manifest(image);
        let patch = admit(image, &good, &module).unwrap();
        assert_eq!(patch.functions.len(), 2, "{kernel}");
        let schedule = image.symbols().only("schedule").unwrap().address;
        assert_eq!(
            patch.imports["outside"],
            server::Import::Image { linked: schedule, absolute: false },
            "{kernel}"
        );
        assert!(!patch.needs_modules(), "{kernel}");

        let refused = |change: &dyn Fn(&mut Manifest)| {
            let mut manifest = good.clone();
            change(&mut manifest);
            admit(image, &manifest, &module).unwrap_err()
        };
        let error = refused(&|manifest| manifest.kernels[0].build_id = [7; 20].into());
        assert!(matches!(error, NotAdmitted::OtherKernel { .. }), "{kernel}: {error}");
        for place in [0, 5, 100] {
            let error = refused(&|manifest| {
                let mut code = manifest.functions[0].code.as_bytes().to_vec();
                code[place] ^= 0x10;
                manifest.functions[0].code = code.into();
            });
            let is_there = matches!(error, NotAdmitted::OtherCode { offset, .. } if offset == place);
            assert!(is_there, "{kernel}, {place}: {error}");
        }
        let error = refused(&|manifest| {
            let code = manifest.functions[0].code.as_bytes();
            manifest.functions[0].code = code[..code.len() / 2].to_vec().into();
        });
        assert!(matches!(error, NotAdmitted::OtherCode { .. }), "{kernel}: {error}");
        let error = refused(&|manifest| manifest.functions[1].name = "copy_page".to_owned());
        assert!(matches!(error, NotAdmitted::NoPlace(NoPlace::Site { .. })), "{kernel}: {error}");
        let error = refused(&|manifest| manifest.functions[1].new = "table".to_owned());
        assert!(matches!(error, NotAdmitted::Module(ModuleError::Malformed(_))), "{kernel}: {error}");
        let error = refused(&|manifest| manifest.module.symbols[0].source = symbol("no_such_symbol"));
        assert!(matches!(error, NotAdmitted::Module(ModuleError::Symbol { .. })), "{kernel}: {error}");
        let error = refused(&|manifest| manifest.policy.consistency = manifest::Consistency::PerTask);
        assert!(matches!(error, NotAdmitted::NotBuilt { .. }), "{kernel}: {error}");
        // Redirected returns need stubs, each as it must be.
        let mut told = manifest(image);
        told.policy.draining = Draining::Redirect;
        assert!(admit(image, &told, &module).unwrap().redirect, "{kernel}");
        let stub =
            module.windows(8).position(|bytes| bytes == [0x90, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc]);
        let name = module.windows(11).position(|bytes| bytes == b"lucos_stubs");
        for at in [stub.unwrap() + 1, name.unwrap()] {
            let mut other = module.clone();
            other[at] ^= 1;
            let error = admit(image, &told, &other).unwrap_err();
            assert!(matches!(error, NotAdmitted::NoStubs { .. }), "{kernel}: {error}");
        }
    }
}

#[test]
fn what_is_in_modules_is_left_for_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    linked_by_others(folder.path());
    let module = fs::read(folder.path().join("patch.o")).unwrap();
    for (kernel, model) in models("what_is_in_modules_is_left_for_the_guest") {
        let image = model.image();
        let mut manifest = manifest(image);
        let function = &mut manifest.functions[0];
        function.object = Some("ext4".to_owned());
        function.position = 2;
        function.holes = vec![(1, 4).into(), (9, 8).into()];
        let patch = admit(image, &manifest, &module).unwrap();
        assert!(patch.needs_modules() && matches!(patch.functions[1].old, Old::Image(_)), "{kernel}");
        let Old::Module(old) = &patch.functions[0].old else { panic!("{kernel}: {:?}", patch.functions[0]) };
        let expected = ModuleFunction {
            object: "ext4".to_owned(),
            name: "ipc_addid".to_owned(),
            position: Some(1),
            code: manifest.functions[0].code.as_bytes().to_vec(),
            holes: vec![1..5, 9..17],
        };
        assert_eq!(old, &expected, "{kernel}");
        manifest.module.symbols[1].source.object = Some("ext4".to_owned());
        manifest.functions.pop();
        let patch = admit(image, &manifest, &module).unwrap();
        let total_forks = || "total_forks".to_owned();
        let import =
            server::Import::Module { object: "ext4".to_owned(), name: total_forks(), position: None };
        assert_eq!(patch.imports["counter"], import, "{kernel}");
    }
}

#[test]
fn tombstones_are_for_code_that_is_dead_and_known() {
    let folder = tempfile::tempdir().unwrap();
    linked_by_others(folder.path());
    let module = fs::read(folder.path().join("patch.o")).unwrap();
    for (kernel, model) in models("tombstones_are_for_code_that_is_dead_and_known") {
        let image = model.image();
        let mut manifest = manifest(image);
        manifest.policy.tombstones = true;
        let patch = admit(image, &manifest, &module).unwrap();
        assert!(patch.tombstones, "{kernel}");
        // Were the function longer than it is, others would go on in it.
        let Old::Image(mut old) = patch.functions[0].old.clone() else { panic!("{kernel}") };
        assert_eq!(tombstones::refuse_others(image, &old), Ok(()), "{kernel}");
        old.text.end = old.text.end.wrapping_add(0x1000);
        let error = tombstones::refuse_others(image, &old).unwrap_err();
        assert!(matches!(error, NoPlace::Used { .. }), "{kernel}: {error}");
        manifest.functions[0].object = Some("ext4".to_owned());
        manifest.functions[0].holes = vec![(1, 4).into()];
        let error = admit(image, &manifest, &module).unwrap_err();
        let is_named = matches!(&error, NotAdmitted::InModule { function, module } if function == "ipc_addid" && module == "ext4");
        assert!(is_named, "{kernel}: {error}");
    }
}
