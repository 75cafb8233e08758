//! Tasks that wait for a processor, by its run queue: those that are about to end have left every other list.

use std::collections::HashSet;
use std::ops::Range;

use super::doubt::{self, Doubt};
use crate::addr::Gva;
use crate::bytes::u64_at;
use crate::guest::Memory;
use crate::kernel::list::{self, End};
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;
use crate::limits::TASKS;

/// Priorities of real-time tasks, each with a list of its own (`include/linux/sched/prio.h`, `MAX_RT_PRIO`).
const REAL_TIME: usize = 100;
/// Bytes of `struct list_head`: two pointers (`include/linux/types.h`).
const LIST_HEAD: usize = 16;

/// Looks at one run queue after the other, and at only so many places in all.
#[derive(Debug)]
pub(super) struct Queues<'a, 'g, M> {
    kernel: &'a Running<'g, M>,
    looked_at: usize,
    doubts: &'a mut Vec<Doubt>,
}

impl<'a, 'g, M: Memory> Queues<'a, 'g, M> {
    pub(super) fn new(kernel: &'a Running<'g, M>, doubts: &'a mut Vec<Doubt>) -> Self {
        Self { kernel, looked_at: 0, doubts }
    }

    /// Adds every task on the run queue at `queue` to `found`.
    pub(super) fn tasks(&mut self, queue: Gva, found: &mut Vec<Gva>) {
        if let Err(source) = self.follow(queue, found) {
            self.doubts.push(Doubt::Unreadable { what: "a run queue", source });
        }
    }

    fn follow(&mut self, queue: Gva, found: &mut Vec<Gva>) -> Result<(), ReadError> {
        let layout = &self.kernel.model().layout;
        let (run_queue, task) = (&layout.run_queue, &layout.task);
        self.list(queue.wrapping_add(run_queue.fair_tasks), task.group_node, found)?;
        let first = queue.wrapping_add(run_queue.real_time);
        // Nearly all of them are empty, which is a head that leads to itself.
        let heads: [u8; REAL_TIME * LIST_HEAD] = self.kernel.space().array(first)?;
        for from in (0..heads.len()).step_by(LIST_HEAD) {
            let head = first.wrapping_add(from as u64);
            if u64_at(&heads, from) != Some(head.0) {
                self.list(head, task.real_time_node, found)?;
            }
        }
        let root = self.kernel.space().pointer(queue.wrapping_add(run_queue.deadline))?;
        let own = queue..queue.wrapping_add(layout.run_queue_bytes);
        self.tree(root, task.deadline_node, &own, found)
    }

    /// Whether another place may be looked at.
    fn go_on(&mut self, what: &'static str) -> bool {
        self.looked_at += 1;
        if self.looked_at == TASKS {
            self.doubts.push(Doubt::Endless { what });
        }
        self.looked_at < TASKS
    }

    /// The list at `head`, by the offset of its links in a task.
    fn list(&mut self, head: Gva, node: u64, found: &mut Vec<Gva>) -> Result<(), ReadError> {
        let end = list::walk(self.kernel.space(), head, |link| {
            let more = self.go_on("a run queue");
            if more {
                found.push(Gva(link.0.wrapping_sub(node)));
            }
            Ok(more)
        })?;
        if end == End::Circle {
            doubt::note(self.doubts, Doubt::Endless { what: "a run queue" });
        }
        Ok(())
    }

    /// Tasks with deadlines are in a tree (`include/linux/rbtree_types.h`): each node has its parent, then its two children. A
    /// node in the run queue's `own` memory is no task's: it stands for all that have no deadline, lest they starve
    /// (`kernel/sched/fair.c`, `fair_server_init`; since 6.8).
    fn tree(
        &mut self,
        root: Gva,
        node: u64,
        own: &Range<Gva>,
        found: &mut Vec<Gva>,
    ) -> Result<(), ReadError> {
        let mut seen = HashSet::new();
        let mut left = vec![root];
        while let Some(at) = left.pop() {
            if at.0 == 0 {
                continue;
            }
            if !seen.insert(at) || !self.go_on("the tree of tasks with deadlines") {
                break;
            }
            if !own.contains(&at) {
                found.push(Gva(at.0.wrapping_sub(node)));
            }
            let space = self.kernel.space();
            left.extend([space.pointer(at.wrapping_add(8))?, space.pointer(at.wrapping_add(16))?]);
        }
        Ok(())
    }
}
