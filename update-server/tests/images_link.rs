//! A patch's module, linked on the host and held against what a linker of others has made of it and put into a guest.
//! `LUCOS_IMAGES` names the folder with the kernels that the guest runs.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod small_guest;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use small_guest::{Guest, Plan, models, physical};
use update_server::addr::Gva;
use update_server::guest::Paused;
use update_server::kernel::running::Running;
use update_server::phases::link::{ModuleError, PatchModule};

/// Every kind of reference that the compiler makes in kernel code: calls, addresses in data and code, strings, tables.
const SOURCE: &str = r#"
extern int outside(int);
extern int counter;
static const char *const names[] = { "one", "two" };
int helper(int x) { return outside(x) + counter; }
int (*const table[2])(int) = { helper, outside };
const char *name_of(int i) { return names[i & 1]; }
int replaced(int x) { counter += x; return table[x & 1](x) + helper(x) + name_of(x)[0]; }
__asm__(".section .return_sites,\"a\"\n.long .Lplace - .\n.previous\n"
        ".section .text\n.Lplace: jmp outside\n.previous\n");
"#;

const OUTSIDE: Gva = Gva(0xffff_ffff_8100_1234);
const COUNTER: Gva = Gva(0xffff_ffff_8200_5678);

fn run(program: &str, arguments: &[&str], folder: &Path) {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn resolve(name: &str) -> Option<Gva> {
    match name {
        "outside" => Some(OUTSIDE),
        "counter" => Some(COUNTER),
        _ => None,
    }
}

/// Bytes, and where they are.
type Linked = (Gva, Vec<u8>);

/// Where the sections of the module are, and their bytes as the machine's linker has linked them.
fn linked_by_others(folder: &Path) -> (BTreeMap<String, Gva>, Vec<Linked>) {
    fs::write(folder.join("patch.c"), SOURCE).unwrap();
    let flags =
        "-O2 -c -mcmodel=kernel -fno-pic -fno-asynchronous-unwind-tables -fcf-protection=none -mno-sse";
    run("cc", &[flags.split(' ').collect::<Vec<_>>(), vec!["patch.c", "-o", "patch.o"]].concat(), folder);
    let places = [
        (".text", 0xffff_ffff_c000_8000),
        (".rodata", 0xffff_ffff_c000_9000),
        (".rodata.str1.1", 0xffff_ffff_c000_a000),
        (".data", 0xffff_ffff_c000_b000),
        (".bss", 0xffff_ffff_c000_c000),
        (".return_sites", 0xffff_ffff_c000_d000_u64),
    ];
    // One output section for each of the input, at its place; what else there is does not matter.
    let mut script = format!("outside = {:#x}; counter = {:#x}; SECTIONS {{\n", OUTSIDE.0, COUNTER.0);
    for (name, at) in places {
        writeln!(script, "{name} {at:#x} : {{ *({name}) }}").unwrap();
    }
    fs::write(folder.join("script"), script + "/DISCARD/ : { *(.comment .note*) }\n}\n").unwrap();
    run("ld", &["-T", "script", "patch.o", "-o", "linked", "--no-relax"], folder);
    let mut bytes = Vec::new();
    for (name, at) in places {
        let file = format!("bytes{name}");
        run("objcopy", &["-O", "binary", "-j", name, "linked", &file], folder);
        bytes.push((Gva(at), fs::read(folder.join(file)).unwrap_or_default()));
    }
    (places.into_iter().map(|(name, at)| (name.to_owned(), Gva(at))).collect(), bytes)
}

fn put(guest: &Guest<'_>, at: Gva, bytes: &[u8]) {
    Paused::write(guest, physical(at), bytes).unwrap();
}

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
            module.compare(&kernel, &at, &resolve)
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
