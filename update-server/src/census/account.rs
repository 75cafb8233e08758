//! Proof that no task has run but those that were looked at again, without looking at the others.
//!
//! A processor that changes tasks counts that twice: in its run queue, and in the task that it leaves
//! (`kernel/sched/core.c`, `__schedule`; 6.1 and 6.12). So as long as no task is made or ends, the sum over all run queues goes up
//! by as much as the sum over all tasks; and where some tasks alone make up for all of it, no other one has run. The
//! tasks that run are few, however many sleep.

use std::collections::HashMap;

use super::stacks::CpuStacks;
use super::task::Mark;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;

/// How often the sums are tried to be read with nothing happening in between: a busy processor changes tasks some 10,000
/// times a second, and one reading takes some microseconds.
const TRIES: usize = 32;

/// What `tasklist_lock` begins with when nobody has it (`include/asm-generic/qrwlock_types.h`; `READER_BIAS` with
/// `CONFIG_PREEMPT_RT`, `include/linux/rwbase_rt.h`). Neither is there while somebody writes, in either kind of kernel.
const UNLOCKED: [u32; 2] = [0, 1 << 31];

/// The kernel's own sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Totals {
    /// Changes of task, on all processors.
    switches: u64,
    /// Tasks that were ever made.
    made: u64,
    /// Tasks that there are.
    tasks: u32,
}

impl Totals {
    /// Reads them; `None` if a processor may be counting at this moment: it holds a lock then.
    fn read(kernel: &Running<'_, impl Memory>, cpus: &[CpuStacks]) -> Result<Option<Self>, ReadError> {
        let (space, model) = (kernel.space(), kernel.model());
        let layout = &model.layout.run_queue;
        // A task that is made is on the list before it is counted, and one that ends is not counted any more before it has left
        // the list (`copy_process`, `__unhash_process`).
        if !UNLOCKED.contains(&space.u32(kernel.now(model.symbols.tasks_lock))?) {
            return Ok(None);
        }
        let mut switches = 0_u64;
        for cpu in cpus {
            let at = |offset| cpu.run_queue.wrapping_add(offset);
            // A spin lock is 32 bits, zero when nobody has it or waits (include/asm-generic/qspinlock_types.h).
            if space.u32(at(layout.lock))? != 0 {
                return Ok(None);
            }
            switches = switches.wrapping_add(space.u64(at(layout.switches))?);
        }
        Ok(Some(Self {
            switches,
            made: space.u64(kernel.now(model.symbols.total_forks))?,
            tasks: space.u32(kernel.now(model.symbols.threads))?,
        }))
    }
}

/// The sums at one moment, and what the tasks that are likely to run had counted then.
#[derive(Debug)]
pub(super) struct Account {
    totals: Totals,
    counts: HashMap<Gva, u64>,
}

impl Account {
    /// Opens one, in a guest that may run, with the tasks in `likely`; `None` if it never stood still for long enough.
    pub(super) fn open(
        kernel: &Running<'_, impl Memory>,
        cpus: &[CpuStacks],
        likely: &[Gva],
    ) -> Result<Option<Self>, ReadError> {
        for _ in 0..TRIES {
            let Some(totals) = Totals::read(kernel, cpus)? else { continue };
            let count = |&task: &Gva| Mark::read(kernel, task).map(|mark| (task, mark.switches));
            let counts = likely.iter().map(count).collect::<Result<_, _>>()?;
            if Totals::read(kernel, cpus)? == Some(totals) {
                return Ok(Some(Self { totals, counts }));
            }
        }
        Ok(None)
    }

    /// Whether a task is among those it was opened with.
    pub(super) fn holds(&self, task: Gva) -> bool {
        self.counts.contains_key(&task)
    }

    /// The tasks it was opened with.
    pub(super) fn into_tasks(self) -> Vec<Gva> {
        self.counts.into_keys().collect()
    }

    /// Whether the tasks that it was opened with make up for all that has happened since, in a guest that stands still.
    pub(super) fn closes(
        &self,
        kernel: &Running<'_, impl Memory>,
        cpus: &[CpuStacks],
    ) -> Result<bool, ReadError> {
        let Some(now) = Totals::read(kernel, cpus)? else { return Ok(false) };
        let mut sum = 0_u64;
        for (&task, &before) in &self.counts {
            sum = sum.wrapping_add(Mark::read(kernel, task)?.switches.wrapping_sub(before));
        }
        let expected = now.switches.wrapping_sub(self.totals.switches);
        Ok(sum == expected && now.made == self.totals.made && now.tasks == self.totals.tasks)
    }
}
