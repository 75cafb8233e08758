//! Where on which stacks a walk may go.

use super::doubt::Doubt;
use super::stacks::{CpuStacks, StackKind};
use crate::addr::Gva;

/// The stacks that a walk may be on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds<'c> {
    pub(super) cpu: Option<&'c CpuStacks>,
    /// The lower end of the task's stack, once it is known.
    pub(super) task: Option<Gva>,
    pub(super) task_bytes: u64,
    /// Whose records of what tracers have done to the stack are looked at. While tasks switch, a processor has two answers to
    /// whose stack it is on; a record is about one place of one stack.
    pub(super) owners: [Gva; 2],
}

impl Bounds<'_> {
    /// Whether 8 bytes at `at` are on one of the stacks.
    pub(super) fn check(&mut self, at: Gva) -> Result<(), Doubt> {
        match self.stack_of(at) {
            Some(_) => Ok(()),
            // A vCPU's task is told by its stack, which is where its processor's own stacks lead to.
            None if self.task.is_none() && at.0 >> 63 == 1 => {
                self.task = Some(Gva(at.0 & !(self.task_bytes - 1)));
                Ok(())
            }
            None => Err(Doubt::OffStack { at }),
        }
    }

    fn stack_of(&self, at: Gva) -> Option<(StackKind, Gva)> {
        let fits = |start: Gva, end: Gva| at >= start && at.0 <= end.0.wrapping_sub(8);
        if let Some(start) = self.task.filter(|&start| fits(start, start.wrapping_add(self.task_bytes))) {
            return Some((StackKind::Task, start));
        }
        let ranges = self.cpu.into_iter().flat_map(|cpu| &cpu.ranges);
        ranges
            .into_iter()
            .find(|(_, range)| fits(range.start, range.end))
            .map(|(kind, range)| (*kind, range.start))
    }

    /// A frame further out is further up on the same stack.
    pub(super) fn check_direction(&self, before: Gva, now: Gva) -> Result<(), Doubt> {
        let same = self.stack_of(before).is_some() && self.stack_of(before) == self.stack_of(now);
        if same && now <= before { Err(Doubt::Circle { at: before }) } else { Ok(()) }
    }

    /// The upper ends of the stacks on which the processor may have left user space.
    pub(super) fn tops(&self) -> Vec<Gva> {
        let task = self.task.map(|start| start.wrapping_add(self.task_bytes));
        let ranges = self.cpu.into_iter().flat_map(|cpu| &cpu.ranges);
        let exceptions = ranges.filter(|(kind, _)| *kind == StackKind::Exception).map(|(_, range)| range.end);
        task.into_iter().chain(exceptions).collect()
    }
}
