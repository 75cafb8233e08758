//! What the kernel does with addresses of a module that it gets: all of it is read in its source, 6.1 and 6.12.

/// Sections that the kernel's loader knows by their names. It uses them while the module is loaded, and forgets them in
/// `delete_module` and `free_module` (`kernel/module/main.c`) or in what these call.
pub(super) const TABLES: [&str; 19] = [
    // Read once, in `module_finalize` (`arch/x86/kernel/module.c`).
    ".altinstructions",
    ".parainstructions",
    ".retpoline_sites",
    ".return_sites",
    ".call_sites",
    ".cfi_sites",
    ".ibt_endbr_seal",
    // `alternatives_smp_module_del` (`arch/x86/kernel/alternative.c`).
    ".smp_locks",
    // Found by the list of modules: `orc_module_find` (`arch/x86/kernel/unwind_orc.c`), `search_module_extables`.
    ".orc_unwind_ip",
    "__ex_table",
    // `module_bug_cleanup` (`lib/bug.c`).
    "__bug_table",
    // `ftrace_release_mod` (`kernel/trace/ftrace.c`).
    "__mcount_loc",
    // `jump_label_del_module` (`kernel/jump_label.c`).
    "__jump_table",
    // `static_call_del_module` (`kernel/static_call_inline.c`).
    ".static_call_sites",
    // `kprobes_module_callback` (`kernel/kprobes.c`).
    "_kprobe_blacklist",
    // `ddebug_remove_module` (`lib/dynamic_debug.c`).
    "__dyndbg",
    // `pi_module_notify` (`kernel/printk/index.c`).
    ".printk_index",
    // The init and the exit function: `struct module` itself, which goes last.
    ".gnu.linkonce.this_module",
    // The same as `.orc_unwind_ip`, with the entries.
    ".orc_unwind",
];

/// Whether a section has nothing that is used, unless the module itself does: it keeps the compiler from dropping functions
/// (`___ADDRESSABLE` in `include/linux/compiler.h`), is a table that is read at boot of the image alone
/// (`arch/x86/include/asm/runtime-const.h`), or one of another architecture's tracer (`-fpatchable-function-entry`). The loader
/// knows none of them.
pub(super) fn is_dropped(section: &str) -> bool {
    let begins = [".discard.", "runtime_ptr_", "runtime_shift_", "__patchable_function_entries"];
    matches!(section, ".init.data" | ".exit.data") || begins.iter().any(|begin| section.starts_with(begin))
}

/// Tables that say where the kernel goes on instead, with the bytes of an entry: a place's distance, and behind it that of the
/// other place. `struct jump_entry` (`include/linux/jump_label.h`), `struct exception_table_entry`
/// (`arch/x86/include/asm/extable.h`).
pub(super) const WAYS: [(&str, usize); 2] = [("__jump_table", 16), ("__ex_table", 12)];

/// The table of places where other instructions may be put.
pub(super) const REWRITTEN: &str = ".altinstructions";

/// How the sections with those instructions begin their names.
pub(super) const PUT_ELSEWHERE: &str = ".altinstr_replacement";

/// What a return is compiled to (`arch/x86/lib/retpoline.S`).
pub(super) const RETURN: &str = "__x86_return_thunk";

/// Functions that use what their arguments point to only until they return.
pub(super) const FORGETTING: [&str; 43] = [
    // They make text of a format and of what it is about, and keep the text: `vprintk_store` (`kernel/printk/printk.c`),
    // `__warn_printk` (`kernel/panic.c`), `__dynamic_pr_debug` and others (`lib/dynamic_debug.c`), `drivers/base/core.c`,
    // `net/core/dev.c`, `lib/vsprintf.c`, `fs/sysfs/file.c`, `lib/kasprintf.c`.
    "_printk",
    "_printk_deferred",
    "__warn_printk",
    "__dynamic_pr_debug",
    "__dynamic_dev_dbg",
    "__dynamic_netdev_dbg",
    "_dev_emerg",
    "_dev_alert",
    "_dev_crit",
    "_dev_err",
    "_dev_warn",
    "_dev_notice",
    "_dev_info",
    "netdev_emerg",
    "netdev_alert",
    "netdev_crit",
    "netdev_err",
    "netdev_warn",
    "netdev_notice",
    "netdev_info",
    "sprintf",
    "snprintf",
    "scnprintf",
    "sysfs_emit",
    "sysfs_emit_at",
    "kasprintf",
    // They copy into the file's buffer (`fs/seq_file.c`).
    "seq_printf",
    "seq_puts",
    "seq_write",
    // They read memory (`lib/string.c`, `arch/x86/lib`).
    "memcmp",
    "strcmp",
    "strncmp",
    "strcasecmp",
    "strncasecmp",
    "strlen",
    "strnlen",
    // They make a copy (`mm/util.c`).
    "kstrdup",
    "kmemdup",
    // It has a lock that is only tried, and keeps nothing (`lib/ratelimit.c`).
    "___ratelimit",
    // They are told where they are called, for people (`_THIS_IP_`, `kernel/softirq.c`).
    "__local_bh_enable_ip",
    "__local_bh_disable_ip",
    // It does not return (`kernel/panic.c`).
    "panic",
    // The module counts itself (`kernel/module/main.c`).
    "__module_get",
];

/// The same, but that they return what they were given, or a place in it (`lib/string.c`, `arch/x86/lib`).
pub(super) const RETURNING: [&str; 6] = ["memcpy", "__memcpy", "memmove", "memset", "memchr", "strstr"];
