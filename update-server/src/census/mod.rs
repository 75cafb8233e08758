//! One look at every kernel stack there is.
//!
//! What is found is evidence and no judgement: for each stack the frames on it, and whether they are all of them. Doubt is
//! an answer of its own, [`Outcome::Unprovable`], with what could not be proven.

mod bounds;
mod code;
mod doubt;
mod patched;
mod queues;
mod stacks;
mod tasks;
mod unwind;

use crate::addr::Gva;
use crate::guest::Paused;
use crate::kernel::modules::{Module, modules};
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;
use crate::kernel::trampolines::{Trampoline, trampolines};

pub use code::{Code, CodeKind};
pub use doubt::{Doubt, Outcome};
pub use stacks::StackKind;
pub use tasks::{Activity, Task};
pub use unwind::Frame;

use stacks::CpuStacks;
use unwind::Unwinder;

/// What a stack was found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A vCPU runs on it, or would if it were not paused.
    OnCpu {
        /// Its number.
        vcpu: u32,
    },
    /// Its task was switched out.
    SwitchedOut,
    /// Its task has never run.
    New,
}

/// One task's kernel stack, with the interrupt and exception stacks that a vCPU has gone on to from it.
#[derive(Debug, Clone)]
pub struct Stack {
    /// Whose it is.
    pub task: Task,
    /// How it was found.
    pub found: Found,
    /// From the innermost frame out.
    pub frames: Vec<Frame>,
    /// Whether these are all.
    pub outcome: Outcome,
}

/// All stacks, and what stood in the way of finding more.
#[derive(Debug, Clone)]
pub struct Census {
    /// One for each task that was found.
    pub stacks: Vec<Stack>,
    /// The modules that were loaded.
    pub modules: Vec<Module>,
    /// The trampolines that ftrace had made.
    pub trampolines: Vec<Trampoline>,
    /// What was not found that should be there, or found where it should not be.
    pub doubts: Vec<Doubt>,
}

/// Looks at every stack of a guest that stands still.
pub fn take<M: Paused>(kernel: &Running<'_, M>, guest: &M) -> Result<Census, ReadError> {
    let mut doubts = Vec::new();
    let (modules, end) = modules(kernel);
    doubts.extend(end.map(|source| Doubt::Unreadable { what: "the list of modules", source }));
    let trampolines = trampolines(kernel)?;
    let code = Code::new(kernel, &modules, &trampolines);
    let areas = kernel.per_cpu_areas()?;
    let cpus: Vec<CpuStacks> = areas
        .iter()
        .enumerate()
        .filter_map(|(cpu, area)| area.map(|area| CpuStacks::read(kernel, cpu, area)))
        .collect::<Result<_, _>>()?;
    let tasks = tasks::all(kernel, &cpus, &mut doubts);
    let unwinder = Unwinder::new(kernel, &code);
    let mut stacks: Vec<Option<Stack>> = tasks.iter().map(|_| None).collect();
    for vcpu in guest.vcpus().iter().filter(|vcpu| stacks::is_in_kernel(vcpu)) {
        let Some(cpu) = stacks::cpu_of(kernel, vcpu, &cpus) else {
            doubts.push(Doubt::NoCpu { vcpu: vcpu.id });
            continue;
        };
        let walk = unwinder.on_cpu(vcpu, cpu);
        // The processor's own record is behind or ahead for a moment when tasks switch; the stack is not. In user space,
        // and before and behind the switch to a task's stack, there is only the record.
        let is_its = |task: &Task| match walk.last_stack {
            Some(stack) => task.stack == stack,
            None => task.address == cpu.current,
        };
        match tasks.iter().position(is_its) {
            Some(index) => {
                let found = Found::OnCpu { vcpu: vcpu.id };
                let task = tasks[index].clone();
                stacks[index] = Some(Stack { task, found, frames: walk.frames, outcome: walk.outcome });
            }
            None => doubts.push(Doubt::NoTask {
                vcpu: vcpu.id,
                at: Gva(vcpu.rip),
                stack: walk.last_stack,
                task: cpu.current,
            }),
        }
    }
    let finish = |(task, stack): (Task, Option<Stack>)| stack.unwrap_or_else(|| unwinder.switched_out(task));
    let stacks = tasks.into_iter().zip(stacks).map(finish).collect();
    Ok(Census { stacks, modules, trampolines, doubts })
}
