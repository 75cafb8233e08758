//! Sections with an entry for each place in a function: a module has those of its own functions.

use crate::testing::Fix;

/// Each section that inline assembly of the kernel's adds to, by a statement that does it as the kernel's macros do; how
/// long an entry is; where in it the function's own code is referred to.
pub(super) const TABLES: [(&str, &str, usize, u64); 9] = [
    (
        "__bug_table",
        r#"asm volatile("1: ud2\n.pushsection __bug_table,\"aw\"\n2: .long 1b - .\n.long 0\n.word 7\n.word 0\n.popsection");"#,
        12,
        0,
    ),
    (
        "__ex_table",
        r#"asm volatile("1: nop\n3:\n.pushsection __ex_table,\"a\"\n.balign 4\n.long (1b) - .\n.long (3b) - .\n.long 3\n.popsection");"#,
        12,
        0,
    ),
    (
        ".altinstructions",
        r#"asm volatile("661: nop; nop; nop; nop; nop\n662:\n.pushsection .altinstructions,\"a\"\n.long 661b - .\n.long 6641f - .\n.word 9\n.byte 662b-661b\n.byte 6651f-6641f\n.popsection\n.pushsection .altinstr_replacement,\"ax\"\n6641: call helper\n6651:\n.popsection");"#,
        12,
        0,
    ),
    (
        ".altinstr_replacement",
        r#"asm volatile("661: nop\n662:\n.pushsection .altinstr_replacement,\"ax\"\njmp 662b\n.popsection");"#,
        5,
        1,
    ),
    (
        "__jump_table",
        r#"asm goto("1: .byte 0x0f,0x1f,0x44,0,0\n.pushsection __jump_table,\"aw\"\n.balign 8\n.long 1b - ., %l[out] - .\n.quad %c0 - .\n.popsection" :: "i"(&key) :: out); out:"#,
        16,
        0,
    ),
    (
        ".smp_locks",
        r#"asm volatile(".pushsection .smp_locks,\"a\"\n.balign 4\n.long 671f - .\n.popsection\n671:\n\tlock; incl %0" : "+m"(count));"#,
        4,
        0,
    ),
    (
        ".parainstructions",
        r#"asm volatile("771: nop\n772:\n.pushsection .parainstructions,\"a\"\n.balign 8\n.quad 771b\n.byte 1\n.byte 772b-771b\n.balign 8\n.popsection");"#,
        16,
        0,
    ),
    (
        ".altinstr_aux",
        r#"asm goto("jmp 6f\n.pushsection .altinstr_aux,\"ax\"\n6: testb $1, %0\njmp %l[out]\n.popsection" :: "m"(count) :: out); out:"#,
        12,
        8,
    ),
    (
        ".discard.reachable",
        r#"asm volatile("1:\n.pushsection .discard.reachable\n.long 1b - .\n.popsection");"#,
        4,
        0,
    ),
];

pub(super) fn two_functions(statement: &str, fixed: bool) -> String {
    let more = if fixed { "count = 5;" } else { "" };
    format!(
        "int count; int key; void kept(void) {{ {statement} ; {more} }}\n\
         void other(void) {{ {statement} ; }}\n\
         void third(void) {{ {statement} ; }}\n"
    )
}

#[test]
fn tables_have_the_entries_of_what_is_kept() {
    for (section, statement, entry, place) in TABLES {
        let fix = Fix::new(&two_functions(statement, false), &two_functions(statement, true));
        let all: usize = fix.fixed.pieces().filter(|piece| piece.lines.join("").contains(section)).count();
        assert_eq!(all, 3, "{section} of every function");
        let object = fix.object(&["kept"], &[]);
        assert_eq!(object.section(section).len(), entry, "{section}: {}", object.assembly);
        let relocations = object.relocations(section);
        assert!(relocations.contains(&(place, ".text".to_owned())), "{section}: {relocations:?}");
        assert!(!object.defined().contains(&"other".to_owned()));
    }
}

#[test]
fn entries_for_tracers_are_those_of_what_is_kept() {
    let text = |more: &str| format!("int n; void kept(void) {{ n++; {more} }} void other(void) {{ n--; }}");
    let flags = ["-pg", "-mfentry", "-mrecord-mcount", "-fpatchable-function-entry=16,16"];
    let fix = Fix::with(&text(""), &text("n *= 3;"), &flags);
    let object = fix.object(&["kept"], &[]);
    assert_eq!(object.section("__mcount_loc").len(), 8);
    assert_eq!(object.relocations("__mcount_loc"), [(0, ".text".to_owned())]);
    // The nops in front of the function are there, and the list that would name the other one is not.
    assert!(object.section(".text").starts_with(&[0x90; 16]));
    assert!(object.section("__patchable_function_entries").is_empty());
}
