//! Patches of a source of a few lines, made for a stock kernel's image, which then admits them. `LUCOS_IMAGES` names the folder
//! that has it; `cargo xtask test` sees to it.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

// Shared with the tests of lucos-make and lucos-lup; a crate for it would be one more that the product has to be kept free of.
#[path = "../make/tests/small_kernel/mod.rs"]
mod small_kernel;
#[path = "../lup/tests/small_module/mod.rs"]
mod small_module;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use lucos_lup::manifest::{Consistency, Manifest};
use lucos_lup::{Container, Patch};
use lucos_patch::exit::ExitStatus;
use small_kernel::SmallKernel;
use small_module::SmallModule;
use update_server::image::Image;
use update_server::phases::admit::admit;
use update_server::server::{Import, Old};

const BIN: &str = env!("CARGO_BIN_EXE_lucos-patch");

/// Functions that the kernel has, two of them side by side in one of its files. A `pfn_swap_entry_to_page` is in several files.
const UNIT: &str = "extern int ipc_mni;\n\
    extern int _printk(const char *, ...);\n\
    __attribute__((noipa)) static int pfn_swap_entry_to_page(int i)\n{\n\t_printk(\"a\");\n\treturn i;\n}\n\
    int smaps_hugetlb_range(int i)\n{\n\tpfn_swap_entry_to_page(1);\n\treturn i + ipc_mni;\n}\n";

const FIX: (&str, &str, &str) = ("ipc/unit.c", "return i + ipc_mni;", "return i - ipc_mni;");

/// A stock kernel's image, and a small source and headers that are said to be its own.
struct Desk {
    image: Image,
    path: PathBuf,
    kernel: SmallKernel,
}

impl Desk {
    /// None, and said so for `test`, without images.
    fn new(test: &str) -> Option<Self> {
        let Some(folder) = std::env::var_os("LUCOS_IMAGES") else {
            println!("SKIPPED: {test}: LUCOS_IMAGES names no folder with kernels; `cargo xtask test` does");
            return None;
        };
        let path = PathBuf::from(folder).join("vmlinuz-6.1-cloud");
        let image = Image::read(&fs::read(&path).unwrap()).unwrap();
        let kernel = SmallKernel::new(image.release());
        kernel.put("source/ipc/unit.c", UNIT);
        kernel.put("headers/Module.symvers", "0x1\t_printk\tvmlinux\tEXPORT_SYMBOL\t\n");
        Some(Self { image, path, kernel })
    }

    /// How `make` ends for a fix, and what it says; its patch is `fix.lup`.
    fn run(&self, fix: &[(&str, &str, &str)], more: &[&str]) -> (u8, String, String) {
        let mut program = Command::new(BIN);
        program.arg("make").arg("--kernel").arg(&self.path).arg("--headers").arg(self.kernel.headers());
        program.arg("--source").arg(self.kernel.source()).arg("--patch").arg(self.kernel.fix(fix));
        program.args(["--name", "small-fix", "--summary", "ipc: a test", "--fixes", "CVE-2026-52923"]);
        let done = program.args(more).arg("--out").arg(self.kernel.path("fix.lup")).output().unwrap();
        let utf8 = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (u8::try_from(done.status.code().unwrap()).unwrap(), utf8(done.stdout), utf8(done.stderr))
    }

    /// What it prints, and the manifest, all being well.
    fn done(&self, fix: &[(&str, &str, &str)], more: &[&str]) -> (String, Manifest) {
        let (code, out, err) = self.run(fix, more);
        assert_eq!((code, err.as_str()), (ExitStatus::Done.code(), ""));
        let file = fs::read(self.kernel.path("fix.lup")).unwrap();
        (out, Patch::read(&Container::read(&file).unwrap()).unwrap().manifest)
    }

    fn refused(&self, fix: (&str, &str, &str), more: &[&str], wanted: &str) {
        let (code, out, err) = self.run(&[fix], more);
        assert_eq!((code, out.as_str()), (ExitStatus::Refused.code(), ""), "{err}");
        assert!(err.starts_with("lucos-patch: ") && err.contains(wanted), "{wanted:?} is not in {err:?}");
    }
}

const QUIESCENT: [&str; 2] = ["--consistency", "quiescent"];

#[test]
fn a_fix_becomes_a_patch_that_its_kernel_admits() {
    let Some(desk) = Desk::new("a_fix_becomes_a_patch_that_its_kernel_admits") else { return };
    let (shown, manifest) = desk.done(
        &[FIX],
        &["--consistency", "coexist", "--coexist-is-safe", "both only add", "--requires", "one"],
    );
    for piece in [
        "small-fix: ipc: a test",
        "CVE-2026-52923",
        "smaps_hugetlb_range, ",
        " by lucos_smaps_hugetlb_range, ",
        "coexist is safe: both only add",
        "requires   one",
        "lucos_small_fix, ",
        "by the host: ipc_mni, pfn_swap_entry_to_page = pfn_swap_entry_to_page (number ",
        "by the guest: none",
        "signature  none",
        "warning: vmlinux.o: warning: objtool",
        "bytes, not signed\n",
    ] {
        assert!(shown.contains(piece), "{piece:?} is not in {shown}");
    }
    assert_eq!(manifest.kernels[0].release, desk.image.release());
    assert_eq!(manifest.policy.consistency, Consistency::Coexist);

    let file = fs::read(desk.kernel.path("fix.lup")).unwrap();
    let admitted = admit(&desk.image, &manifest, Container::read(&file).unwrap().module()).unwrap();
    let function = desk.image.symbols().only("smaps_hugetlb_range").unwrap();
    let Old::Image(old) = &admitted.functions[0].old else { panic!("{:?}", admitted.functions[0]) };
    assert_eq!(old.text.start, function.address);
    // The one in front of it, of all in the kernel.
    let before = desk.image.symbols().named("pfn_swap_entry_to_page").map(|symbol| symbol.address);
    let before: Vec<_> = before.filter(|address| *address < function.address).collect();
    assert!(before.len() > 1, "the kernel has only one");
    let import = Import::Image { linked: *before.last().unwrap(), absolute: false };
    assert_eq!(admitted.imports["pfn_swap_entry_to_page"], import);
}

/// Who has compiled a module alone need not say what the kernel says.
#[test]
fn what_a_manifest_leaves_out_is_taken_from_the_kernel() {
    let Some(desk) = Desk::new("what_a_manifest_leaves_out_is_taken_from_the_kernel") else { return };
    desk.done(&[FIX], &QUIESCENT);
    let made = fs::read(desk.kernel.path("fix.lup")).unwrap();
    let container = Container::read(&made).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(container.manifest()).unwrap();
    manifest.as_object_mut().unwrap().remove("kernels");
    for field in ["size", "code", "holes"] {
        manifest["functions"][0].as_object_mut().unwrap().remove(field);
    }
    let put = |name: &str, bytes: &[u8]| fs::write(desk.kernel.path(name), bytes).unwrap();
    put("fix.ko", container.module());
    let pack = |name: &str, manifest: &serde_json::Value| {
        put(name, manifest.to_string().as_bytes());
        let mut program = Command::new(BIN);
        program.arg("pack").arg(desk.kernel.path(name)).arg(desk.kernel.path("fix.ko"));
        program.arg("--kernel").arg(&desk.path).arg("--output").arg(desk.kernel.path("again.lup"));
        let done = program.output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    assert_eq!(pack("bare.json", &manifest), (Some(ExitStatus::Done.code().into()), String::new()));
    assert_eq!(fs::read(desk.kernel.path("again.lup")).unwrap(), made);
    manifest["functions"][0]["name"] = "no_such_function".into();
    let (code, said) = pack("wrong.json", &manifest);
    assert_eq!(code, Some(ExitStatus::Refused.code().into()));
    assert!(said.contains("there is no function no_such_function"), "{said}");
}

#[test]
fn a_function_of_a_module_comes_with_its_holes() {
    let Some(desk) = Desk::new("a_function_of_a_module_comes_with_its_holes") else { return };
    let text = "extern int _printk(const char *, ...);\nstatic int level;\n\
        __attribute__((used, noipa)) static int tune(int i)\n{\n\t_printk(\"x\");\n\treturn level += i;\n}\n";
    desk.kernel.put("source/drivers/tune.c", text);
    let fix = ("drivers/tune.c", "level += i", "level -= i");
    desk.refused(
        fix,
        &QUIESCENT,
        "drivers/tune.c is a part of the module small: name with --ko the file of that module, small.ko",
    );
    let stock = desk.kernel.stock("drivers/tune.c");
    let stock = ["--ko", stock.to_str().unwrap()];
    let (shown, manifest) = desk.done(&[fix], &[QUIESCENT, stock].concat());
    assert!(shown.contains("tune of small, "), "{shown}");
    let function = &manifest.functions[0];
    assert_eq!((function.object.as_deref(), function.position), (Some("small"), 0));
    assert!(function.holes.len() >= 3, "{:?}", function.holes);
    assert_eq!(manifest.module.symbols[0].source.object.as_deref(), Some("small"));
    desk.refused(
        fix,
        &[QUIESCENT, stock, stock].concat(),
        "this is the module small, and so is a file before it",
    );
    let release = "#define UTS_RELEASE \"6.1.0-1-other\"\n";
    desk.kernel.put("headers/include/generated/utsrelease.h", release);
    desk.kernel.stock("drivers/tune.c");
    desk.kernel.put(
        "headers/include/generated/utsrelease.h",
        &release.replace("6.1.0-1-other", desk.image.release()),
    );
    desk.refused(fix, &[QUIESCENT, stock].concat(), "this module is for 6.1.0-1-other, and the kernel");
}

#[test]
fn what_does_not_fit_together_is_refused_with_place_and_remedy() {
    let Some(desk) = Desk::new("what_does_not_fit_together_is_refused_with_place_and_remedy") else { return };
    let (code, _, err) = desk.run(&[FIX], &["--consistency", "coexist"]);
    assert!(code == ExitStatus::Usage.code() && err.contains("--coexist-is-safe"), "{err}");
    let why = [&QUIESCENT[..], &["--coexist-is-safe", "x"]].concat();
    desk.refused(FIX, &why, "policy.coexist_is_safe of the manifest is for the consistency coexist only");
    desk.refused(
        FIX,
        &[&QUIESCENT[..], &["--function", "nothing"]].concat(),
        "`nothing` has no code of its own",
    );
    let same = ("ipc/unit.c", "return i + ipc_mni;", "return ipc_mni + i;");
    desk.refused(same, &QUIESCENT, "the fix changes no function at all; if it");
    let call = "extern int added(void);\n\treturn added() + ipc_mni;";
    let absent = ("ipc/unit.c", "return i + ipc_mni;", call);
    desk.refused(absent, &QUIESCENT, "`added`, which ipc/unit.c refers to, is nowhere in the kernel");
    // Every interrupt's way in: it is code that nobody may jump away from.
    desk.kernel.put(
        "source/ipc/entry.c",
        "extern int ipc_mni;\nint asm_exc_page_fault(void)\n{\n\treturn ipc_mni;\n}\n",
    );
    let entry = ("ipc/entry.c", "return ipc_mni", "return 1 + ipc_mni");
    desk.refused(entry, &QUIESCENT, "asm_exc_page_fault cannot be replaced: ");
    desk.kernel.put("headers/include/generated/utsrelease.h", "#define UTS_RELEASE \"6.1.0-1-other\"\n");
    desk.refused(FIX, &QUIESCENT, "are for 6.1.0-1-other, and the kernel");
    let other = [&QUIESCENT[..], &["--kernel", BIN]].concat();
    let (code, _, err) = desk.run(&[FIX], &other);
    assert!(code == ExitStatus::Usage.code() && err.contains("--kernel"), "{err}");
}

/// A manifest that leaves to the kernel what that says; its function has `more` fields.
fn manifest(more: &str) -> String {
    format!(
        "name = \"by-hand\"\nsummary = \"a test\"\n\n\
         [[functions]]\nname = \"smaps_hugetlb_range\"\nnew = \"lucos_ipc_addid\"\n{more}\n\
         [module]\nname = \"lup_ipc\"\nsymbols = [{{ name = \"ipc_mni\", source = {{ name = \"ipc_mni\" }} }}]\n\n\
         [policy]\nconsistency = \"quiescent\"\n"
    )
}

#[test]
fn a_manifest_that_leaves_things_out_has_no_unknown_fields() {
    let Some(desk) = Desk::new("a_manifest_that_leaves_things_out_has_no_unknown_fields") else { return };
    let module = desk.kernel.path("fix.ko");
    fs::write(&module, SmallModule::new("lup_ipc", desk.image.release()).file).unwrap();
    let pack = |more: &str| {
        desk.kernel.put("fix.toml", &manifest(more));
        let mut program = Command::new(BIN);
        program.arg("pack").arg(desk.kernel.path("fix.toml")).arg(&module).arg("--kernel").arg(&desk.path);
        let done = program.arg("--output").arg(desk.kernel.path("fix.lup")).output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let done = (Some(i32::from(ExitStatus::Done.code())), String::new());
    assert_eq!(pack(""), done);
    let file = fs::read(desk.kernel.path("fix.lup")).unwrap();
    let size = Patch::read(&Container::read(&file).unwrap()).unwrap().manifest.functions[0].size;
    assert_eq!(pack(&format!("size = {size}\nholes = []\nposition = 0\n")), done);
    let other = format!("size = {}", size + 1);
    for (more, reason) in [
        (
            "postion = 2",
            "functions[0] of the manifest has not the fields of docs/patch-format.md: unknown field `postion`",
        ),
        (&other, "size of smaps_hugetlb_range is not what this kernel says"),
        ("holes = [[8, 4]]", "holes of smaps_hugetlb_range is not what this kernel says"),
    ] {
        let (code, said) = pack(more);
        assert_eq!(code, Some(i32::from(ExitStatus::Refused.code())), "{said}");
        assert!(said.contains("fix.toml: ") && said.contains(reason), "{reason:?} is not in {said:?}");
    }
}
