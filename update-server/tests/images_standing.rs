//! A guest that stands still, of which everything must be known. `LUCOS_IMAGES` names the folder with the kernels that it runs.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod small_guest;

use images::models;
use small_guest::{Guest, Plan, STACK_BYTES, physical};
use update_server::addr::Gva;
use update_server::census::{self, Outcome, Survey};
use update_server::guest::{Paused, Registers, Vcpu};
use update_server::kernel::model::Model;
use update_server::kernel::running::Running;

#[test]
fn of_a_guest_that_stands_still_all_is_known() {
    for (name, model) in models("of_a_guest_that_stands_still_all_is_known") {
        let plan = Plan::new(&model);
        let guest = Guest::new(&plan);
        let kernel = Running::find(&model, &guest, guest.vcpus()).unwrap();
        let census = census::take(&kernel, &guest).unwrap();
        assert!(census.doubts.is_empty(), "{name}: {:?}", census.doubts);
        let found: Vec<_> = census.stacks().map(|stack| stack.task.address).collect();
        let mut expected = plan.tasks.clone();
        expected.sort_unstable();
        let mut sorted = found.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected, "{name}");
        for stack in census.stacks() {
            assert_eq!(stack.outcome, Outcome::Complete, "{name}: {stack:?}");
            assert!(stack.frames.len() >= 6, "{name}: {stack:?}");
        }
        println!("{name}: {} readings", guest.reads());
    }
}

/// Where an exception has come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    User,
    Kernel,
}

/// Behind the call of `error_entry` in what page faults enter the kernel by.
fn behind_the_call(model: &Model) -> Gva {
    let symbol = |name| model.image().symbols().only(name).unwrap().address;
    let (start, saving) = (symbol("asm_exc_page_fault"), symbol("error_entry"));
    let code = model.image().bytes(start, 0x40).unwrap();
    let calls = (0_u64..).zip(code.windows(5)).filter(|(_, code)| code[0] == 0xe8).map(|(offset, code)| {
        let behind = start.wrapping_add(offset + 5);
        (behind, behind.wrapping_offset(i32::from_le_bytes(code[1..].try_into().unwrap()).into()))
    });
    calls.into_iter().find(|(_, target)| *target == saving).unwrap().0
}

/// The names of the frames of a vCPU that stands at the start of `function`, which page faults come to before their registers
/// are saved, or when they are, and how the look at them ends.
fn frames_in(model: &Model, function: &str, saved: bool, from: From) -> (Vec<String>, Outcome) {
    let plan = Plan::new(model);
    let mut guest = Guest::new(&plan);
    let types = model.image().types();
    let field = |name| types.offset("pt_regs", name).unwrap();
    let symbol = |name| model.image().symbols().only(name).unwrap().address;
    let idle = &plan.vcpus[0];
    let (cs, registers) = match from {
        // At the top of its stack, with what it was doing there not begun.
        From::User => (0x33, plan.stacks[0].0 + STACK_BYTES - types.size_of("pt_regs").unwrap()),
        From::Kernel => (0x10, idle.registers.rsp - 0x200),
    };
    let words = [("ip", idle.rip), ("cs", cs), ("sp", idle.registers.rsp)];
    for (name, word) in words {
        guest.write((physical(Gva(registers + field(name))), word));
    }
    // The return address is where RDI will be saved, and is moved on by what saves the registers.
    let rsp = if saved { registers - 8 } else { registers + field("di") };
    guest.write((physical(Gva(rsp)), behind_the_call(model).0));
    let stopped = Vcpu {
        rip: symbol(function).0,
        registers: Registers { rsp, ..Registers::default() },
        ..idle.clone()
    };
    guest.set_vcpus(vec![stopped, plan.vcpus[1].clone()]);
    let kernel = Running::find(model, &guest, guest.vcpus()).unwrap();
    let census = census::take(&kernel, &guest).unwrap();
    let stack = census.stacks().find(|stack| stack.task.address == plan.tasks[0]).unwrap();
    let name = |at| model.image().symbols().containing(at).unwrap().0.name.to_owned();
    (stack.frames.iter().map(|frame| name(frame.address)).collect(), stack.outcome.clone())
}

#[test]
fn exceptions_are_known_while_their_registers_are_saved() {
    for (kernel, model) in models("exceptions_are_known_while_their_registers_are_saved") {
        for (function, saved, from, count) in [
            ("error_entry", false, From::User, 2..=2),
            ("error_entry", false, From::Kernel, 7..=9),
            // It jumps to these.
            ("sync_regs", true, From::User, 2..=2),
            ("__x86_return_thunk", true, From::Kernel, 7..=9),
        ] {
            let (frames, outcome) = frames_in(&model, function, saved, from);
            let case = format!("{kernel}, {function}, from {from:?}: {frames:?}");
            assert_eq!(outcome, Outcome::Complete, "{case}");
            assert_eq!(frames[..2], [function.to_owned(), "asm_exc_page_fault".to_owned()], "{case}");
            assert!(count.contains(&frames.len()), "{case}");
        }
    }
}

#[test]
fn what_stands_for_all_tasks_without_a_deadline_is_no_task() {
    for (name, model) in models("what_stands_for_all_tasks_without_a_deadline_is_no_task") {
        let plan = Plan::new(&model);
        let guest = Guest::new(&plan);
        let offset = |structure, member| model.image().types().offset(structure, member);
        let queue = plan.areas[0].wrapping_add(plan.layout.queue);
        let root = queue.wrapping_add(offset("rq", "dl.root.rb_root.rb_node").unwrap());
        let of_a_task = plan.tasks[3].wrapping_add(offset("task_struct", "dl.rb_node").unwrap());
        let mut nodes = vec![of_a_task];
        // Since 6.8.
        nodes.extend(offset("rq", "fair_server.rb_node").map(|server| queue.wrapping_add(server)));
        assert_eq!(nodes.len(), if name.starts_with("vmlinuz-6.1-") { 1 } else { 2 }, "{name}");
        // Each is the right child of the one before.
        let mut place = root;
        for node in nodes.into_iter().rev() {
            guest.write((physical(place), node.0));
            place = node.wrapping_add(8);
        }
        let kernel = Running::find(&model, &guest, guest.vcpus()).unwrap();
        let census = census::take(&kernel, &guest).unwrap();
        assert!(census.doubts.is_empty(), "{name}: {:?}", census.doubts);
        assert_eq!(
            census.stacks().count(),
            plan.tasks.len(),
            "{name}: {:?}",
            census.stacks().collect::<Vec<_>>()
        );
        assert!(census.stacks().all(|stack| stack.outcome == Outcome::Complete), "{name}");
    }
}

#[test]
fn the_stack_of_a_task_that_has_ended_goes_without_its_running() {
    for (name, model) in models("the_stack_of_a_task_that_has_ended_goes_without_its_running") {
        let plan = Plan::new(&model);
        let guest = Guest::new(&plan);
        let member =
            |member| plan.tasks[4].wrapping_add(model.image().types().offset("task_struct", member).unwrap());
        let kernel = Running::find(&model, &guest, guest.vcpus()).unwrap();
        let mut survey = Survey::default();
        survey.prepare(&kernel).unwrap();
        // TASK_DEAD (include/linux/sched.h), in a word of which the rest is what it was.
        let state = Gva(member("__state").0 & !7);
        let word = kernel.space().u64(state).unwrap();
        let shift = (member("__state").0 & 4) * 8;
        guest.write((physical(state), word & !(0xffff_ffff << shift) | 0x80 << shift));
        // It runs for the last time, and is counted.
        let count = member("nvcsw");
        guest.write((physical(count), kernel.space().u64(count).unwrap() + 1));
        survey.prepare(&kernel).unwrap();
        guest.write((physical(member("stack")), 0));
        survey.settle(&kernel, &guest).unwrap();
        survey.verify(&kernel, &guest).unwrap();
        let census = survey.census();
        assert!(census.doubts.is_empty(), "{name}: {:?}", census.doubts);
        let ended = census.stacks().find(|stack| stack.task.address == plan.tasks[4]).unwrap();
        assert!(ended.frames.is_empty() && ended.outcome == Outcome::Complete, "{name}: {ended:?}");
        // One that is told only by its count would have it still.
        assert!(census.effort.proven, "{name}");
    }
}

#[test]
fn a_return_that_a_tracer_has_taken_over_is_known_while_tasks_switch() {
    for (name, model) in models("a_return_that_a_tracer_has_taken_over_is_known_while_tasks_switch") {
        let plan = Plan::new(&model);
        let guest = Guest::new(&plan);
        let types = model.image().types();
        let node = |member| types.offset("rethook_node", member).unwrap();
        let trampoline = model.image().symbols().only("arch_rethook_trampoline").unwrap().address;
        // The first return address on the processor's stack is the tracer's, and in the record of its idle task, which holds
        // the stack.
        let registers = plan.vcpus[0].registers;
        let kernel = Running::find(&model, &guest, guest.vcpus()).unwrap();
        let before = census::take(&kernel, &guest).unwrap();
        let frames = |census: &census::Census| {
            let stack = census.stacks().find(|stack| stack.task.address == plan.tasks[0]).unwrap();
            assert_eq!(stack.outcome, Outcome::Complete, "{name}: {stack:?}");
            stack.frames.clone()
        };
        let expected = frames(&before);
        let slot = expected[1].slot.unwrap();
        assert!(slot.0 >= registers.rsp, "{name}");
        let record = plan.stacks[7].wrapping_add(0x100);
        let words = [
            (slot, trampoline.0),
            (record.wrapping_add(node("ret_addr")), expected[1].address.0),
            (record.wrapping_add(node("frame")), slot.0),
            (plan.tasks[0].wrapping_add(types.offset("task_struct", "rethooks").unwrap()), {
                record.wrapping_add(node("llist")).0
            }),
            // The processor still says that it runs the task before.
            (plan.areas[0].wrapping_add(plan.layout.current), plan.tasks[5].0),
        ];
        for (at, word) in words {
            guest.write((physical(at), word));
        }
        let kernel = Running::find(&model, &guest, guest.vcpus()).unwrap();
        assert_eq!(frames(&census::take(&kernel, &guest).unwrap()), expected, "{name}");
    }
}
