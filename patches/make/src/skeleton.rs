//! The rest of the module: what the kernel wants of one.

use std::fmt::Write as _;

use lucos_lup::module::stubs;

/// The file with the module's beginning and end.
pub(crate) const MAIN: &str = "lucos_main";

/// The name of the file number `index`, without its ending: `.s` is what was kept of it, `.c` what the compiler is given.
pub(crate) fn part(index: usize) -> String {
    format!("lucos_part{index}")
}

/// The C file that brings the assembly of part number `index`: so it has the compiler's and objtool's options of the kernel's
/// own files.
pub(crate) fn part_source(index: usize) -> String {
    let part = part(index);
    format!("asm(\".pushsection .text\\n\"\n    \".include \\\"{part}.s\\\"\\n\"\n    \".popsection\\n\");\n")
}

/// The module's own C file. `namespaces` are those of exported symbols that the functions use; `stubs` says whether there is to be
/// room for redirected returns.
pub(crate) fn main_source(namespaces: &[&str], stubs: bool) -> String {
    let mut text = String::from(
        "// SPDX-License-Identifier: GPL-2.0-only\n\
         #include <linux/init.h>\n\
         #include <linux/module.h>\n\
         \n\
         /* Whoever looks from outside knows when nobody is in the functions any more; a count of users in here does not. */\n\
         static int __init lucos_init(void)\n\
         {\n\
         \t__module_get(THIS_MODULE);\n\
         \treturn 0;\n\
         }\n\
         \n\
         static void __exit lucos_exit(void)\n\
         {\n\
         }\n\
         \n\
         module_init(lucos_init);\n\
         module_exit(lucos_exit);\n\
         \n\
         MODULE_LICENSE(\"GPL\");\n\
         MODULE_DESCRIPTION(\"Functions of a live patch\");\n\
         MODULE_INFO(lucos, \"1\");\n",
    );
    for namespace in namespaces {
        let _ = writeln!(text, "MODULE_IMPORT_NS({namespace});");
    }
    if stubs {
        text += &stubs_source();
    }
    text
}

/// The room for redirected returns. Each stub has an entry of the unwind table to itself, which the host fills in with what it says of
/// the frame: so neighbours differ. The UD2 ends the section for objtool, which takes an INT3 for something to go on behind.
fn stubs_source() -> String {
    let [nop, trap, ..] = stubs::EMPTY;
    let (section, count, bytes) = (stubs::SECTION, stubs::COUNT, stubs::BYTES);
    let (even, odd) = (stubs::placeholder(0), stubs::placeholder(1));
    let offset = format!("{even} + lucos_stub % 2 * ({odd} - {even})");
    format!(
        "\n\
         #include <linux/objtool.h>\n\
         #include <asm/orc_types.h>\n\
         /* 6.4 has changed the order of the arguments. */\n\
         #ifdef ORC_TYPE_CALL\n\
         #define LUCOS_HINT UNWIND_HINT(UNWIND_HINT_TYPE_CALL, ORC_REG_SP, {offset}, 0)\n\
         #else\n\
         #define LUCOS_HINT UNWIND_HINT(ORC_REG_SP, {offset}, UNWIND_HINT_TYPE_CALL, 0)\n\
         #endif\n\
         asm(\".pushsection {section}, \\\"ax\\\", @progbits\\n\"\n\
         \t\".balign {bytes}\\n\"\n\
         \t\"lucos_stubs:\\n\"\n\
         \t\".set lucos_stub, 0\\n\"\n\
         \t\".rept {count}\\n\"\n\
         \tLUCOS_HINT\n\
         \t\".byte {nop:#x}\\n\"\n\
         \t\".fill {bytes} - 1, 1, {trap:#x}\\n\"\n\
         \t\".set lucos_stub, lucos_stub + 1\\n\"\n\
         \t\".endr\\n\"\n\
         \tLUCOS_HINT\n\
         \t\"ud2\\n\"\n\
         \t\".size lucos_stubs, . - lucos_stubs\\n\"\n\
         \t\".popsection\\n\");\n"
    )
}

/// The module's makefile.
pub(crate) fn kbuild(module: &str, parts: usize) -> String {
    let mut objects = format!("{MAIN}.o");
    for index in 0..parts {
        let _ = write!(objects, " {}.o", part(index));
    }
    format!("obj-m := {module}.o\n{module}-y := {objects}\nccflags-y := -Wa,-I$(src)\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::File;

    /// What the kernel's headers have: the arguments in the order of 6.1, or as since 6.4. A hint is where it is, and the offset.
    const HINT: &str = "\"987: .pushsection hints\\n.long 987b - .\\n.short \" #offset \"\\n.popsection\\n\"";

    #[test]
    fn stubs_are_as_the_host_wants_them_and_each_has_a_hint() {
        let source = stubs_source();
        let headers = source.lines().filter(|line| line.starts_with("#include")).count();
        assert_eq!(headers, 2);
        let code: String = source
            .lines()
            .filter(|line| !line.starts_with("#include"))
            .flat_map(|line| [line, "\n"])
            .collect();
        let old = format!("#define UNWIND_HINT(base, offset, type, end) {HINT}\n");
        let new =
            format!("#define ORC_TYPE_CALL 2\n#define UNWIND_HINT(type, base, offset, signal) {HINT}\n");
        for macros in [old, new] {
            let file = File::of_c(&format!("{macros}{code}"));
            let bytes = file.section(stubs::SECTION);
            let (all, rest) = bytes.split_at(stubs::COUNT * stubs::BYTES);
            assert!(all.chunks(stubs::BYTES).all(|stub| *stub == stubs::EMPTY));
            assert_eq!(rest, [0x0f, 0x0b]);
            let hints = file.section("hints");
            let offsets = hints.chunks(6).map(|hint| i16::from_le_bytes([hint[4], hint[5]]));
            let expected: Vec<i16> = (0..=stubs::COUNT).map(stubs::placeholder).collect();
            assert_eq!(offsets.collect::<Vec<_>>(), expected);
            let places: Vec<_> = file.relocations("hints").into_iter().map(|(_, to)| to).collect();
            assert_eq!(places, vec![stubs::SECTION; stubs::COUNT + 1]);
        }
        assert!(!main_source(&[], false).contains("stubs"));
    }
}
