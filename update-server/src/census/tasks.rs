//! Every task: those on the kernel's list, the idle ones, and those on a run queue that have left the list.

use std::collections::HashMap;

use super::doubt::Doubt;
use super::queues::Queues;
use super::stacks::CpuStacks;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::kernel::list::{self, End};
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
) -> Vec<Task> {
    let mut tasks = Tasks { kernel, seen: HashMap::new(), list: Vec::new(), queues: Queues::default() };
    if let Err(source) = tasks.on_the_list(doubts) {
        doubts.push(Doubt::Unreadable { what: "the list of tasks", source });
    }
    for cpu in cpus {
        if tasks.is_full() {
            break;
        }
        if let Err(source) = tasks.of_cpu(cpu, doubts) {
            doubts.push(Doubt::Unreadable { what: "a run queue", source });
        }
    }
    tasks.list
}

struct Tasks<'a, 'g, M> {
    kernel: &'a Running<'g, M>,
    /// Where in the list each is.
    seen: HashMap<Gva, usize>,
    list: Vec<Task>,
    queues: Queues,
}

impl<M: Memory> Tasks<'_, '_, M> {
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
            if self.is_full() || self.seen.contains_key(&leader) {
                doubts.push(Doubt::Endless { what: "the list of tasks" });
                return Ok(());
            }
        }
    }

    /// Those that have a processor, or wait for it, and may have left the list.
    fn of_cpu(&mut self, cpu: &CpuStacks, doubts: &mut Vec<Doubt>) -> Result<(), ReadError> {
        self.add(cpu.idle, Some(cpu.cpu))?;
        for task in [cpu.current, cpu.queue_current] {
            self.add(task, None)?;
        }
        for task in self.queues.tasks(self.kernel, cpu.run_queue, doubts)? {
            self.add(task, None)?;
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.list.len() >= TASKS
    }

    /// A process, its first thread being `leader`.
    fn threads(&mut self, leader: Gva, doubts: &mut Vec<Doubt>) -> Result<(), ReadError> {
        let layout = &self.kernel.model().layout;
        self.add(leader, None)?;
        let space = self.kernel.space();
        let signal = space.pointer(leader.wrapping_add(layout.task.signal))?;
        let head = signal.wrapping_add(layout.thread_head);
        let end = list::walk(space, head, |link| {
            if self.is_full() {
                return Ok(false);
            }
            self.add(Gva(link.0.wrapping_sub(layout.task.thread_node)), None).map(|()| true)
        })?;
        if end != End::Head {
            doubts.push(Doubt::Endless { what: "a list of threads" });
        }
        Ok(())
    }

    fn add(&mut self, at: Gva, idle_of: Option<u32>) -> Result<(), ReadError> {
        // The first idle task is also what the list of tasks begins with.
        if let Some(&index) = self.seen.get(&at) {
            let known = &mut self.list[index];
            known.idle_of = known.idle_of.or(idle_of);
            return Ok(());
        }
        if at.0 == 0 {
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
        self.seen.insert(at, self.list.len() - 1);
        Ok(())
    }
}
