//! Tasks that wait for a processor, by its run queue: those that are about to end have left every other list.

use std::collections::HashSet;

use super::doubt::Doubt;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::kernel::list::{self, End};
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;
use crate::limits::TASKS;

/// Priorities of real-time tasks, each with a list of its own (`include/linux/sched/prio.h`, `MAX_RT_PRIO`).
const REAL_TIME: u64 = 100;

/// Looks at one run queue after the other, and at only so many places in all.
#[derive(Debug, Default)]
pub(super) struct Queues {
    looked_at: usize,
}

impl Queues {
    /// Every task on the run queue at `queue`.
    pub(super) fn tasks(
        &mut self,
        kernel: &Running<'_, impl Memory>,
        queue: Gva,
        doubts: &mut Vec<Doubt>,
    ) -> Result<Vec<Gva>, ReadError> {
        let layout = &kernel.model().layout;
        let (run_queue, task) = (&layout.run_queue, &layout.task);
        let mut found = Vec::new();
        let fair = queue.wrapping_add(run_queue.fair_tasks);
        self.list(kernel, fair, task.group_node, &mut found, doubts)?;
        for priority in 0..REAL_TIME {
            let head = queue.wrapping_add(run_queue.real_time + priority * layout.list_bytes);
            self.list(kernel, head, task.real_time_node, &mut found, doubts)?;
        }
        let root = kernel.space().pointer(queue.wrapping_add(run_queue.deadline))?;
        self.tree(kernel, root, task.deadline_node, &mut found, doubts)?;
        Ok(found)
    }

    /// Whether another place may be looked at.
    fn go_on(&mut self, what: &'static str, doubts: &mut Vec<Doubt>) -> bool {
        self.looked_at += 1;
        if self.looked_at == TASKS {
            doubts.push(Doubt::Endless { what });
        }
        self.looked_at < TASKS
    }

    fn list(
        &mut self,
        kernel: &Running<'_, impl Memory>,
        head: Gva,
        node: u64,
        found: &mut Vec<Gva>,
        doubts: &mut Vec<Doubt>,
    ) -> Result<(), ReadError> {
        let end = list::walk(kernel.space(), head, |link| {
            let more = self.go_on("a run queue", doubts);
            if more {
                found.push(Gva(link.0.wrapping_sub(node)));
            }
            Ok(more)
        })?;
        if end == End::Circle {
            doubts.push(Doubt::Endless { what: "a run queue" });
        }
        Ok(())
    }

    /// Tasks with deadlines are in a tree (`include/linux/rbtree_types.h`): each node has its parent, then its two children.
    fn tree(
        &mut self,
        kernel: &Running<'_, impl Memory>,
        root: Gva,
        node: u64,
        found: &mut Vec<Gva>,
        doubts: &mut Vec<Doubt>,
    ) -> Result<(), ReadError> {
        let mut seen = HashSet::new();
        let mut left = vec![root];
        while let Some(at) = left.pop() {
            if at.0 == 0 {
                continue;
            }
            if !seen.insert(at) || !self.go_on("the tree of tasks with deadlines", doubts) {
                break;
            }
            found.push(Gva(at.0.wrapping_sub(node)));
            left.extend([
                kernel.space().pointer(at.wrapping_add(8))?,
                kernel.space().pointer(at.wrapping_add(16))?,
            ]);
        }
        Ok(())
    }
}
