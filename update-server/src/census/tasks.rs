//! Every task: those on the kernel's list, the idle ones, and those on a run queue that have left the list.

use std::collections::HashSet;

use super::doubt::Doubt;
use super::stacks::CpuStacks;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;
use crate::limits::TASKS;

/// What a task is doing, as far as the scheduler knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It has a processor.
    OnCpu,
    /// It waits for one.
    Runnable,
    /// It sleeps.
    Sleeping,
    /// It sleeps and cannot be interrupted.
    Uninterruptible,
    /// It is stopped, by a signal or a debugger.
    Stopped,
    /// It has ended.
    Dead,
}

impl Activity {
    /// `__state` and `exit_state` (include/linux/sched.h: `TASK_*`, `EXIT_*`).
    fn new(on_cpu: bool, state: u32, exit_state: u32) -> Self {
        match state {
            _ if on_cpu => Self::OnCpu,
            _ if exit_state != 0 || state & 0x80 != 0 => Self::Dead,
            0 => Self::Runnable,
            _ if state & 0x0c != 0 => Self::Stopped,
            _ if state & 0x02 != 0 => Self::Uninterruptible,
            _ => Self::Sleeping,
        }
    }

    /// One letter, as ps(1) has it.
    pub fn letter(self) -> char {
        match self {
            Self::OnCpu | Self::Runnable => 'R',
            Self::Sleeping => 'S',
            Self::Uninterruptible => 'D',
            Self::Stopped => 'T',
            Self::Dead => 'Z',
        }
    }
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its `task_struct`.
    pub address: Gva,
    /// The lower end of its kernel stack; 0 if it has none any more.
    pub stack: Gva,
    /// What it returns to when it is next given a processor: its stack pointer then.
    pub sp: Gva,
    /// Its number; 0 for idle tasks.
    pub pid: u32,
    /// That of its process.
    pub tgid: u32,
    /// Its name.
    pub comm: String,
    /// Whether it has no user space.
    pub kernel_thread: bool,
    /// What it is doing.
    pub activity: Activity,
    /// How often it has been switched out.
    pub switches: u64,
    /// When it began, in nanoseconds of the guest's monotonic clock.
    pub start_time: u64,
    /// The processor whose idle task it is.
    pub idle_of: Option<u32>,
}

const PF_KTHREAD: u32 = 0x0020_0000;

/// Finds all of them. What cannot be followed becomes a doubt.
pub(super) fn all(
    kernel: &Running<'_, impl Memory>,
    cpus: &[CpuStacks],
    doubts: &mut Vec<Doubt>,
) -> Result<Vec<Task>, ReadError> {
    let mut tasks = Tasks { kernel, seen: HashSet::new(), list: Vec::new() };
    let init = kernel.now(kernel.model().symbols.init_task);
    let layout = &kernel.model().layout.task;
    // Processes, by their first threads; then each one's threads.
    let mut leader = init;
    loop {
        tasks.threads(leader, doubts)?;
        let link = kernel.space().pointer(leader.wrapping_add(layout.tasks))?;
        leader = Gva(link.0.wrapping_sub(layout.tasks));
        if leader == init {
            break;
        }
        if tasks.list.len() >= TASKS {
            doubts.push(Doubt::Endless { what: "the list of tasks" });
            break;
        }
    }
    for cpu in cpus {
        tasks.add(cpu.idle, Some(cpu.cpu))?;
        // Those that have a processor may have left the list.
        for task in [cpu.current, cpu.queue_current] {
            tasks.add(task, None)?;
        }
        for task in tasks.queued(cpu, doubts)? {
            tasks.add(task, None)?;
        }
    }
    Ok(tasks.list)
}

struct Tasks<'a, 'g, M> {
    kernel: &'a Running<'g, M>,
    seen: HashSet<Gva>,
    list: Vec<Task>,
}

impl<M: Memory> Tasks<'_, '_, M> {
    /// A process, its first thread being `leader`.
    fn threads(&mut self, leader: Gva, doubts: &mut Vec<Doubt>) -> Result<(), ReadError> {
        let layout = &self.kernel.model().layout;
        self.add(leader, None)?;
        let space = self.kernel.space();
        let signal = space.pointer(leader.wrapping_add(layout.task.signal))?;
        let head = signal.wrapping_add(layout.thread_head);
        let mut link = space.pointer(head)?;
        while link != head {
            if self.list.len() >= TASKS {
                doubts.push(Doubt::Endless { what: "a list of threads" });
                break;
            }
            self.add(Gva(link.0.wrapping_sub(layout.task.thread_node)), None)?;
            link = space.pointer(link)?;
        }
        Ok(())
    }

    /// Those that wait for a processor, of the ordinary scheduling class.
    fn queued(&self, cpu: &CpuStacks, doubts: &mut Vec<Doubt>) -> Result<Vec<Gva>, ReadError> {
        let layout = &self.kernel.model().layout;
        let mut found = Vec::new();
        let mut link = self.kernel.space().pointer(cpu.fair_tasks)?;
        while link != cpu.fair_tasks {
            if found.len() >= TASKS {
                doubts.push(Doubt::Endless { what: "a run queue" });
                break;
            }
            found.push(Gva(link.0.wrapping_sub(layout.task.group_node)));
            link = self.kernel.space().pointer(link)?;
        }
        Ok(found)
    }

    fn add(&mut self, at: Gva, idle_of: Option<u32>) -> Result<(), ReadError> {
        // The first idle task is also what the list of tasks begins with.
        if idle_of.is_some()
            && let Some(known) = self.list.iter_mut().find(|task| task.address == at)
        {
            known.idle_of = idle_of;
        }
        if at.0 == 0 || !self.seen.insert(at) {
            return Ok(());
        }
        let (space, model) = (self.kernel.space(), self.kernel.model());
        let layout = &model.layout.task;
        let word = |offset| space.u64(at.wrapping_add(offset));
        let half = |offset| space.u32(at.wrapping_add(offset));
        let state = half(layout.state)?;
        let exit_state = half(layout.exit_state)?;
        self.list.push(Task {
            address: at,
            stack: Gva(word(layout.stack)?),
            sp: Gva(word(layout.sp)?),
            pid: half(layout.pid)?,
            tgid: half(layout.tgid)?,
            comm: space.text(at.wrapping_add(layout.comm), model.layout.comm_bytes)?,
            kernel_thread: half(layout.flags)? & PF_KTHREAD != 0,
            activity: Activity::new(half(layout.on_cpu)? != 0, state, exit_state),
            switches: word(layout.voluntary_switches)?.wrapping_add(word(layout.involuntary_switches)?),
            start_time: word(layout.start_time)?,
            idle_of,
        });
        Ok(())
    }
}
