//! Where the kernel's structures have what changes when tasks do.

use update_server::addr::Gva;
use update_server::kernel::model::Model;

/// Offsets in bytes, in the structures that the comments name, and two variables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    // `struct task_struct`
    pub(crate) links: u64,
    pub(crate) pointer: u64,
    pub(crate) state: u64,
    pub(crate) on_cpu: u64,
    pub(crate) voluntary: u64,
    pub(crate) involuntary: u64,
    pub(crate) started: u64,
    // `struct rq`
    pub(crate) lock: u64,
    pub(crate) queue_switches: u64,
    pub(crate) queue_current: u64,
    // A processor's own data
    pub(crate) queue: u64,
    pub(crate) current: u64,
    /// Bytes of `struct inactive_task_frame`, and where in it the return address is.
    pub(crate) frame: u64,
    pub(crate) frame_return: u64,
    /// `nr_threads`
    pub(crate) threads: Gva,
    /// `total_forks`
    pub(crate) forks: Gva,
    /// `tasklist_lock`, and what is there when nobody has it and when somebody writes (`include/asm-generic/qrwlock.h`).
    pub(crate) lists_lock: Gva,
    pub(crate) unlocked: u32,
    pub(crate) write_locked: u32,
}

impl Layout {
    pub(crate) fn of(model: &Model) -> Self {
        let types = model.image().types();
        let task = |member| types.offset("task_struct", member).unwrap();
        let queue = |member| types.offset("rq", member).unwrap();
        let symbol = |name| model.image().symbols().only(name).unwrap().address;
        Self {
            links: task("tasks"),
            pointer: task("thread.sp"),
            state: task("__state"),
            on_cpu: task("on_cpu"),
            voluntary: task("nvcsw"),
            involuntary: task("nivcsw"),
            started: task("start_time"),
            lock: queue("__lock"),
            queue_switches: queue("nr_switches"),
            queue_current: queue("curr"),
            queue: symbol("runqueues").0,
            current: hot(model, "current_task"),
            frame: types.size_of("inactive_task_frame").unwrap(),
            frame_return: types.offset("inactive_task_frame", "ret_addr").unwrap(),
            threads: symbol("nr_threads"),
            forks: symbol("total_forks"),
            lists_lock: symbol("tasklist_lock"),
            unlocked: 0,
            write_locked: 0xff,
        }
    }
}

/// Offset in each processor's own data of a variable that is a member of `pcpu_hot` since 6.2.
pub(crate) fn hot(model: &Model, member: &str) -> u64 {
    let symbol = |name| model.image().symbols().only(name).unwrap().address.0;
    match model.image().types().offset("pcpu_hot", member) {
        Ok(offset) => symbol("pcpu_hot") + offset,
        Err(_) => symbol(member),
    }
}
