//! Where the kernel's structures have the members that are read here, by its own types.

use crate::image::{Btf, TypeError};

/// Declares a group of offsets: each field of the Rust structure is the offset in bytes of the member named.
macro_rules! offsets {
    ($(#[$doc:meta])* $group:ident of $structure:literal { $($field:ident = $($path:literal)|+),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub(crate) struct $group {
            $(pub(crate) $field: u64,)*
        }

        impl $group {
            pub(crate) fn of(types: &Btf) -> Result<Self, TypeError> {
                Ok(Self { $($field: offset(types, $structure, &[$($path),+])?,)* })
            }
        }
    };
}

/// The first of `paths` that the structure has: kernels have called some members by several names.
fn offset(types: &Btf, structure: &str, paths: &[&str]) -> Result<u64, TypeError> {
    let mut first = None;
    for path in paths {
        match types.offset(structure, path) {
            Ok(offset) => return Ok(offset),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| TypeError::NoStruct(structure.to_owned())))
}

offsets! {
    /// `struct task_struct` (include/linux/sched.h).
    TaskLayout of "task_struct" {
        tasks = "tasks",
        thread_node = "thread_node",
        signal = "signal",
        pid = "pid",
        tgid = "tgid",
        comm = "comm",
        flags = "flags",
        state = "__state",
        exit_state = "exit_state",
        stack = "stack",
        sp = "thread.sp",
        on_cpu = "on_cpu",
        voluntary_switches = "nvcsw",
        involuntary_switches = "nivcsw",
        start_time = "start_time",
        stack_canary = "stack_canary",
        group_node = "se.group_node",
        real_time_node = "rt.run_list",
        deadline_node = "dl.rb_node",
    }
}

offsets! {
    /// `struct inactive_task_frame` (`arch/x86/include/asm/switch_to.h`): what a switched-out task's stack begins with.
    InactiveFrameLayout of "inactive_task_frame" {
        rbp = "bp",
        return_address = "ret_addr",
    }
}

offsets! {
    /// `struct pt_regs` (arch/x86/include/asm/ptrace.h): what an entry into the kernel leaves on the stack.
    RegistersLayout of "pt_regs" {
        r13 = "r13",
        r10 = "r10",
        rbp = "bp",
        rdx = "dx",
        rdi = "di",
        rip = "ip",
        cs = "cs",
        rsp = "sp",
    }
}

offsets! {
    /// `struct module` (include/linux/module.h): what is in both forms that it has had.
    ModuleLayout of "module" {
        list = "list",
        state = "state",
        name = "name",
        // 6.4 made an array of what had been two members with names.
        text_base = "mem.base" | "core_layout.base",
        text_bytes = "mem.size" | "core_layout.text_size",
        orc_count = "arch.num_orcs",
        orc_addresses = "arch.orc_unwind_ip",
        orc_entries = "arch.orc_unwind",
        kallsyms = "kallsyms",
    }
}

offsets! {
    /// `struct mod_kallsyms` (include/linux/module.h).
    ModuleSymbolsLayout of "mod_kallsyms" {
        symbols = "symtab",
        count = "num_symtab",
        strings = "strtab",
    }
}

offsets! {
    /// `struct rq` (kernel/sched/sched.h): one processor's run queue.
    RunQueueLayout of "rq" {
        lock = "__lock",
        switches = "nr_switches",
        current = "curr",
        idle = "idle",
        fair_tasks = "cfs_tasks",
        real_time = "rt.active.queue",
        deadline = "dl.root.rb_root.rb_node",
    }
}

/// All that is read of a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) task: TaskLayout,
    pub(crate) inactive: InactiveFrameLayout,
    pub(crate) registers: RegistersLayout,
    pub(crate) run_queue: RunQueueLayout,
    pub(crate) module: ModuleLayout,
    pub(crate) module_symbols: ModuleSymbolsLayout,
    /// Where the text that a module needs only at its start is described: offsets of its address and its size.
    pub(crate) module_init: (u64, u64),
    /// `module.refcnt`: how often it is used. Only kernels that unload modules have it (`CONFIG_MODULE_UNLOAD`).
    pub(crate) module_count: Option<u64>,
    /// Bytes of a module's name.
    pub(crate) module_name_bytes: usize,
    /// `signal_struct.thread_head`: the list of a process's threads.
    pub(crate) thread_head: u64,
    /// Bytes of a run queue, `rq`.
    pub(crate) run_queue_bytes: u64,
    /// `mutex.owner`: who holds it, with flags in the three lowest bits (`kernel/locking/mutex.c`); on -rt that of the lock it
    /// is made of (`kernel/locking/rtmutex_common.h`).
    pub(crate) lock_owner: u64,
    /// Bytes of `inactive_task_frame` and of `pt_regs`.
    pub(crate) inactive_bytes: u64,
    pub(crate) registers_bytes: u64,
    /// Length of a task's name.
    pub(crate) comm_bytes: usize,
}

impl Layout {
    /// Reads it out of the kernel's types.
    pub(crate) fn of(types: &Btf) -> Result<Self, TypeError> {
        let comm = types.field("task_struct", "comm")?.size();
        let module = ModuleLayout::of(types)?;
        let module_init = match (types.enumerator("MOD_INIT_TEXT"), types.size_of("module_memory")) {
            (Ok(index), Ok(stride)) => {
                let behind = u64::try_from(index).unwrap_or(0) * stride;
                (module.text_base + behind, module.text_bytes + behind)
            }
            _ => (
                offset(types, "module", &["init_layout.base"])?,
                offset(types, "module", &["init_layout.text_size"])?,
            ),
        };
        Ok(Self {
            task: TaskLayout::of(types)?,
            inactive: InactiveFrameLayout::of(types)?,
            registers: RegistersLayout::of(types)?,
            run_queue: RunQueueLayout::of(types)?,
            module,
            module_symbols: ModuleSymbolsLayout::of(types)?,
            module_init,
            module_count: types.offset("module", "refcnt").ok(),
            module_name_bytes: usize::try_from(types.field("module", "name")?.size()).unwrap_or(56),
            thread_head: offset(types, "signal_struct", &["thread_head"])?,
            run_queue_bytes: types.size_of("rq")?,
            lock_owner: offset(types, "mutex", &["owner", "rtmutex.owner"])?,
            inactive_bytes: types.size_of("inactive_task_frame")?,
            registers_bytes: types.size_of("pt_regs")?,
            comm_bytes: usize::try_from(comm).unwrap_or(16),
        })
    }
}
