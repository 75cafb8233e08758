//! What is where in the small guest's memory.

use std::ops::Range;

use update_server::addr::{Gpa, Gva};
use update_server::guest::{Registers, Vcpu};
use update_server::kernel::model::Model;

use super::chain::Returns;
use super::layout::{Layout, hot};
use super::{DIRECT, direct};

/// Processors, each with an idle task.
pub(crate) const CPUS: u64 = 2;
/// Tasks that sleep.
const SLEEPERS: u64 = 6;
/// Bytes from one of them to the next; a `task_struct` has some 10,000.
const TASK_BYTES: u64 = 0x4000;
pub(crate) const STACK_BYTES: u64 = 0x4000;

// Physical addresses.
const TABLES: u64 = 0x1000;
const SEGMENTS: u64 = 0xf000;
const MODULE: u64 = 0x1_0000;
const SIGNALS: u64 = 0x4_0000;
const TASKS: u64 = 0x8_0000;
const STACKS: u64 = 0x10_0000;
const AREAS: u64 = 0x20_0000;
const AREA_BYTES: u64 = 0x10_0000;

// Virtual ones (Documentation/arch/x86/x86_64/mm.rst).
const VMALLOC: u64 = 0xffff_c900_0000_0000;
const KERNEL: u64 = 0xffff_ffff_8000_0000;
const MODULES: u64 = 0xffff_ffff_c000_0000;

/// `push rbp; mov rbp,rsp; push rbx; sub rsp,0x10; test edi,edi; jz 1f; call 0; 1: add rsp,0x10; pop rbx; pop rbp; ret`.
const CODE: [u8; 25] = [
    0x55, 0x48, 0x89, 0xe5, 0x53, 0x48, 0x83, 0xec, 0x10, 0x85, 0xff, 0x74, 0x05, 0xe8, 0, 0, 0, 0, 0x48,
    0x83, 0xc4, 0x10, 0x5b, 0x5d, 0xc3,
];
/// Behind the call.
const RETURN: u64 = 18;
/// What is on the stack there, the next return address included.
const FRAME: u64 = 40;

/// A guest before anybody has written to it.
pub(crate) struct Plan {
    pub(crate) ram: Vec<u8>,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) returns: Returns,
    pub(crate) layout: Layout,
    /// Every task: the idle ones first, by processor.
    pub(crate) tasks: Vec<Gva>,
    /// Where each one's stack is.
    pub(crate) stacks: Vec<Gva>,
    /// Where each processor's own data is.
    pub(crate) areas: Vec<Gva>,
}

/// Writes to the memory of a plan that is being made.
struct Writer<'m> {
    model: &'m Model,
    ram: Vec<u8>,
}

/// The physical address of what is mapped at `at`.
pub(crate) fn physical(at: Gva) -> Gpa {
    Gpa(match at.0 {
        MODULES.. => at.0 - MODULES + MODULE,
        KERNEL.. => at.0 - KERNEL,
        VMALLOC.. => at.0 - VMALLOC + STACKS,
        _ => at.0 - DIRECT,
    })
}

impl Writer<'_> {
    fn symbol(&self, name: &str) -> Gva {
        self.model.image().symbols().only(name).unwrap_or_else(|| panic!("there is no one {name}")).address
    }

    fn offset(&self, structure: &str, path: &str) -> u64 {
        self.model.image().types().offset(structure, path).unwrap()
    }

    /// The first of `paths` that there is.
    fn either(&self, structure: &str, paths: [&str; 2]) -> u64 {
        let types = self.model.image().types();
        paths.into_iter().find_map(|path| types.offset(structure, path).ok()).unwrap()
    }

    fn bytes(&mut self, at: Gva, bytes: &[u8]) {
        let from = usize::try_from(physical(at).0).unwrap();
        self.ram[from..from + bytes.len()].copy_from_slice(bytes);
    }

    fn word(&mut self, at: Gva, word: u64) {
        self.bytes(at, &word.to_le_bytes());
    }

    fn half(&mut self, at: Gva, half: u32) {
        self.bytes(at, &half.to_le_bytes());
    }

    /// Links `nodes` in a circle.
    fn list(&mut self, nodes: &[Gva]) {
        for (&node, &next) in nodes.iter().zip(nodes.iter().cycle().skip(1)) {
            self.word(node, next.0);
            self.word(next.wrapping_add(8), node.0);
        }
    }
}

impl Plan {
    pub(crate) fn new(model: &Model) -> Self {
        let returns = Returns::of(model.image());
        let sections: Vec<_> = model.image().sections().filter(|(_, at, _)| at.0 >= KERNEL).collect();
        let bss = model.image().symbols().only("_end").unwrap().address;
        let end = sections.iter().map(|&(_, at, len)| at.wrapping_add(len as u64)).fold(bss, Gva::max);
        let mut writer = Writer { model, ram: vec![0; usize::try_from(physical(end).0).unwrap()] };
        for (_, at, len) in sections {
            writer.bytes(at, model.image().bytes(at, len).unwrap());
        }
        writer.tables();
        let areas: Vec<Gva> = (0..CPUS).map(|cpu| direct(AREAS + cpu * AREA_BYTES)).collect();
        let init = writer.symbol("init_task");
        let others = (1..CPUS + SLEEPERS).map(|index| direct(TASKS + index * TASK_BYTES));
        let tasks: Vec<Gva> = std::iter::once(init).chain(others).collect();
        let stack = |index: u64| Gva(VMALLOC + index * STACK_BYTES);
        let stacks: Vec<Gva> = (0..CPUS + SLEEPERS).map(stack).collect();
        writer.tasks(&tasks, &stacks, &returns);
        let vcpus =
            (0..).zip(&areas).map(|(id, &area)| writer.processor(id, area, &tasks, &stacks, &returns));
        let vcpus = vcpus.collect();
        writer.module();
        Self { ram: writer.ram, vcpus, returns, layout: Layout::of(model), tasks, stacks, areas }
    }

    /// What a guest can lie about: the physical addresses of each group of words.
    pub(crate) fn words(&self, model: &Model) -> Vec<(&'static str, Vec<u64>)> {
        let types = model.image().types();
        let size = |structure| types.size_of(structure).unwrap();
        let from = |at: Gva, bytes: u64| physical(at).0..physical(at).0 + bytes;
        let symbol = |name| model.image().symbols().only(name).unwrap().address;
        let queue = symbol("runqueues").0;
        let queues = self.areas.iter().map(|area| from(area.wrapping_add(queue), size("rq")));
        let tasks = self.tasks.iter().map(|&task| from(task, size("task_struct")));
        let stacks = self.stacks.iter().map(|&stack| from(stack, STACK_BYTES));
        let groups: [(_, Vec<Range<u64>>); 6] = [
            ("page tables", std::iter::once(TABLES..SEGMENTS).collect()),
            ("a module", std::iter::once(MODULE..MODULE + 0x1_0000).collect()),
            ("lists of threads", std::iter::once(SIGNALS..SIGNALS + 0x1_0000).collect()),
            ("run queues", queues.collect()),
            ("tasks", tasks.collect()),
            ("stacks", stacks.collect()),
        ];
        // Most of each is zero and of no use; what is not, was put there, or by the kernel's image.
        let holds = |at: &u64| {
            let from = usize::try_from(*at).unwrap();
            self.ram[from..from + 8] != [0; 8]
        };
        let words =
            |ranges: Vec<Range<u64>>| ranges.into_iter().flat_map(|range| range.step_by(8)).filter(holds);
        groups.map(|(name, ranges)| (name, words(ranges).collect())).into()
    }
}

impl Writer<'_> {
    /// Tables that map all memory at once, the kernel and modules, and stacks as pages of their own (Intel SDM vol. 3A, 5.5).
    fn tables(&mut self) {
        const PRESENT: u64 = 0x63;
        const LARGE: u64 = 0xe3;
        let table = |index: u64| direct(TABLES + index * 0x1000);
        let root = self.symbol("init_top_pgt");
        let index = |at: u64, level: u32| at >> (12 + 9 * (level - 1)) & 0x1ff;
        let mut entry = |at: Gva, index: u64, entry: u64| self.word(at.wrapping_add(index * 8), entry);
        entry(root, index(DIRECT, 4), physical(table(0)).0 | PRESENT);
        entry(table(0), 0, LARGE);
        entry(root, index(VMALLOC, 4), physical(table(1)).0 | PRESENT);
        entry(table(1), 0, physical(table(2)).0 | PRESENT);
        entry(table(2), 0, physical(table(3)).0 | PRESENT);
        entry(root, index(KERNEL, 4), physical(table(4)).0 | PRESENT);
        entry(table(4), index(KERNEL, 3), physical(table(5)).0 | PRESENT);
        entry(table(4), index(MODULES, 3), physical(table(6)).0 | PRESENT);
        entry(table(6), 0, physical(table(7)).0 | PRESENT);
        for page in 0..512 {
            entry(table(5), page, page << 21 | LARGE);
        }
        for page in 0..((CPUS + SLEEPERS) * STACK_BYTES) >> 12 {
            entry(table(3), page, (STACKS + (page << 12)) | PRESENT);
        }
        for page in 0..16 {
            entry(table(7), page, (MODULE + (page << 12)) | PRESENT);
        }
    }

    /// All on the list of tasks; each sleeper is a process of one thread.
    fn tasks(&mut self, tasks: &[Gva], stacks: &[Gva], returns: &Returns) {
        let of = |member: &str| self.offset("task_struct", member);
        let (links, node, signal, stack) = (of("tasks"), of("thread_node"), of("signal"), of("stack"));
        let (sp, pid, tgid, comm) = (of("thread.sp"), of("pid"), of("tgid"), of("comm"));
        let (state, started, counted) = (of("__state"), of("start_time"), of("nvcsw"));
        let head = self.offset("signal_struct", "thread_head");
        let frame = self.model.image().types().size_of("inactive_task_frame").unwrap();
        let back = self.offset("inactive_task_frame", "ret_addr");
        let idle = usize::try_from(CPUS).unwrap();
        for (index, (&task, &lower)) in (0_u32..).zip(tasks.iter().zip(stacks)) {
            let at = |offset| task.wrapping_add(offset);
            self.word(at(stack), lower.0);
            if index > 0 {
                let own = direct(SIGNALS + u64::from(index) * 0x1000);
                self.word(at(signal), own.0);
                self.list(&[own.wrapping_add(head), at(node)]);
                self.bytes(at(comm), format!("task-{index}\0").as_bytes());
                self.word(at(started), u64::from(index) * 1000);
            }
            let pointer = lower.wrapping_add(STACK_BYTES - 0x1000);
            self.word(at(sp), pointer.0);
            self.word(at(counted), 10);
            let pushed = pointer.wrapping_add(frame);
            // The last one sleeps behind a call of a module's function.
            let in_module = index + 1 == u32::try_from(tasks.len()).unwrap();
            let (first, words) = returns.stack(6, index.try_into().unwrap());
            let above = if in_module { pushed.wrapping_add(FRAME) } else { pushed };
            let address = if in_module {
                self.word(pushed.wrapping_add(FRAME - 8), first.0);
                Gva(MODULES + RETURN)
            } else {
                first
            };
            self.word(pointer.wrapping_add(back), address.0);
            for (offset, word) in words {
                self.word(above.wrapping_add(offset), word.0);
            }
            if index >= u32::try_from(idle).unwrap() {
                self.half(at(pid), index);
                self.half(at(tgid), index);
                self.half(at(state), 1);
            }
        }
        let listed = [&tasks[..1], &tasks[idle..]].concat();
        let listed: Vec<Gva> = listed.into_iter().map(|task| task.wrapping_add(links)).collect();
        self.list(&listed);
        let (made, threads) = (self.symbol("total_forks"), self.symbol("nr_threads"));
        self.word(made, SLEEPERS);
        self.half(threads, u32::try_from(SLEEPERS).unwrap());
    }

    /// One processor, in the kernel on the stack of its idle task.
    fn processor(&mut self, id: u32, area: Gva, tasks: &[Gva], stacks: &[Gva], returns: &Returns) -> Vcpu {
        let index = usize::try_from(id).unwrap();
        let (idle, stack) = (tasks[index], stacks[index]);
        let (count, areas) = (self.symbol("nr_cpu_ids"), self.symbol("__per_cpu_offset"));
        self.half(count, u32::try_from(CPUS).unwrap());
        self.word(areas.wrapping_add(u64::from(id) * 8), area.0);
        let current = hot(self.model, "current_task");
        self.word(area.wrapping_add(current), idle.0);
        let queue = area.wrapping_add(self.symbol("runqueues").0);
        let of = |member: &str| self.offset("rq", member);
        let (runs, own, fair, real_time) = (of("curr"), of("idle"), of("cfs_tasks"), of("rt.active.queue"));
        self.word(queue.wrapping_add(runs), idle.0);
        self.word(queue.wrapping_add(own), idle.0);
        self.list(&[queue.wrapping_add(fair)]);
        for priority in 0..100 {
            self.list(&[queue.wrapping_add(real_time + priority * 16)]);
        }
        let on_cpu = self.offset("task_struct", "on_cpu");
        self.half(idle.wrapping_add(on_cpu), 1);
        let (first, words) = returns.stack(5, index + 100);
        let rsp = stack.wrapping_add(STACK_BYTES - 0x800);
        for (offset, word) in words {
            self.word(rsp.wrapping_add(offset), word.0);
        }
        // Its number is in a segment's limit (arch/x86/include/asm/segment.h, `GDT_ENTRY_CPUNODE`).
        let segments = direct(SEGMENTS + u64::from(id) * 0x100);
        self.word(segments.wrapping_add(15 * 8), 1 << 47 | u64::from(id));
        Vcpu {
            id,
            started: true,
            // The frame is that of the call's own last byte, as of a return address.
            rip: first.0 - 1,
            registers: Registers { rsp: rsp.0, ..Registers::default() },
            cr0: 1 << 31,
            cr3: physical(self.symbol("init_top_pgt")).0,
            lstar: self.symbol("entry_SYSCALL_64").0,
            gs_base: area.0,
            gdt_base: segments.0,
            idt_base: 0xffff_fe00_0000_0000,
            ..Vcpu::default()
        }
    }

    /// One module with one function, its unwind table and its symbol.
    fn module(&mut self) {
        let (text, at) = (Gva(MODULES), Gva(MODULES + 0x4000));
        let (places, entries) = (Gva(MODULES + 0x1000), Gva(MODULES + 0x1800));
        let (kallsyms, symbols, strings) =
            (Gva(MODULES + 0x2000), Gva(MODULES + 0x2100), Gva(MODULES + 0x2200));
        let of = |paths| self.either("module", paths);
        let (base, size) = (of(["mem.base", "core_layout.base"]), of(["mem.size", "core_layout.text_size"]));
        let (list, name) = (of(["list"; 2]), of(["name"; 2]));
        let (count, ips, table) =
            (of(["arch.num_orcs"; 2]), of(["arch.orc_unwind_ip"; 2]), of(["arch.orc_unwind"; 2]));
        let own_symbols = of(["kallsyms"; 2]);
        self.bytes(text, &CODE);
        self.bytes(at.wrapping_add(name), b"small\0");
        self.word(at.wrapping_add(base), text.0);
        self.half(at.wrapping_add(size), 0x1000);
        let head = self.symbol("modules");
        self.list(&[head, at.wrapping_add(list)]);
        // Behind `sub rsp,0x10` there are 40 bytes on the stack, the saved RBP 16 below the caller's stack pointer
        // (arch/x86/include/asm/orc_types.h: ORC_REG_SP 5, ORC_REG_PREV_SP 1, ORC_TYPE_CALL 0, and 2 since 6.4).
        let kind: u16 = if self.model.image().release().starts_with("6.1.") { 0 } else { 2 };
        let entry = |sp_offset: i16, bp_offset: i16, saved: u16| {
            [sp_offset.to_le_bytes(), bp_offset.to_le_bytes(), (5 | saved << 4 | kind << 8).to_le_bytes()]
        };
        for (index, (offset, entry)) in (0..).zip([(0, entry(8, 0, 0)), (9, entry(40, -16, 1))]) {
            let place = places.wrapping_add(index * 4);
            let distance = text.wrapping_add(offset).0.wrapping_sub(place.0);
            self.half(place, u32::try_from(distance & 0xffff_ffff).unwrap());
            self.bytes(entries.wrapping_add(index * 6), entry.as_flattened());
        }
        self.half(at.wrapping_add(count), 2);
        self.word(at.wrapping_add(ips), places.0);
        self.word(at.wrapping_add(table), entries.0);
        let of = |member: &str| self.offset("mod_kallsyms", member);
        let (first, number, names) = (of("symtab"), of("num_symtab"), of("strtab"));
        self.word(at.wrapping_add(own_symbols), kallsyms.0);
        self.word(kallsyms.wrapping_add(first), symbols.0);
        self.half(kallsyms.wrapping_add(number), 1);
        self.word(kallsyms.wrapping_add(names), strings.0);
        self.bytes(strings, b"\0small_work\0");
        // elf(5), Elf64_Sym: name, info (STT_FUNC, global), other, section, value, size.
        self.half(symbols, 1);
        self.bytes(symbols.wrapping_add(4), &[0x12, 0, 1, 0]);
        self.word(symbols.wrapping_add(8), text.0);
        self.word(symbols.wrapping_add(16), CODE.len() as u64);
    }
}
