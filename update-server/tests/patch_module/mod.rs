//! A module with code for functions of the kernel, built by the machine's compiler and linked by its linker.
#![allow(dead_code, reason = "each test takes its own part")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use update_server::addr::Gva;
use update_server::guest::Paused;
use update_server::kernel::model::Model;
use update_server::phases::patch_module::PatchModule;
use update_server::server::UpdateServer;

use crate::images::models;
use crate::small_guest::{Guest, Plan, physical};

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
__asm__(".section .text.lucos_stubs,\"ax\"\n.balign 8\n"
        ".rept 256\nnop\n.fill 7,1,0xcc\n.endr\nud2\n.previous\n");
"#;

const OUTSIDE: Gva = Gva(0xffff_ffff_8100_1234);
const COUNTER: Gva = Gva(0xffff_ffff_8200_5678);

/// What the kernel calls it.
pub(crate) const NAME: &str = "lucos_small";
/// Its `struct module`, and the text that it says it has.
pub(crate) const STRUCTURE: Gva = Gva(0xffff_ffff_c000_e000);
pub(crate) const TEXT: Gva = Gva(0xffff_ffff_c000_8000);
pub(crate) const TEXT_BYTES: u32 = 0x1000;
/// That of the module that the small guest has by itself.
pub(crate) const OTHER: Gva = Gva(0xffff_ffff_c000_4000);
/// Where its stubs are.
pub(crate) const STUBS: Gva = Gva(0xffff_ffff_c000_d400);

fn run(program: &str, arguments: &[&str], folder: &Path) {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn resolve(name: &str) -> Option<Gva> {
    match name {
        "outside" => Some(OUTSIDE),
        "counter" => Some(COUNTER),
        _ => None,
    }
}

/// Bytes, and where they are.
pub(crate) type Linked = (Gva, Vec<u8>);

/// Where the sections of the module are, and their bytes as the machine's linker has linked them.
pub(crate) fn linked_by_others(folder: &Path) -> (BTreeMap<String, Gva>, Vec<Linked>) {
    fs::write(folder.join("patch.c"), SOURCE).unwrap();
    let flags =
        "-O2 -c -mcmodel=kernel -fno-pic -fno-asynchronous-unwind-tables -fcf-protection=none -mno-sse";
    run("cc", &[flags.split(' ').collect::<Vec<_>>(), vec!["patch.c", "-o", "patch.o"]].concat(), folder);
    let places = [
        (".text", 0xffff_ffff_c000_8000),
        (".text.lucos_stubs", STUBS.0),
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

/// Puts bytes into a guest.
pub(crate) fn put(guest: &Guest<'_>, at: Gva, bytes: &[u8]) {
    Paused::write(guest, physical(at), bytes).unwrap();
}

/// The module as the guest's kernel knows it.
#[derive(Clone, Copy)]
pub(crate) struct Known<'g, 'p> {
    pub(crate) guest: &'g Guest<'p>,
    pub(crate) model: &'g Model,
}

impl Known<'_, '_> {
    pub(crate) fn member(&self, structure: Gva, paths: &[&str]) -> Gva {
        let types = self.model.image().types();
        let found = paths.iter().find_map(|path| types.offset("module", path).ok());
        structure.wrapping_add(found.unwrap())
    }

    /// Puts it on the kernel's list, in use by itself.
    pub(crate) fn load(&self) {
        put(self.guest, self.member(STRUCTURE, &["name"]), format!("{NAME}\0").as_bytes());
        let base = self.member(STRUCTURE, &["mem.base", "core_layout.base"]);
        put(self.guest, base, &TEXT.0.to_le_bytes());
        let bytes = self.member(STRUCTURE, &["mem.size", "core_layout.text_size"]);
        put(self.guest, bytes, &TEXT_BYTES.to_le_bytes());
        self.count(2);
        self.listed(true);
    }

    pub(crate) fn listed(&self, listed: bool) {
        let head = self.model.image().symbols().only("modules").unwrap().address;
        let (other, own) = (self.member(OTHER, &["list"]), self.member(STRUCTURE, &["list"]));
        let ring = if listed { vec![head, other, own] } else { vec![head, other] };
        for (at, next) in ring.iter().zip(ring.iter().cycle().skip(1)) {
            put(self.guest, *at, &next.0.to_le_bytes());
            put(self.guest, next.wrapping_add(8), &at.0.to_le_bytes());
        }
    }

    /// How often it is used, as the kernel counts.
    pub(crate) fn count(&self, count: u32) {
        put(self.guest, self.member(STRUCTURE, &["refcnt"]), &count.to_le_bytes());
    }
}

/// What a guest has that runs one of the kernels, with the module in its memory.
pub(crate) struct InGuest<'p> {
    pub(crate) guest: Guest<'p>,
    pub(crate) model: &'p Model,
    pub(crate) module: &'p PatchModule,
    pub(crate) sections: BTreeMap<String, Gva>,
}

/// That, and the update server of its host.
pub(crate) struct Bench<'p> {
    pub(crate) guest: Guest<'p>,
    pub(crate) model: &'p Model,
    pub(crate) server: UpdateServer,
    pub(crate) sections: BTreeMap<String, Gva>,
    pub(crate) module: PatchModule,
}

impl<'p> Bench<'p> {
    pub(crate) fn new(InGuest { guest, model, module, sections }: InGuest<'p>) -> Self {
        Self { guest, model, server: UpdateServer::default(), sections, module: module.clone() }
    }
}

/// Runs `test` on each kernel.
pub(crate) fn in_guests(test: &str, run: impl Fn(&str, InGuest<'_>)) {
    let folder = tempfile::tempdir().unwrap();
    let (sections, linked) = linked_by_others(folder.path());
    let module = PatchModule::read(&fs::read(folder.path().join("patch.o")).unwrap()).unwrap();
    for (name, model) in models(test) {
        let plan = Plan::new(&model);
        let guest = Guest::new(&plan);
        for (at, bytes) in &linked {
            put(&guest, *at, bytes);
        }
        Known { guest: &guest, model: &model }.load();
        run(name, InGuest { guest, model: &model, module: &module, sections: sections.clone() });
    }
}
