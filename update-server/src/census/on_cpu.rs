//! Whose stack each vCPU is on.

use std::collections::HashMap;

use super::Found;
use super::doubt::Doubt;
use super::stacks::{self, CpuStacks};
use super::task::Task;
use super::tasks;
use super::unwind::{Unwinder, Walk};
use crate::addr::Gva;
use crate::guest::{Memory, Paused};
use crate::kernel::running::Running;

/// The tasks that vCPUs run, each with what was found on its stack.
#[derive(Debug)]
pub(super) struct OnCpu {
    walks: HashMap<Gva, (Found, Walk)>,
}

impl OnCpu {
    /// Walks the stack of each vCPU that is in the kernel.
    pub(super) fn find<M: Paused>(
        kernel: &Running<'_, M>,
        guest: &M,
        cpus: &[CpuStacks],
        unwinder: &Unwinder<'_, '_, M>,
        doubts: &mut Vec<Doubt>,
    ) -> Self {
        let mut walks = HashMap::new();
        let mut by_stack = None;
        for vcpu in guest.vcpus().iter().filter(|vcpu| stacks::is_in_kernel(vcpu)) {
            // Left behind by a kernel that was there before, it has no stack of this one.
            if !kernel.is_run_by(vcpu) {
                continue;
            }
            let Some(cpu) = stacks::cpu_of(kernel, vcpu, cpus) else {
                doubts.push(Doubt::NoCpu { vcpu: vcpu.id });
                continue;
            };
            let walk = unwinder.on_cpu(vcpu, cpu);
            match owner(kernel, cpus, cpu, walk.last_stack, &mut by_stack, doubts) {
                Some(task) => drop(walks.insert(task, (Found::OnCpu { vcpu: vcpu.id }, walk))),
                None => doubts.push(Doubt::NoTask {
                    vcpu: vcpu.id,
                    at: Gva(vcpu.rip),
                    stack: walk.last_stack,
                    task: cpu.current,
                }),
            }
        }
        Self { walks }
    }

    /// The tasks.
    pub(super) fn tasks(&self) -> impl Iterator<Item = Gva> {
        self.walks.keys().copied()
    }

    /// What was found of one of them.
    pub(super) fn take(&mut self, task: Gva) -> Option<(Found, Walk)> {
        self.walks.remove(&task)
    }
}

/// The task that a processor is on the stack of.
///
/// The processor's own record is behind or ahead for a moment when tasks switch; the stack is not. In user space, and before
/// and behind the switch to a task's stack, there is only the record. Where neither is of use, all tasks are asked: once, and what
/// they say is kept in `by_stack` for the other processors.
fn owner(
    kernel: &Running<'_, impl Memory>,
    cpus: &[CpuStacks],
    cpu: &CpuStacks,
    stack: Option<Gva>,
    by_stack: &mut Option<HashMap<Gva, Gva>>,
    doubts: &mut Vec<Doubt>,
) -> Option<Gva> {
    let Some(stack) = stack else { return Some(cpu.current).filter(|task| task.0 != 0) };
    let has_it = |&task: &Gva| Task::stack_of(kernel, task) == Ok(stack);
    let near = [cpu.current, cpu.queue_current].into_iter().find(has_it);
    near.or_else(|| {
        let known = by_stack.get_or_insert_with(|| all_by_stack(kernel, cpus, doubts));
        known.get(&stack).copied()
    })
}

/// Every task by the lower end of its stack; the first of those that claim the same one.
fn all_by_stack(
    kernel: &Running<'_, impl Memory>,
    cpus: &[CpuStacks],
    doubts: &mut Vec<Doubt>,
) -> HashMap<Gva, Gva> {
    let mut by_stack = HashMap::new();
    for task in tasks::all(kernel, cpus, doubts) {
        if let Ok(stack) = Task::stack_of(kernel, task) {
            by_stack.entry(stack).or_insert(task);
        }
    }
    by_stack
}
