//! The whole way from a fix to a module, with a kernel of a few lines.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod small_kernel;

use lucos_lup::Module;
use lucos_lup::manifest::{Import, Symbol};
use lucos_make::{Entry, Kernel, Made, MakeError, Replacement, Request, Tables, changes, make};
use small_kernel::{SmallKernel, holds};

const RELEASE: &str = "6.1.0-47-cloud-amd64";

const UNIT: &str = "#include <common.h>\n\
    static int state;\n\
    extern void exported(const char *);\n\
    __attribute__((noipa)) static void show(int i)\n{\n\tstate -= i;\n\texported(NAME);\n}\n\
    void fixed_one(int i)\n{\n\tstate += i;\n\texported(__FILE__);\n}\n\
    int same(void)\n{\n\tstatic int calls;\n\tshow(1);\n\texported(NAME);\n\treturn calls++ + __LINE__;\n}\n";

const OTHER: &str = "extern void exported(const char *);\n\
    int last;\n\
    __attribute__((noipa)) static void show(int i)\n{\n\tlast = i;\n\texported(\"other\");\n}\n\
    void other_one(int i)\n{\n\tshow(i);\n\tshow(3);\n\tlast++;\n}\n";

/// The kernel's symbols by address; a capital in front of a name says that others can refer to it.
const KERNEL: [&str; 12] = [
    "exported!",
    "show",
    "else!",
    "show",
    "fixed_one!",
    "same!",
    "show",
    "other_one!",
    "state",
    "calls.0",
    "last!",
    "state",
];

fn tables() -> Tables<'static> {
    let entry = |name: &&'static str| Entry { name: name.trim_end_matches('!'), global: name.ends_with('!') };
    let own = vec![Entry { name: "tune", global: false }, Entry { name: "level", global: false }];
    Tables { kernel: KERNEL.iter().map(entry).collect(), modules: [("small".to_owned(), own)].into() }
}

fn small() -> SmallKernel {
    let kernel = SmallKernel::new(RELEASE);
    kernel.put("source/sub/unit.c", UNIT);
    kernel.put("source/sub/other.c", OTHER);
    kernel.put("source/include/common.h", "#define NAME \"old\"\n");
    kernel
}

/// What comes of a fix: in each file, one text for another. `change` is made to the request.
fn made_with(
    small: &SmallKernel,
    fix: &[(&str, &str, &str)],
    change: impl Fn(&mut Request),
) -> Result<Made, MakeError> {
    let kernel = Kernel::new(&small.headers(), &small.source(), None)?;
    assert_eq!((kernel.compiler.as_str(), kernel.release()?.as_str()), ("gcc", RELEASE));
    let changes = changes(&small.source(), &small.fix(fix))?;
    let mut request = Request {
        module: "lucos_unit".into(),
        units: Vec::new(),
        changes,
        functions: Vec::new(),
        leave: Vec::new(),
        stubs: false,
    };
    change(&mut request);
    make(&kernel, &tables(), &request)
}

fn made(fix: &[(&str, &str, &str)]) -> Result<Made, MakeError> {
    made_with(&small(), fix, |_| {})
}

fn place(name: &str, position: u32) -> Symbol {
    Symbol { name: name.into(), object: None, position }
}

fn import(name: &str, position: u32) -> Import {
    Import { name: name.into(), source: place(name, position) }
}

fn replaced(name: &str, position: u32) -> Replacement {
    Replacement { old: place(name, position), new: format!("lucos_{name}") }
}

const FIX: (&str, &str, &str) = ("sub/unit.c", "state += i;", "if (i < 0)\n\t\treturn;\n\tstate += i;");

#[test]
fn a_module_is_made_of_a_fixed_function() {
    let made = made(&[FIX]).unwrap();
    assert_eq!(made.functions, [replaced("fixed_one", 0)]);
    // Two files have a `state`; the data of this one begins with the first.
    assert_eq!(made.symbols, [import("state", 1)]);
    assert_eq!(made.warnings, ["vmlinux.o: warning: objtool: something to read"]);
    // Text is as it would be in the kernel, and the namespace of what is exported is imported.
    assert!(holds(&made.module, "sub/unit.c\0") && holds(&made.module, "imported_SPACE"));
    assert_eq!(made.along, [""; 0]);
    let module = Module::read(&made.module).unwrap();
    assert_eq!((module.name(), module.release()), ("lucos_unit", RELEASE));
    assert_eq!(module.undefined().len(), 2, "{:?}", module.undefined());
}

#[test]
fn the_same_fix_gives_the_same_module() {
    let [first, second] = [FIX, FIX].map(|fix| made(&[fix]).unwrap().module);
    assert!(holds(&first, "GNU") && first == second);
}

#[test]
fn one_of_several_functions_is_told_by_its_neighbours() {
    // Which of three is meant: the one before `fixed_one`, and the one before `other_one`.
    let unit = made(&[("sub/unit.c", "state -= i;", "state -= i + 1;")]).unwrap();
    assert_eq!(unit.functions, [replaced("show", 2)]);
    let other = made(&[("sub/other.c", "last = i;", "last = i + 1;")]).unwrap();
    assert_eq!(other.functions, [replaced("show", 3)]);
}

#[test]
fn one_module_has_functions_of_several_files() {
    let other = ("sub/other.c", "last++;", "last += 2;");
    let both = made(&[FIX, other]).unwrap();
    assert_eq!(both.functions, [replaced("other_one", 0), replaced("fixed_one", 0)]);
    assert_eq!(both.symbols, [import("last", 0), import("show", 3), import("state", 1)]);
    // One name, two functions: which is replaced by which could not be told.
    let shows =
        [("sub/unit.c", "state -= i;", "state -= i + 1;"), ("sub/other.c", "last = i;", "last = i + 1;")];
    let said = made(&shows).unwrap_err();
    assert!(matches!(&said, MakeError::Several { name, .. } if name == "show"), "{said}");
    // One name, two functions that are the kernel's.
    let callers = [("sub/unit.c", "show(1);", "show(2);"), other];
    let said = made(&callers).unwrap_err();
    assert!(matches!(&said, MakeError::TwoMeanings { name, .. } if name == "show"), "{said}");
}

#[test]
fn what_one_file_adds_another_can_call() {
    let caller = ("sub/unit.c", "state += i;", "extern int added(int);\n\tstate += added(i);");
    let body = "int added(int i)\n{\n\treturn last * i;\n}\nvoid other_one(int i)";
    let made_of = |body: &str| made(&[caller, ("sub/other.c", "void other_one(int i)", body)]);
    let made_both = made_of(body).unwrap();
    assert_eq!(made_both.functions, [replaced("fixed_one", 0)]);
    assert_eq!(made_both.symbols, [import("last", 0), import("state", 1)]);
    assert_eq!(made_both.along, ["added"]);
    // No file adds it, or one that is not for others.
    for said in [made(&[caller]).unwrap_err(), made_of(&format!("static {body}")).unwrap_err()] {
        let is_said =
            matches!(&said, MakeError::NotInKernel { name, unit } if name == "added" && unit == "sub/unit.c");
        assert!(is_said, "{said}");
    }
}

#[test]
fn what_another_file_calls_its_own_is_not_what_one_adds() {
    let caller = ("sub/unit.c", "state += i;", "extern int show2(int);\n\tstate += show2(i);");
    let body = "int show2(int i)\n{\n\treturn last * i;\n}\nvoid other_one(int i)";
    let small = small();
    small.put(
        "source/sub/third.c",
        "extern void exported(const char *);\n\
        __attribute__((noipa)) static void show2(int i)\n{\n\texported(\"a\");\n\texported(\"b\");\n}\n\
        void same(void)\n{\n\tshow2(1);\n\tshow2(2);\n}\n",
    );
    let fix =
        [caller, ("sub/other.c", "void other_one(int i)", body), ("sub/third.c", "show2(1);", "show2(4);")];
    let said = made_with(&small, &fix, |_| {}).unwrap_err();
    assert!(matches!(&said, MakeError::TwoMeanings { name, .. } if name == "show2"), "{said}");
}

#[test]
fn a_changed_header_is_what_the_compiler_reads() {
    let header = ("include/common.h", "old", "new");
    let unit = |request: &mut Request| request.units = vec!["sub/unit.c".into()];
    let made_new = made_with(&small(), &[header], unit).unwrap();
    assert!(holds(&made_new.module, "new\0"));
    assert_eq!(made_new.functions, [replaced("same", 0), replaced("show", 2)]);
    let said = made(&[header]).unwrap_err();
    assert!(matches!(said, MakeError::NoUnit), "{said}");

    let small = small();
    small.put("source/include/other.h", "int other;\n");
    let said = made_with(&small, &[("include/other.h", "int", "long"), FIX], |_| {}).unwrap_err();
    assert!(matches!(&said, MakeError::NotRead { path, .. } if path == "include/other.h"), "{said}");
    // A file that another includes is compiled with that.
    small.put("source/sub/whole.c", "#include \"unit.c\"\n");
    let whole = |request: &mut Request| request.units = vec!["sub/whole.c".into()];
    assert_eq!(made_with(&small, &[FIX], whole).unwrap().functions, [replaced("fixed_one", 0)]);
}

#[test]
fn a_part_of_a_module_needs_its_symbols() {
    let small = small();
    let text = "static int level;\n__attribute__((used, noipa)) static int tune(int i)\n{\n\treturn level += i;\n}\n";
    small.put("source/drivers/tune.c", text);
    let fix = ("drivers/tune.c", "level += i", "level -= i");
    let made = made_with(&small, &[fix], |_| {}).unwrap();
    let symbol = |name: &str| Symbol { object: Some("small".into()), ..place(name, 0) };
    assert_eq!(made.functions[0].old, symbol("tune"));
    assert_eq!(made.symbols[0].source, symbol("level"));

    let kernel = Kernel::new(&small.headers(), &small.source(), Some("gcc")).unwrap();
    let changes = changes(&small.source(), &small.path("fix.patch")).unwrap();
    let request = Request {
        module: "m".into(),
        units: Vec::new(),
        changes,
        functions: Vec::new(),
        leave: Vec::new(),
        stubs: false,
    };
    let none = Tables { modules: [].into(), ..tables() };
    let said = make(&kernel, &none, &request).unwrap_err();
    assert!(matches!(&said, MakeError::NoModule { module, .. } if module == "small"), "{said}");
}

#[test]
fn what_cannot_be_made_is_told() {
    let refusal =
        |fix, change: &dyn Fn(&mut Request)| made_with(&small(), &[fix], change).unwrap_err().to_string();
    let said = refusal(("sub/unit.c", "state += i;", "nonsense;"), &|_| {});
    assert!(said.contains("cannot compile sub/unit.c") && said.contains("nonsense"), "{said}");
    let said = refusal(("sub/unit.c", "state += i;", "/* twice */ state += i;"), &|_| {});
    assert!(said.contains("changes no function at all"), "{said}");
    let small_state = ("sub/unit.c", "static int state;", "static int state = 5;");
    let said = refusal(small_state, &|_| {});
    assert!(said.contains("`state` has in it from the start"), "{said}");
    let said = refusal(FIX, &|request| request.functions = vec!["nothing".into()]);
    assert!(said.contains("`nothing` has no code of its own") && said.contains("`fixed_one`"), "{said}");
    for module in ["", "Upper", "a-b", &"a".repeat(56)] {
        let said = refusal(FIX, &|request| request.module = module.into());
        assert!(said.contains("no name for a module"), "{said}");
    }
    for unit in ["/etc/passwd", "../x.c", "", "sub/unit.h"] {
        let said = refusal(FIX, &|request| request.units = vec![unit.into()]);
        assert!(said.contains("no name for"), "{unit}: {said}");
    }
    let said = refusal(FIX, &|request| request.units = vec!["sub/unit.S".into()]);
    assert!(said.contains("is assembly"), "{said}");
    let said = refusal(FIX, &|request| request.functions = vec!["f".into(); 257]);
    assert!(said.contains("257 functions: 256 is the limit"), "{said}");

    let small = small();
    small.put(
        "source/Makefile",
        "VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 170\n%.s: %.c\n\techo nothing to do\n",
    );
    let said = made_with(&small, &[FIX], |_| {}).unwrap_err().to_string();
    assert!(said.contains("does not compile sub/unit.c") && said.contains("with --unit"), "{said}");
    small.put("source/Makefile", "VERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 192\n");
    let said = made_with(&small, &[FIX], |_| {}).unwrap_err().to_string();
    assert!(said.contains("is 6.1.192, and the headers") && said.contains("are 6.1.170"), "{said}");
    small.put("source/Makefile", "");
    let said = made_with(&small, &[FIX], |_| {}).unwrap_err().to_string();
    assert!(said.contains("Makefile has no version of a kernel"), "{said}");
}

#[test]
fn a_realtime_kernel_is_not_compiled_of_the_source_of_others() {
    let small = small();
    let kernel = |release: &str| {
        let utsrelease = format!("#define UTS_RELEASE \"{release}\"\n");
        small.put("headers/include/generated/utsrelease.h", &utsrelease);
        let kernel = Kernel::new(&small.headers(), &small.source(), None);
        kernel.map(|kernel| kernel.release().unwrap()).map_err(|error| error.to_string())
    };
    let realtime = ["6.1.0-1-rt-amd64", "6.1.170-rt58"];
    for release in realtime {
        let said = kernel(release).unwrap_err();
        assert!(said.contains(&format!("{release} is a realtime kernel")), "{said}");
        assert!(said.contains("no localversion-rt") && said.contains("debian/patches-rt"), "{said}");
    }
    // A word that only begins or ends like that is another one.
    for other in [RELEASE, "6.1.0-1-rtx-smart", "6.1.170"] {
        assert_eq!(kernel(other).unwrap(), other);
    }
    small.put("source/localversion-rt", "-rt58\n");
    for release in realtime {
        assert_eq!(kernel(release).unwrap(), release);
    }
}
