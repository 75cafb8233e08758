//! Returns that the guest's tracers have taken over: on the stack is their trampoline's address, and the real one in a list of
//! the task's (`kernel/trace/rethook.c`, `kernel/trace/fgraph.c`; Linux 6.1 and 6.12).

use std::ops::Range;

use super::model::Model;
use super::running::Running;
use super::space::ReadError;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::{Btf, TypeError};
use crate::limits::HOOKS;
use crate::steps::Steps;

/// How to find the real address behind each kind of trampoline, in a kernel that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hooks {
    probe: Option<ProbeHooks>,
    graph: Option<GraphHooks>,
}

/// Of kretprobes and fprobes.
#[derive(Debug, Clone, Copy)]
struct ProbeHooks {
    trampoline: Gva,
    /// Offset of the list's head in a task, of its link in a node, of the return address, and of where that was.
    head: u64,
    link: u64,
    address: u64,
    slot: u64,
}

/// Of the function graph tracer.
#[derive(Debug, Clone, Copy)]
struct GraphHooks {
    trampoline: Gva,
    /// Offset of the shadow stack in a task, and of how far it is filled.
    stack: u64,
    filled: u64,
    /// Bytes from one place where an entry may begin to the next: entries have one size in 6.1, and words between them since.
    step: u64,
    /// Offset of the return address in an entry, and of where that was.
    address: u64,
    slot: u64,
}

impl Hooks {
    pub(super) fn of(types: &Btf, one: impl Fn(&str) -> Option<Gva>) -> Self {
        let probe = || -> Result<Option<ProbeHooks>, TypeError> {
            let Some(trampoline) = one("arch_rethook_trampoline") else { return Ok(None) };
            Ok(Some(ProbeHooks {
                trampoline,
                head: types.offset("task_struct", "rethooks")?,
                link: types.offset("rethook_node", "llist")?,
                address: types.offset("rethook_node", "ret_addr")?,
                slot: types.offset("rethook_node", "frame")?,
            }))
        };
        let graph = || -> Result<Option<GraphHooks>, TypeError> {
            let Some(trampoline) = one("return_to_handler") else { return Ok(None) };
            // 6.11 made the array of entries one of words.
            let words = one("fgraph_array").is_some();
            Ok(Some(GraphHooks {
                trampoline,
                stack: types.offset("task_struct", "ret_stack")?,
                filled: types.offset("task_struct", "curr_ret_stack")?,
                step: if words { 8 } else { types.size_of("ftrace_ret_stack")? },
                address: types.offset("ftrace_ret_stack", "ret")?,
                slot: types.offset("ftrace_ret_stack", "retp")?,
            }))
        };
        Self { probe: probe().unwrap_or(None), graph: graph().unwrap_or(None) }
    }
}

/// What a hooked return comes to: code that calls the tracer and then goes on to where the call came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookTrampoline {
    /// Its code.
    pub text: Range<Gva>,
    /// Whether it begins by putting its own address back to where the return address was, and the tracer the real one
    /// (`arch/x86/kernel/rethook.c`).
    pub restores: bool,
}

/// The trampoline that an instruction at `at` is in.
pub fn trampoline_at(kernel: &Running<'_, impl Memory>, at: Gva) -> Option<HookTrampoline> {
    let Model { hooks, .. } = kernel.model();
    let probe = hooks.probe.map(|probe| (probe.trampoline, true));
    let graph = hooks.graph.map(|graph| (graph.trampoline, false));
    let linked = kernel.linked(at);
    [probe, graph].into_iter().flatten().find_map(|(start, restores)| {
        let end = kernel.model().image().symbols().next_behind(start)?;
        let text = kernel.now(start)..kernel.now(end);
        (start <= linked && linked < end).then_some(HookTrampoline { text, restores })
    })
}

/// The address that a task returns to from `slot`, if `found`, which is there, is a trampoline's; `None` if it is one and
/// the task has no such return, or `steps` of its records were looked at.
pub fn real_return(
    kernel: &Running<'_, impl Memory>,
    task: Gva,
    found: Gva,
    slot: Gva,
    steps: &Steps,
) -> Result<Option<Gva>, ReadError> {
    let Model { hooks, .. } = kernel.model();
    let space = kernel.space();
    if let Some(probe) = hooks.probe
        && found == kernel.now(probe.trampoline)
    {
        let mut node = space.pointer(task.wrapping_add(probe.head))?;
        for _ in 0..HOOKS {
            if node.0 == 0 || !steps.take() {
                break;
            }
            let start = Gva(node.0.wrapping_sub(probe.link));
            let address = space.pointer(start.wrapping_add(probe.address))?;
            // Several on one function have one slot; the first to come saw the real address there.
            if space.pointer(start.wrapping_add(probe.slot))? == slot && address != found {
                return Ok(Some(address));
            }
            node = space.pointer(node)?;
        }
        return Ok(None);
    }
    if let Some(graph) = hooks.graph
        && found == kernel.now(graph.trampoline)
    {
        let stack = space.pointer(task.wrapping_add(graph.stack))?;
        let filled = space.u32(task.wrapping_add(graph.filled))?.cast_signed();
        // 6.1 counts from the last entry that is in use, 6.12 from the first that is not.
        let last = u64::try_from(filled).unwrap_or(0).min(HOOKS);
        for index in (0..=last).rev().take_while(|_| steps.take()) {
            let start = stack.wrapping_add(index * graph.step);
            let address = space.pointer(start.wrapping_add(graph.address))?;
            if space.pointer(start.wrapping_add(graph.slot))? == slot && address != found {
                return Ok(Some(address));
            }
        }
        return Ok(None);
    }
    Ok(Some(found))
}
