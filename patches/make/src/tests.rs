//! What goes into a module, and what does not, on small files that gcc compiles here.

mod tables;

use crate::listing::{Listing, Piece};
use crate::statement::names;
use crate::testing::Fix;
use tables::{TABLES, two_functions};

#[test]
fn data_is_the_kernels_and_literals_are_our_own() {
    let text = |more: &str| {
        format!(
            "extern void say(const char *, const char *);\n\
             static int lock; static const int ops[3] = {{1, 2, 3}}; int shown;\n\
             const int *kept(int i) {{ static int calls = 4; calls++; lock++; shown++; {more}\n\
             say(__func__, \"literal\"); return ops + i; }}\n\
             int other(void) {{ return lock; }}\n"
        )
    };
    let object = Fix::new(&text(""), &text("say(\"new\", \"literal\");")).object(&["kept"], &[]);
    assert_eq!(object.undefined(), ["calls.1", "lock", "ops", "say", "shown"]);
    assert!(object.defined().contains(&"__func__.0".to_owned()), "{:?}", object.defined());
    assert!(object.section(".rodata.str1.1").windows(8).any(|bytes| bytes == b"literal\0"));
}

#[test]
fn texts_and_what_messages_need_come_along() {
    let text = |what: &str, more: &str| {
        format!(
            "extern void say(const void *); static const char name[] = \"{what}\"; static const int other[] = {{ 3, 4 }};\n\
             static int __attribute__((section(\"__dyndbg\"))) descriptor = 1; static int __already_done;\n\
             void kept(void) {{ say(name); say(other); say(&descriptor); say(&__already_done); {more} }}"
        )
    };
    let object = Fix::new(&text("a", ""), &text("a", "say(0);")).object(&["kept"], &[]);
    assert_eq!(object.undefined(), ["other", "say"]);
    // A changed text is a change of the code that it stands in.
    let fix = Fix::new(&text("a", ""), &text("b", ""));
    assert_eq!((&*fix.changes.functions, fix.changes.data.len()), (&["kept".to_owned()][..], 0));
}

#[test]
fn a_static_object_keeps_the_name_that_the_kernel_has_for_it() {
    let text = |more: &str| {
        format!(
            "extern void say(const char *);\n\
             int one(void) {{ {more} static int calls; return calls += 2; }}\n\
             int kept(void) {{ {more} static int calls; return calls++; }}\n\
             int two(void) {{ {more} static int calls; return calls += 3; }}\n"
        )
    };
    let fix = Fix::new(&text(""), &text("static const char k[] = \"k\"; say(k); say(__func__);"));
    let name = |piece: &Piece| {
        piece
            .lines
            .iter()
            .flat_map(|line| names(line))
            .find(|name| name.text.starts_with("calls"))
            .unwrap()
            .text
            .to_owned()
    };
    let [original, fixed] = [&fix.original, &fix.fixed].map(|listing| name(listing.piece("kept").unwrap()));
    assert_ne!(original, fixed, "gcc numbers it as before, which tests nothing");
    assert!(fix.object(&["kept"], &["one", "two"]).undefined().contains(&original));
}

#[test]
fn one_of_several_static_objects_must_be_told() {
    let (one, two) = ("static int calls; calls++;", "{ static int calls; calls += 3; }");
    let text = |body: &str| format!("int kept(void) {{ {body} return 0; }}");
    let fix = Fix::new(&text(one), &text(&format!("{one} {two}")));
    let said = fix.refusal(&["kept"]);
    assert!(said.contains("which of the original's `calls`") && said.contains("`kept`"), "{said}");
}

#[test]
fn functions_that_the_kernel_lacks_come_along_and_others_do_not() {
    let text = |more: &str, body: &str| {
        format!(
            "extern void say(int); __attribute__((noinline)) static void old(int i) {{ say(i); say(i); }}\n\
             {more} void kept(int i) {{ old(i); {body} }}"
        )
    };
    let added = "__attribute__((noinline)) static void added(int i) { say(i); say(9); }";
    let object = Fix::new(&text("", ""), &text(added, "added(i);")).object(&["kept"], &[]);
    assert_eq!(object.undefined(), ["old", "say"]);
    let defined = object.defined();
    assert!(
        defined.contains(&"added".to_owned()) && defined.contains(&"lucos_kept".to_owned()),
        "{defined:?}"
    );
}

#[test]
fn variants_that_gcc_makes_come_along() {
    let text = |body: &str| {
        format!(
            "extern void say(int); static int state;\n\
             __attribute__((noinline)) static int variant(int a, int b) {{ say(a); state += b; say(b); return a; }}\n\
             int kept(int i) {{ {body} return variant(i, 7); }} int other(int i) {{ return variant(i, 7); }}"
        )
    };
    let object = Fix::new(&text(""), &text("say(2);")).object(&["kept"], &[]);
    assert!(
        object.defined().iter().any(|name| name.starts_with("lucos_variant.constprop.")),
        "{:?}",
        object.defined()
    );
    assert_eq!(object.undefined(), ["say", "state"]);
}

#[test]
fn a_changed_variant_must_be_taken_by_all_its_callers() {
    let text = |inner: &str| {
        format!(
            "extern void say(int);\n\
             __attribute__((noinline)) static int variant(int a, int b) {{ {inner} say(a); say(b); return a; }}\n\
             int kept(int i) {{ return variant(i, 7) + 1; }} int other(int i) {{ return variant(i, 7); }}"
        )
    };
    let fix = Fix::new(&text(""), &text("say(2);"));
    assert!(fix.refusal(&["kept"]).contains("`variant.constprop.0`"));
    assert!(fix.select(&["kept", "other"], &[]).is_ok());
    assert!(fix.refusal(&["variant.constprop.0"]).contains("name those callers"));
}

#[test]
fn the_unlikely_part_belongs_to_its_function() {
    let text = |body: &str| {
        format!(
            "extern void say(int); extern void bad(int) __attribute__((cold));\n\
             int kept(int i) {{ {body} if (i < 0) {{ bad(4); return 0; }} say(i); return i; }}\n\
             int other(int i) {{ if (i < 2) {{ bad(5); return 0; }} say(i); return i; }}\n"
        )
    };
    let object = Fix::new(&text(""), &text("say(2);")).object(&["kept"], &[]);
    assert!(object.defined().contains(&"lucos_kept.cold".to_owned()), "{:?}", object.defined());
    assert!(!object.section(".text.unlikely").is_empty());
    assert_eq!(object.undefined(), ["bad", "say"]);
}

#[test]
fn a_stored_address_is_that_of_the_kernels_own_function() {
    let text = |body: &str| {
        format!(
            "extern void later(void (*)(int)); extern void say(int); void kept(int i) {{ {body} if (i) {{ kept(i - 1); say(i); }}\n\
             else later(kept); }}"
        )
    };
    let object = Fix::new(&text(""), &text("say(2);")).object(&["kept"], &[]);
    assert!(object.undefined().contains(&"kept".to_owned()), "{:?}", object.undefined());
    assert!(
        object.assembly.contains("$kept, %") && !object.assembly.contains("call\tkept"),
        "{}",
        object.assembly
    );
}

#[test]
fn a_table_of_places_comes_with_its_function() {
    let text = |body: &str| {
        format!(
            "extern void say(int); int kept(int i) {{ static void *const places[] = {{ &&a, &&b }}; {body}\n\
             goto *places[i]; a: say(1); return 1; b: say(2); return 2; }}"
        )
    };
    let object = Fix::new(&text(""), &text("say(3);")).object(&["kept"], &[]);
    assert_eq!(object.undefined(), ["say"]);
    assert_eq!(object.relocations(".rodata").len(), 2);
}

#[test]
fn functions_that_share_a_section_are_divided() {
    let text = |body: &str| {
        format!(
            "extern void say(int);\n\
             __attribute__((section(\".sched.text\"), noinline)) void first(int i) {{ say(i); say(1); }}\n\
             __attribute__((section(\".sched.text\"), noinline)) void kept(int i) {{ {body} first(i); say(2); }}\n\
             __attribute__((section(\".sched.text\"), noinline)) void last(int i) {{ kept(i); say(3); }}"
        )
    };
    let object = Fix::new(&text(""), &text("say(9);")).object(&["kept"], &[]);
    assert_eq!(object.undefined(), ["first", "say"]);
    assert!(!object.section(".sched.text").is_empty());
}

#[test]
fn static_calls_are_found_by_their_keys() {
    let text = |body: &str| {
        format!(
            "extern void __SCT__act(int); extern void say(int); void kept(int i) {{ {body} __SCT__act(i); say(i); }}"
        )
    };
    let object = Fix::new(&text(""), &text("say(9);")).object(&["kept"], &[]);
    assert_eq!(object.undefined(), ["__SCK__act", "__SCT__act", "say"]);
    // The kernel finds the key of a call that it exports without one.
    let mut fix = Fix::new(&text(""), &text("say(9);"));
    fix.exported = crate::symvers::Symvers::parse("0x1\t__SCT__act\tvmlinux\tEXPORT_SYMBOL\t\n");
    assert_eq!(fix.object(&["kept"], &[]).undefined(), ["__SCT__act", "say"]);
}

#[test]
fn what_must_not_be_probed_stays_so() {
    let text = |body: &str| {
        format!(
            "extern void say(int); void kept(int i) {{ {body} say(i); }} void other(int i) {{ say(i + 1); }}\n\
             static unsigned long __attribute__((used, section(\"_kprobe_blacklist\"))) _kbl_addr_kept = (unsigned long)kept;\n\
             static unsigned long __attribute__((used, section(\"_kprobe_blacklist\"))) _kbl_addr_other = (unsigned long)other;\n"
        )
    };
    let object = Fix::new(&text(""), &text("say(9);")).object(&["kept"], &[]);
    assert_eq!(object.section("_kprobe_blacklist").len(), 8);
    assert_eq!(object.relocations("_kprobe_blacklist"), [(0, ".text".to_owned())]);
}

#[test]
fn names_that_would_lead_elsewhere_are_changed() {
    let text = |body: &str| {
        format!(
            "struct m {{ int x; }}; extern struct m __this_module; extern void say(int);\n\
             __attribute__((noinline)) static void local(int i) {{ say(i); say(i); }}\n\
             void kept(int i) {{ {body} __this_module.x = i; local(i); }}"
        )
    };
    let mut fix = Fix::new(&text(""), &text("say(9);"));
    fix.exported = crate::symvers::Symvers::parse("0x1\tlocal\tvmlinux\tEXPORT_SYMBOL\t\n");
    let selection = fix.select(&["kept"], &[]).unwrap();
    assert_eq!(
        fix.object(&["kept"], &[]).undefined(),
        ["lucos_kernel___this_module", "lucos_kernel_local", "say"]
    );
    assert_eq!(selection.source("lucos_kernel_local"), "local");
    assert_eq!(selection.source("lucos_kernel___this_module"), "__this_module");
    assert_eq!(selection.source("say"), "say");
}

#[test]
fn what_is_no_change_of_code_is_refused() {
    let text =
        |data: &str, body: &str| format!("{data} extern void say(int *); void kept(void) {{ {body} }}");
    let refusal = |old: &str, new: &str, body: &str| {
        Fix::new(&text(old, "say(table);"), &text(new, body)).refusal(&["kept"])
    };
    let said = refusal("int table[2] = {1, 2};", "int table[2] = {1, 3};", "say(table); say(table);");
    assert!(said.contains("`table`") && said.contains("from the start"), "{said}");
    let old = "int table[2] = {1, 2};";
    let said = refusal(old, &format!("{old} int more;"), "say(table); say(&more);");
    assert!(said.contains("adds data") && said.contains("`more`"), "{said}");
    // A new table that is only read is a part of the code.
    let fix = Fix::new(
        &text(old, "say(table);"),
        &text(&format!("{old} extern const int more[]; const int more[] = {{5, 6}};"), "say((int *)more);"),
    );
    assert_eq!(fix.object(&["kept"], &[]).undefined(), ["say"]);
}

#[test]
fn names_that_are_no_functions_to_replace_are_refused() {
    let text = |inner: &str, more: &str| {
        format!(
            "extern void say(int); static inline void inlined(int i) {{ say(i); {inner} }}\n\
             void caller(int i) {{ inlined(i); }} void same(int i) {{ say(i); }}\n\
             __attribute__((section(\".init.text\"))) void starts(int i) {{ say(i); {inner} }}\n\
             __attribute__((section(\".entry.text\"))) void enters(int i) {{ say(i); {inner} }}\n\
             void second(int i) __attribute__((alias(\"caller\"))); {more}"
        )
    };
    let fix = Fix::new(&text("", ""), &text("say(3);", "void fresh(int i) { say(i); }"));
    for (name, reason) in [
        (
            "inlined",
            "gcc puts it into its callers, so name those with --function; by what gcc makes of it, the fix changes `caller`",
        ),
        ("nothing", "no code of its own"),
        ("same", "does not change `same`"),
        ("starts", ".init.text, which serves only while"),
        ("enters", "on the way into the kernel"),
        ("second", "another name of `caller`"),
        ("fresh", "not in the original"),
    ] {
        let said = fix.refusal(&[name]);
        assert!(said.contains(reason), "{name}: {said}");
    }
    let said = fix.refusal(&["caller"]);
    assert!(said.contains("as well") && said.contains("`starts`") && said.contains("`enters`"), "{said}");
    assert!(fix.select(&["caller"], &["starts", "enters"]).is_ok());
}

#[test]
fn without_a_fix_functions_are_compiled_as_they_are() {
    let text = "extern int say(int); static int count; int one(int i) { return say(i) + count++; }\n\
                int other(int i) { return say(i + 1) + count++; }";
    let none = Fix::none(text);
    let file = none.object(&["one"], &[]);
    assert!(file.defined().contains(&"lucos_one".to_owned()), "{:?}", file.defined());
    assert!(!file.assembly.contains("other"), "{}", file.assembly);
    assert_eq!(file.undefined(), ["count", "say"]);
    assert!(none.refusal(&["nothing"]).contains("no code of its own"));
    assert!(Fix::new(text, text).refusal(&["one"]).contains("does not change `one`"));
}

#[test]
fn code_that_is_thrown_away_cannot_be_referred_to() {
    let text = |body: &str| {
        format!(
            "extern void say(int *); static int __attribute__((section(\".init.data\"))) early = 3;\n\
             __attribute__((section(\".init.text\"), noinline)) static void start(void) {{ say(&early); say(&early); }}\n\
             void kept(int i) {{ if (i) start(); {body} }}"
        )
    };
    let said = Fix::new(&text(""), &text("say(&early);")).refusal(&["kept"]);
    assert!(said.contains(".init.") && said.contains("`kept` refers to it"), "{said}");
}

#[test]
fn the_same_text_has_no_changes() {
    let text = "extern void say(const char *); static int n;\n\
                void a(int i) { static int n; n++; if (i > 3) say(\"x\"); else say(\"y\"); }\n\
                int b(void) { static int n; return n++; } int c(void) { return n; }";
    // Another literal in front gives every later one another label, and every static object another number.
    let moved = format!(
        "extern void s(const char *); void z(void) {{ static int q = 4; q++; s(\"w\"); s(__func__); }}\n{text}"
    );
    let fix = Fix::new(text, &moved);
    assert!(fix.changes.functions.is_empty() && fix.changes.data.is_empty(), "{:?}", fix.changes);
    assert_eq!(fix.changes.new_functions, ["z"]);
    assert_eq!(fix.changes.new_data.len(), 1);
}

#[test]
fn a_line_that_is_not_understood_is_told() {
    for (text, why) in [
        ("\t.text\n\tincl %eax\n", "belongs to nothing"),
        ("\t.text\nf:\n", "without a type"),
        ("\t.type\tf, @common\n", "do not have"),
        ("\t.set\tf\n", "alias of nothing"),
    ] {
        let said = Listing::parse(text).unwrap_err().to_string();
        assert!(said.contains(why) && said.starts_with("line "), "{said}");
    }
}

#[test]
fn a_listing_with_lines_missing_is_no_trouble() {
    let text = two_functions(TABLES[2].1, true)
        + "static int n = 3; int *p(void) { static int s; return s++ ? &n : &s; }";
    let whole = Fix::new(&text, &text).assembly;
    let lines: Vec<&str> = whole.lines().collect();
    for gone in 0..lines.len() {
        for len in 1..8 {
            let rest = lines[..gone].iter().chain(lines.iter().skip(gone + len)).copied();
            let _ = Listing::parse(&rest.collect::<Vec<_>>().join("\n"));
        }
    }
}
