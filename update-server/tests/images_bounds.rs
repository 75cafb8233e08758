//! A guest that lists far more than any guest has, or the same again and again. `LUCOS_IMAGES` names the folder with the kernels that
//! it claims to run.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod small_guest;

use std::collections::BTreeSet;
use std::sync::Arc;

use images::models;
use small_guest::{Guest, Plan, direct, physical};
use update_server::addr::Gva;
use update_server::census::{self, Census, Doubt, Survey};
use update_server::guest::{Paused, Registers, Vcpu};
use update_server::kernel::model::Model;
use update_server::kernel::modules::{Module, Modules, modules};
use update_server::kernel::running::Running;
use update_server::limits::{MODULE_NAME_BYTES, MODULE_SYMBOLS, TASK_LINKS};

/// Memory between the small guest's own data and its kernel, which nothing else uses.
const ROOM: u64 = 0x40_0000;
const ROOM_END: u64 = 0x100_0000;

/// Writes what the guest makes up.
struct Liar<'a, 'p> {
    model: &'a Model,
    guest: &'a Guest<'p>,
}

impl Liar<'_, '_> {
    fn offset(&self, structure: &str, member: &str) -> u64 {
        self.model.image().types().offset(structure, member).unwrap()
    }

    fn symbol(&self, name: &str) -> Gva {
        self.model.image().symbols().only(name).unwrap_or_else(|| panic!("no one {name}")).address
    }

    fn word(&self, at: Gva, word: u64) {
        assert_eq!(at.0 % 8, 0, "{at}");
        self.guest.write((physical(at), word));
    }

    /// Puts `count` processes on the list of tasks, instead of what was there. With `threads`, all of them have one list of that many
    /// threads; without, each has its own, of itself alone.
    fn processes(&self, count: u64, threads: Option<u64>) {
        let of = |member| self.offset("task_struct", member);
        let (tasks, node, signal) = (of("tasks"), of("thread_node"), of("signal"));
        let head = self.offset("signal_struct", "thread_head");
        // They lie on each other, but for the words that are written.
        let words = [tasks, signal, node - 8, node];
        let apart =
            |step: &u64| words.iter().map(|word| word % step).collect::<BTreeSet<_>>().len() == words.len();
        let step = (8..).step_by(8).find(apart).unwrap();
        let process = |index: u64| direct(ROOM + index * step);
        let thread = |index: u64| direct(ROOM + 0x4000 + (count + index) * step);
        let shared = direct(ROOM_END - 0x4000);
        assert!(thread(threads.unwrap_or(0)).wrapping_add(0x4000) <= shared);
        let init = self.symbol("init_task");
        self.word(init.wrapping_add(tasks), process(0).wrapping_add(tasks).0);
        for index in 0..count {
            let next = if index + 1 == count { init } else { process(index + 1) };
            let own = process(index);
            self.word(own.wrapping_add(tasks), next.wrapping_add(tasks).0);
            // A list of one thread: what is behind its link is its head.
            let signals = if threads.is_some() { shared } else { own.wrapping_add(node - 8 - head) };
            self.word(own.wrapping_add(signal), signals.0);
            if threads.is_none() {
                self.word(own.wrapping_add(node - 8), own.wrapping_add(node).0);
                self.word(own.wrapping_add(node), own.wrapping_add(node - 8).0);
            }
        }
        let Some(threads) = threads else { return };
        let head = shared.wrapping_add(head);
        self.word(head, thread(0).wrapping_add(node).0);
        for index in 0..threads {
            let next = if index + 1 == threads { head } else { thread(index + 1).wrapping_add(node) };
            self.word(thread(index).wrapping_add(node), next.0);
        }
    }
}

/// Bytes from one made-up `struct module` to the next.
const MODULE_STEP: u64 = 0x1000;

impl Liar<'_, '_> {
    fn module(&self, index: u64) -> Gva {
        let own = direct(ROOM + index * MODULE_STEP);
        assert!(self.model.image().types().size_of("module").unwrap() <= MODULE_STEP);
        own
    }

    /// Puts `count` modules on the list, instead of what was there: each says that one table of `symbols` is its own, all of them
    /// with a name of `name_bytes` bytes that are no text.
    fn modules(&self, count: u64, symbols: u64, name_bytes: u64) {
        let of = |structure, member| self.offset(structure, member);
        let (list, own) = (of("module", "list"), of("module", "kallsyms"));
        let tables = direct(ROOM + count * MODULE_STEP);
        let (names, entries) = (tables.wrapping_add(0x100), tables.wrapping_add(0x1000));
        assert!(entries.wrapping_add(symbols * 24) <= direct(ROOM_END));
        let nodes = (0..count).map(|index| self.module(index).wrapping_add(list));
        let nodes: Vec<Gva> = std::iter::once(self.symbol("modules")).chain(nodes).collect();
        for (node, next) in nodes.iter().zip(nodes.iter().cycle().skip(1)) {
            self.word(*node, next.0);
        }
        for index in 0..count {
            self.word(self.module(index).wrapping_add(own), tables.0);
        }
        self.word(tables.wrapping_add(of("mod_kallsyms", "symtab")), entries.0);
        self.word(tables.wrapping_add(of("mod_kallsyms", "num_symtab")), symbols);
        self.word(tables.wrapping_add(of("mod_kallsyms", "strtab")), names.0);
        assert_eq!(name_bytes % 8, 7);
        for byte in (0..name_bytes).step_by(8) {
            let is_end = byte + 8 > name_bytes;
            self.word(names.wrapping_add(byte), if is_end { u64::MAX >> 8 } else { u64::MAX });
        }
        for index in 0..symbols {
            // elf(5), Elf64_Sym: STT_FUNC, global, in a section.
            let entry = entries.wrapping_add(index * 24);
            self.word(entry, 0x0001_0012 << 32);
            self.word(entry.wrapping_add(8), 0xffff_ffff_c000_0000 + index);
        }
    }

    /// `enum module_state` (include/linux/module.h).
    fn state(&self, index: u64, state: u64) {
        self.word(self.module(index).wrapping_add(self.offset("module", "state")), state);
    }
}

/// Symbols of all modules together, and bytes of their names.
fn kept(modules: &[Arc<Module>]) -> (usize, usize) {
    let symbols = modules.iter().flat_map(|module| module.symbols.iter());
    symbols.fold((0, 0), |(count, bytes), symbol| (count + 1, bytes + symbol.name.len()))
}

fn kernel<'a, 'p>(model: &'a Model, guest: &'a Guest<'p>) -> Running<'a, Guest<'p>> {
    Running::find(model, guest, guest.vcpus()).unwrap()
}

fn census(model: &Model, guest: &Guest<'_>) -> Census {
    census::take(&kernel(model, guest), guest).unwrap()
}

#[test]
fn threads_that_many_processes_share_are_not_followed_for_each() {
    /// Followed for each process, these would be 32 times the limit.
    const MANY: u64 = 4096;
    for (name, model) in models("threads_that_many_processes_share_are_not_followed_for_each") {
        let plan = Plan::new(&model);
        let guest = Guest::new(&plan);
        let liar = Liar { model: &model, guest: &guest };
        assert_eq!(census(&model, &guest).doubts, [], "{name}");
        liar.processes(MANY, Some(MANY));
        let kernel = kernel(&model, &guest);
        let mut survey = Survey::default();
        let before = guest.reads();
        survey.prepare(&kernel).unwrap();
        let prepared = guest.reads() - before;
        survey.settle(&kernel, &guest).unwrap();
        let settled = guest.reads() - before - prepared;
        println!("{name}: {prepared} readings, and {settled} in the pause");
        // A few for each task besides.
        let limit = TASK_LINKS + 2 * MANY * 40;
        assert!(prepared <= limit && settled <= limit, "{name}: {prepared} and {settled}");
        let doubt = Doubt::Endless { what: "the list of tasks" };
        assert!(survey.census().doubts.contains(&doubt), "{name}: {:?}", survey.census().doubts);
    }
}

#[test]
fn tasks_are_asked_once_for_all_vcpus_that_are_on_nobodys_stack() {
    const MANY: u64 = 1000;
    for (name, model) in models("tasks_are_asked_once_for_all_vcpus_that_are_on_nobodys_stack") {
        let plan = Plan::new(&model);
        let mut guest = Guest::new(&plan);
        Liar { model: &model, guest: &guest }.processes(MANY, None);
        assert_eq!(census(&model, &guest).doubts, [], "{name}");
        // In memory that is no stack.
        let registers = Registers { rsp: direct(ROOM_END - 0x2000).0, ..guest.vcpus()[0].registers };
        let lost = Vcpu { registers, ..guest.vcpus()[0].clone() };
        let mut readings = Vec::new();
        for vcpus in [1, 65] {
            guest.set_vcpus(vec![lost.clone(); vcpus]);
            let before = guest.reads();
            let census = census(&model, &guest);
            let nowhere = |doubt: &&Doubt| matches!(doubt, Doubt::NoTask { .. });
            assert_eq!(census.doubts.iter().filter(nowhere).count(), vcpus, "{name}: {:?}", census.doubts);
            readings.push(guest.reads() - before);
        }
        println!("{name}: {readings:?} readings");
        assert!(readings[1] - readings[0] < 64 * MANY, "{name}: {readings:?}");
    }
}

/// Has each of `many` made-up modules change in turn, and keeps what has not.
fn change_in_turn(name: &str, liar: &Liar<'_, '_>, many: u64, check: impl Fn(&Modules)) {
    let kernel = kernel(liar.model, liar.guest);
    let mut known = Vec::new();
    for index in 0..2 * many {
        liar.state(index % many, index / many);
        let all = modules(&kernel, &known);
        assert_eq!((all.found.len() as u64, all.end), (many, None), "{name}, {index}");
        check(&all);
        known = all.found;
    }
}

#[test]
fn modules_that_are_kept_leave_less_room_for_others() {
    const MANY: u64 = 32;
    for (name, model) in models("modules_that_are_kept_leave_less_room_for_others") {
        let plan = Plan::new(&model);
        let guest = Guest::new(&plan);
        let liar = Liar { model: &model, guest: &guest };
        let symbols = MODULE_SYMBOLS as u64 / 4;
        // There is room for four of them.
        liar.modules(MANY, symbols, 7);
        change_in_turn(name, &liar, MANY, |all| {
            assert_eq!(kept(&all.found).0, MODULE_SYMBOLS, "{name}");
            assert!(all.found.iter().all(|module| [0, symbols].contains(&(module.symbols.len() as u64))));
            assert_eq!(all.cuts.len(), 1, "{name}: {:?}", all.cuts);
        });
        let found = census(&model, &guest);
        assert!(matches!(found.doubts[..], [Doubt::Cut(_)]), "{name}: {:?}", found.doubts);
        // Who was left out is read as soon as there is room.
        let known = found.loaded.modules.clone();
        assert!(known[4].symbols.is_empty() && known[5].symbols.is_empty(), "{name}");
        let list = liar.offset("module", "list");
        let head = liar.symbol("modules");
        liar.word(head, liar.module(MANY - 3).wrapping_add(list).0);
        let all = modules(&kernel(&model, &guest), &known);
        assert_eq!(
            (all.found.len(), kept(&all.found).0, all.cuts),
            (3, 3 * MODULE_SYMBOLS / 4, vec![]),
            "{name}"
        );
    }
}

#[test]
fn names_of_modules_symbols_have_a_bound_of_their_own() {
    const MANY: u64 = 8;
    /// Each of the bytes becomes four, of which as many are kept as a name has.
    const NAME: u64 = 511;
    const KEPT: u64 = NAME + 1;
    for (name, model) in models("names_of_modules_symbols_have_a_bound_of_their_own") {
        let plan = Plan::new(&model);
        let guest = Guest::new(&plan);
        let liar = Liar { model: &model, guest: &guest };
        let symbols = MODULE_NAME_BYTES as u64 / KEPT / 2;
        liar.modules(MANY, symbols, NAME);
        change_in_turn(name, &liar, MANY, |all| {
            let (_, bytes) = kept(&all.found);
            assert_eq!(bytes as u64, 2 * symbols * KEPT, "{name}");
            assert!(bytes <= MODULE_NAME_BYTES && all.cuts.len() == 1, "{name}: {bytes}, {:?}", all.cuts);
        });
    }
}
