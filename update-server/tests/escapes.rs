//! Modules that hand out an address of themselves, and modules that do not, built by the machine's compiler.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::process::Command;

use update_server::phases::escape::Stays;
use update_server::phases::patch_module::PatchModule;

/// What every module has: it pins itself, and can be unloaded.
const SKELETON: &str = r#"
struct module { void (*init)(void), (*exit)(void); };
extern void __module_get(struct module *);
int init_module(void); void cleanup_module(void);
__attribute__((section(".gnu.linkonce.this_module"))) struct module __this_module = { (void *)init_module, cleanup_module };
__attribute__((section(".init.text"))) int init_module(void) { __module_get(&__this_module); return 0; }
"#;
const EXIT: &str = r#"
__attribute__((section(".exit.text"))) void cleanup_module(void) {}
__attribute__((section(".exit.data"), used)) static void *kept = cleanup_module;
"#;
/// What the cases use.
const OUTSIDE: &str = r"
extern int outside(const void *), seq_puts(void *, const char *), _printk(const char *, ...);
extern void *memcpy(void *, const void *, unsigned long);
extern void *somewhere;
struct error { const char *text; };
int new_one(int x);
";

fn compile(source: &str) -> PatchModule {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("module.c"), source).unwrap();
    let flags = "-O2 -c -mcmodel=kernel -fno-pic -fno-asynchronous-unwind-tables -fcf-protection=none -mno-sse \
                 -fno-jump-tables -fno-builtin -fno-stack-protector -fno-common -w";
    let mut cc = Command::new("cc");
    cc.args(flags.split_whitespace()).args(["module.c", "-o", "module.o"]).current_dir(folder.path());
    let output = cc.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PatchModule::read(&fs::read(folder.path().join("module.o")).unwrap()).unwrap()
}

fn stays(code: &str) -> Option<Stays> {
    compile(&[SKELETON, EXIT, OUTSIDE, code].concat()).stays()
}

/// Each hands out nothing.
#[test]
fn a_module_that_keeps_its_addresses_to_itself_can_go() {
    let cases = [
        (
            "calls",
            "static __attribute__((noinline)) int own(int x) { return outside(somewhere) + x; } int new_one(int x) { return own(x) + own(x + 1); }",
        ),
        (
            "a string for a function that forgets it",
            r#"int new_one(int x) { seq_puts(somewhere, "text"); return x; }"#,
        ),
        ("at the end", r#"int new_one(int x) { return _printk("text %d", x); }"#),
        (
            "a copy",
            "static const char bytes[64] = { 1, 2 }; int new_one(int x) { memcpy(somewhere, bytes, 64); return x; }",
        ),
        (
            "data in place",
            "static int count; static const int table[4] = { 1, 2, 3, 9 }; int new_one(int x) { count += x; return table[x & 3] + count; }",
        ),
        (
            "one of two strings",
            r#"int new_one(int x) { seq_puts(somewhere, x > 7 ? "one" : "two"); return x; }"#,
        ),
        (
            "a loop over data",
            r"static const int table[9] = { 1, 2, 3, 9 }; int new_one(int x) { const int *at; for (at = table; at < table + 9; at++) x += outside(0) * *at; return x; }",
        ),
        (
            "where it is, for people",
            "extern void __local_bh_enable_ip(unsigned long, unsigned int); int new_one(int x) { here: __local_bh_enable_ip((unsigned long)&&here, 512); return x; }",
        ),
        (
            "an IRET to the next instruction",
            r#"int new_one(int x) { asm volatile("push $1f\niretq\n1:"); return x; }"#,
        ),
        (
            "a table of the loader",
            r#"int new_one(int x) { return x; } asm(".section __bug_table,\"aw\"\n.long new_one - .\n.previous");"#,
        ),
    ];
    for (name, code) in cases {
        assert_eq!(stays(code), None, "{name}");
    }
}

/// Each hands out an address: of what, and where.
#[test]
fn whoever_hands_out_an_address_is_named() {
    let own = "static __attribute__((noinline)) int own(int x) { return x * outside(somewhere); } ";
    let text = "static const char text[] = \"text\"; ";
    let cases = [
        ("a function to a function", own, "int new_one(int x) { return outside(own); }", "own", "new_one"),
        ("a function to data", own, "int new_one(int x) { somewhere = own; return x; }", "own", "new_one"),
        ("itself", "", "int new_one(int x) { return outside(new_one); }", "new_one", "new_one"),
        (
            "a function without a relocation",
            "",
            "int new_one(int x) { void *at; asm(\"lea new_one(%%rip), %0\" : \"=r\"(at)); return outside(at); }",
            "new_one",
            "new_one",
        ),
        (
            "a string to a function that may keep it",
            text,
            "int new_one(int x) { return outside(text); }",
            "text",
            "new_one",
        ),
        (
            "a string to its caller's data",
            text,
            "int other(struct error *e) { e->text = text; return 1; }",
            "text",
            "other",
        ),
        ("a string to its caller", text, "const char *other(void) { return text; }", "text", "other"),
        (
            "an IRET to elsewhere",
            "",
            "int new_one(int x) { asm volatile(\"push $1f\\niretq\\nnop\\n1:\"); return x; }",
            "new_one+0xa",
            "new_one",
        ),
        (
            "a string where other instructions are put",
            text,
            "int new_one(int x) { asm volatile(\"1: nop\\n.pushsection .altinstr_replacement,\\\"ax\\\"\\n\" \
             \"other: mov $text, %rdi\\n.popsection\"); return x + text[x]; }",
            "text",
            "other",
        ),
        (
            "what a copy returns",
            "static char bytes[64]; ",
            "void *other(void *from) { return memcpy(bytes, from, 64); }",
            "bytes",
            "other",
        ),
        (
            "one of two ways",
            text,
            "int new_one(int x) { const char *t = text; if (outside(0)) somewhere = (void *)t; else seq_puts(0, t); return x; }",
            "text",
            "new_one",
        ),
    ];
    for (name, before, code, what, at) in cases {
        let found = stays(&[before, code].concat());
        let Some(Stays::HandedOut { what: of, at: place }) = &found else { panic!("{name}: {found:?}") };
        assert_eq!(of, what, "{name}");
        assert!(place == at || place.starts_with(&format!("{at}+0x")), "{name}: {place}");
    }
}

#[test]
fn data_that_holds_addresses_is_named_with_them() {
    let own = "static int own(int x) { return x; } ";
    for (code, section) in [
        ("int (*const table[])(int) = { own }; int new_one(int x) { return table[x & 0](x); }", ".rodata"),
        ("int (*table)(int) = own; int new_one(int x) { return table(x); }", ".data"),
        ("int (*table)(int) __attribute__((section(\".unheard.of\"), used)) = own;", ".unheard.of"),
    ] {
        let found = stays(&[own, code].concat());
        let Some(Stays::Kept { what, section: has }) = &found else { panic!("{code}: {found:?}") };
        assert_eq!((&**what, &**has), ("own", section), "{code}");
    }
    // What keeps the exit function from being dropped, and is used all the same.
    let found = stays("void *other(void) { return kept; }");
    assert!(matches!(&found, Some(Stays::Kept { section, .. }) if section == ".exit.data"), "{found:?}");
}

/// A static key between the string and the function that gets it leads to another one.
#[test]
fn ways_that_only_tables_know_are_followed() {
    let key = |to: &str| {
        format!(
            r#"int new_one(int x) {{ asm volatile goto("1: .byte 0x0f,0x1f,0x44,0,0\n"
            ".pushsection __jump_table,\"aw\"\n.long 1b - ., %l[other] - .\n.quad somewhere - .\n.popsection" : : "D"("text") : : other);
            asm volatile("call seq_puts"); return x; other: asm volatile("call {to}"); return 1; }}"#
        )
    };
    assert_eq!(stays(&key("seq_puts")), None);
    let found = stays(&key("outside"));
    assert!(matches!(found, Some(Stays::HandedOut { .. })), "{found:?}");
}

#[test]
fn a_module_that_the_kernel_never_unloads_stays() {
    let module = compile(&[SKELETON, OUTSIDE, "int new_one(int x) { return x; }"].concat());
    assert_eq!(module.stays(), Some(Stays::NoExit));
}

#[test]
fn code_that_is_none_is_not_believed() {
    let found = stays("int new_one(int x) { asm volatile(\".byte 0x06\"); return x; }");
    assert!(matches!(&found, Some(Stays::Unclear { at }) if at.starts_with("new_one")), "{found:?}");
}
