//! One task, as its `task_struct` has it.

use crate::addr::Gva;
use crate::guest::Memory;
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;

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

impl Task {
    /// Reads the task at `address`.
    pub(super) fn read(kernel: &Running<'_, impl Memory>, address: Gva) -> Result<Self, ReadError> {
        let (space, model) = (kernel.space(), kernel.model());
        let layout = &model.layout.task;
        let word = |offset| space.u64(address.wrapping_add(offset));
        let half = |offset| space.u32(address.wrapping_add(offset));
        let mark = Mark::read(kernel, address)?;
        let state = half(layout.state)?;
        let exit_state = half(layout.exit_state)?;
        Ok(Self {
            address,
            stack: Gva(word(layout.stack)?),
            sp: Gva(word(layout.sp)?),
            pid: half(layout.pid)?,
            tgid: half(layout.tgid)?,
            comm: space.text(address.wrapping_add(layout.comm), model.layout.comm_bytes)?,
            kernel_thread: half(layout.flags)? & PF_KTHREAD != 0,
            activity: Activity::new(mark.on_cpu, state, exit_state),
            switches: mark.switches,
            start_time: mark.start_time,
            idle_of: None,
        })
    }

    /// The lower end of the kernel stack of the task at `address`.
    pub(super) fn stack_of(kernel: &Running<'_, impl Memory>, address: Gva) -> Result<Gva, ReadError> {
        kernel.space().pointer(address.wrapping_add(kernel.model().layout.task.stack))
    }

    /// Whether it has run since it was read, or another task has taken its place: only then can its stack be another one.
    pub fn has_run(&self, kernel: &Running<'_, impl Memory>) -> Result<bool, ReadError> {
        let mark = Mark::read(kernel, self.address)?;
        Ok(mark.on_cpu || mark != self.mark())
    }

    /// What it was read by.
    pub(super) fn mark(&self) -> Mark {
        let on_cpu = self.activity == Activity::OnCpu;
        Mark { on_cpu, switches: self.switches, start_time: self.start_time }
    }
}

/// What changes whenever a task runs, or another one takes its place in memory: as long as it is the same, and no processor
/// has the task, so is the task's stack.
///
/// A task's count goes up before its processor leaves it, and `on_cpu` is set before a processor takes it and cleared
/// only when that has left its stack (`kernel/sched/core.c`: `__schedule`, `prepare_task`, `finish_task`; 6.1 and 6.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) on_cpu: bool,
    pub(super) switches: u64,
    start_time: u64,
}

impl Mark {
    /// Reads that of the task at `address`.
    pub(super) fn read(kernel: &Running<'_, impl Memory>, address: Gva) -> Result<Self, ReadError> {
        let (space, layout) = (kernel.space(), &kernel.model().layout.task);
        // In this order, as the guest may run: a task that is switched out in between has been counted by then.
        let on_cpu = space.u32(address.wrapping_add(layout.on_cpu))? != 0;
        let [voluntary, involuntary, start_time] = space
            .words(address, [layout.voluntary_switches, layout.involuntary_switches, layout.start_time])?;
        let switches = voluntary.wrapping_add(involuntary);
        Ok(Self { on_cpu, switches, start_time })
    }
}
