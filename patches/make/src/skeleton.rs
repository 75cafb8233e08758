//! The rest of the module: what the kernel wants of one.

use std::fmt::Write as _;

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

/// The module's own C file. `namespaces` are those of exported symbols that the functions use.
pub(crate) fn main_source(namespaces: &[&str]) -> String {
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
    text
}

/// The module's makefile.
pub(crate) fn kbuild(module: &str, parts: usize) -> String {
    let mut objects = format!("{MAIN}.o");
    for index in 0..parts {
        let _ = write!(objects, " {}.o", part(index));
    }
    format!("obj-m := {module}.o\n{module}-y := {objects}\nccflags-y := -Wa,-I$(src)\n")
}
