//! Where every task is: those on the kernel's list, the idle ones, and those on a run queue that have left the list.

use std::collections::HashSet;

use super::doubt::{self, Doubt};
use super::queues::Queues;
use super::stacks::CpuStacks;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::kernel::list::{self, End};
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;
use crate::limits::{TASK_LINKS, TASKS};
use crate::steps::Steps;

/// Finds all of them; none comes twice. What cannot be followed becomes a doubt.
pub(super) fn all(
    kernel: &Running<'_, impl Memory>,
    cpus: &[CpuStacks],
    doubts: &mut Vec<Doubt>,
) -> Vec<Gva> {
    let mut tasks = Tasks::lasting(kernel, cpus, doubts);
    for task in with_processors(kernel, cpus, doubts) {
        tasks.add(task);
    }
    tasks.list
}

/// Finds those that are on the list, and the idle ones.
pub(super) fn lasting(
    kernel: &Running<'_, impl Memory>,
    cpus: &[CpuStacks],
    doubts: &mut Vec<Doubt>,
) -> Vec<Gva> {
    Tasks::lasting(kernel, cpus, doubts).list
}

/// Those that have a processor, wait for one, or are one's idle task: some of them may have left the list.
pub(super) fn with_processors(
    kernel: &Running<'_, impl Memory>,
    cpus: &[CpuStacks],
    doubts: &mut Vec<Doubt>,
) -> Vec<Gva> {
    let mut queues = Queues::new(kernel, doubts);
    let mut found = Vec::new();
    for cpu in cpus {
        found.extend([cpu.idle, cpu.current, cpu.queue_current]);
        queues.tasks(cpu.run_queue, &mut found);
    }
    found
}

struct Tasks<'a, 'g, M> {
    kernel: &'a Running<'g, M>,
    seen: HashSet<Gva>,
    list: Vec<Gva>,
    /// Links that may still be followed.
    links: Steps,
}

impl<'a, 'g, M: Memory> Tasks<'a, 'g, M> {
    fn lasting(kernel: &'a Running<'g, M>, cpus: &[CpuStacks], doubts: &mut Vec<Doubt>) -> Self {
        let mut tasks =
            Self { kernel, seen: HashSet::new(), list: Vec::new(), links: Steps::new(TASK_LINKS) };
        if let Err(source) = tasks.on_the_list(doubts) {
            doubts.push(Doubt::Unreadable { what: "the list of tasks", source });
        }
        for cpu in cpus {
            tasks.add(cpu.idle);
        }
        tasks
    }

    /// Processes, by their first threads; then each one's threads.
    fn on_the_list(&mut self, doubts: &mut Vec<Doubt>) -> Result<(), ReadError> {
        let init = self.kernel.now(self.kernel.model().symbols.init_task);
        let layout = &self.kernel.model().layout.task;
        let mut leader = init;
        loop {
            self.threads(leader, doubts)?;
            let link = self.kernel.space().pointer(leader.wrapping_add(layout.tasks))?;
            leader = Gva(link.0.wrapping_sub(layout.tasks));
            if leader == init {
                return Ok(());
            }
            // What comes twice comes for ever.
            if !self.may_follow() || self.seen.contains(&leader) {
                doubts.push(Doubt::Endless { what: "the list of tasks" });
                return Ok(());
            }
        }
    }

    /// A process, its first thread being `leader`.
    fn threads(&mut self, leader: Gva, doubts: &mut Vec<Doubt>) -> Result<(), ReadError> {
        let layout = &self.kernel.model().layout;
        self.add(leader);
        let space = self.kernel.space();
        let signal = space.pointer(leader.wrapping_add(layout.task.signal))?;
        let head = signal.wrapping_add(layout.thread_head);
        let end = list::walk(space, head, |link| {
            self.add(Gva(link.0.wrapping_sub(layout.task.thread_node)));
            Ok(self.may_follow())
        })?;
        if end != End::Head {
            doubt::note(doubts, Doubt::Endless { what: "a list of threads" });
        }
        Ok(())
    }

    /// Whether one more link may be followed. A list that was followed before costs as much as any other.
    fn may_follow(&self) -> bool {
        !self.is_full() && self.links.take()
    }

    fn is_full(&self) -> bool {
        self.list.len() >= TASKS
    }

    fn add(&mut self, at: Gva) {
        if at.0 != 0 && !self.is_full() && self.seen.insert(at) {
            self.list.push(at);
        }
    }
}
