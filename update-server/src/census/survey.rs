//! What is known of a guest's stacks from one look to the next.
//!
//! Stacks of tasks that sleep are walked while the guest runs, in rounds: each finds who has run since the last, walks only
//! those, and opens an [`Account`]. In the pause it remains to look at the few that have run since; which those are the
//! account proves, or if it cannot, a look at each task's count.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::account::Account;
use super::code::Code;
use super::doubt::{Doubt, Outcome};
use super::loaded::Loaded;
use super::on_cpu::OnCpu;
use super::stacks::CpuStacks;
use super::task::{Activity, Mark, Task};
use super::unwind::Unwinder;
use super::{Census, Effort, Stack, tasks};
use crate::addr::Gva;
use crate::guest::{Memory, Paused};
use crate::kernel::locate::Place;
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;
use crate::limits::{KEPT_FRAMES, LIKELY};
use crate::reads::{Reads, Recorder};

/// More rounds than this do not help: each is shorter than the one before, or the guest makes tasks faster than they are
/// counted.
const ROUNDS: u32 = 4;

/// One task, as it was last seen.
#[derive(Debug)]
struct Entry {
    stack: Arc<Stack>,
    /// Whether the stack stays this one as long as the task does not run.
    holds: bool,
    /// The round in which it was found to have run since the one before; 0 if it never was.
    ran: u64,
}

/// All that is known of the stacks of one guest's kernel.
#[derive(Debug, Default)]
pub struct Survey {
    place: Option<Place>,
    round: u64,
    loaded: Arc<Loaded>,
    /// What was read for that.
    loaded_by: Reads,
    entries: HashMap<Gva, Entry>,
    /// Every task, in the order in which they were found.
    order: Vec<Gva>,
    /// Their stacks as of the last round, as long as only those of the tasks in `changed` are others since.
    known: Option<Arc<Vec<Arc<Stack>>>>,
    /// See `known`.
    changed: Vec<Gva>,
    account: Option<Account>,
    doubts: Vec<Doubt>,
    effort: Effort,
}

impl Survey {
    /// Looks at the stacks of a guest that may run, in as many rounds as help.
    ///
    /// Nothing of what is found is believed until [`Survey::settle`] has held it against a guest that stands still. A guest
    /// that changes its lists while they are followed ends a round, and nothing is lost but what it would have saved.
    pub fn prepare(&mut self, kernel: &Running<'_, impl Memory>) -> Result<(), ReadError> {
        self.begin(kernel.place());
        while self.effort.rounds < ROUNDS && !self.look(kernel)? {}
        self.known = Some(Arc::new(self.stacks(&self.order)));
        Ok(())
    }

    /// Makes what is known true of a guest that stands still.
    pub fn settle<M: Paused>(&mut self, kernel: &Running<'_, M>, guest: &M) -> Result<(), ReadError> {
        if self.place != Some(kernel.place()) {
            self.begin(kernel.place());
        }
        self.round += 1;
        if !self.loaded_by.hold(kernel.space().memory()) {
            self.loaded = Arc::new(Loaded::read(kernel, &self.loaded)?);
            self.loaded_by = Reads::default();
        }
        let loaded = Arc::clone(&self.loaded);
        self.doubts = loaded.doubts().to_vec();
        let cpus = CpuStacks::all(kernel)?;
        let code = Code::new(kernel, &loaded);
        let unwinder = Unwinder::new(kernel, &code);
        let idle = idle_tasks(&cpus);
        let mut on_cpu = OnCpu::find(kernel, guest, &cpus, &unwinder, &mut self.doubts);
        for address in self.suspects(kernel, &cpus, &on_cpu)? {
            let running = on_cpu.take(address);
            let known = self.entries.get(&address);
            self.effort.checked += 1;
            if running.is_none() && holds(kernel, known)? {
                continue;
            }
            let ran = if known.is_some() { self.round } else { 0 };
            // Whoever has left every list is found by a processor alone.
            if known.is_none() && self.effort.proven {
                self.order.push(address);
            }
            let task = read(kernel, &idle, address)?;
            let stack = match running {
                Some((found, walk)) => Stack { task, found, frames: walk.frames, outcome: walk.outcome },
                None => unwinder.switched_out(task),
            };
            let holds = !stack.task.mark().on_cpu && stays(&stack);
            self.effort.walked += 1;
            self.changed.push(address);
            self.entries.insert(address, Entry { stack: Arc::new(stack), holds, ran });
        }
        Ok(())
    }

    /// Walks every stack of a guest that stands still anew. Where what [`Survey::settle`] has just said is not the same,
    /// that becomes a doubt.
    pub fn verify<M: Paused>(&mut self, kernel: &Running<'_, M>, guest: &M) -> Result<(), ReadError> {
        let mut fresh = Self::default();
        fresh.settle(kernel, guest)?;
        let listed = |survey: &Self| survey.order.iter().copied().collect::<HashSet<_>>();
        let (ours, theirs) = (listed(self), listed(&fresh));
        for task in ours.union(&theirs) {
            let known = self.entries.get(task).filter(|_| ours.contains(task));
            let found = fresh.entries.get(task).filter(|_| theirs.contains(task));
            let how = match (known, found) {
                (Some(known), Some(found)) => found.stack.difference(&known.stack),
                (Some(_), None) => Some("it was not found again".to_owned()),
                (None, _) => Some("it was not known".to_owned()),
            };
            let Some(how) = how else { continue };
            let stack = known.or(found).map(|entry| &entry.stack.task);
            let (pid, comm) = stack.map(|task| (task.pid, task.comm.clone())).unwrap_or_default();
            self.doubts.push(Doubt::Stale { task: *task, pid, comm, how });
        }
        Ok(())
    }

    /// Forgets the stacks of `tasks`: somebody else than they has written to them.
    pub fn forget(&mut self, tasks: impl IntoIterator<Item = Gva>) {
        for task in tasks {
            self.entries.remove(&task);
            self.known = None;
        }
    }

    /// The code that the kernel had loaded when it was last looked at.
    pub fn loaded(&self) -> &Arc<Loaded> {
        &self.loaded
    }

    /// What the last [`Survey::settle`] has found.
    pub fn census(&self) -> Census {
        let (known, fresh) = match &self.known {
            Some(known) => (Arc::clone(known), &self.changed),
            None => (Arc::default(), &self.order),
        };
        Census {
            known,
            outdated: self.changed.iter().copied().collect(),
            fresh: self.stacks(fresh),
            loaded: Arc::clone(&self.loaded),
            doubts: self.doubts.clone(),
            effort: self.effort,
        }
    }

    /// The stacks of `tasks`.
    fn stacks(&self, tasks: &[Gva]) -> Vec<Arc<Stack>> {
        tasks.iter().filter_map(|task| self.entries.get(task)).map(|entry| Arc::clone(&entry.stack)).collect()
    }

    /// Forgets what is not of the kernel at `place`, or too much to be kept.
    fn begin(&mut self, place: Place) {
        let frames: usize = self.entries.values().map(|entry| entry.stack.frames.len()).sum();
        if self.place != Some(place) || frames > KEPT_FRAMES {
            *self = Self { place: Some(place), ..Self::default() };
        }
        self.effort = Effort::default();
        self.known = None;
        self.changed.clear();
    }

    /// One round; says whether another one would be of no use.
    fn look(&mut self, kernel: &Running<'_, impl Memory>) -> Result<bool, ReadError> {
        self.round += 1;
        self.effort.rounds += 1;
        self.account = None;
        let recorder = Recorder::new(kernel.space().memory());
        let loaded = Arc::new(Loaded::read(&kernel.recorded(&recorder), &self.loaded)?);
        self.loaded = Arc::clone(&loaded);
        self.loaded_by = recorder.finish();
        let mut doubts = Vec::new();
        let cpus = CpuStacks::all(kernel)?;
        let mut likely = tasks::with_processors(kernel, &cpus, &mut doubts);
        let recent = |entry: &Entry| !entry.holds || entry.ran > 0 && entry.ran + 2 >= self.round;
        likely.extend(self.entries.iter().filter(|(_, entry)| recent(entry)).map(|(&task, _)| task));
        let likely = unique(likely);
        let account = if likely.len() <= LIKELY { Account::open(kernel, &cpus, &likely)? } else { None };
        // Not those that only a processor has: they are about to end, and would be none of it by the time of the pause.
        let found = tasks::lasting(kernel, &cpus, &mut doubts);
        let idle = idle_tasks(&cpus);
        let code = Code::new(kernel, &loaded);
        let unwinder = Unwinder::new(kernel, &code);
        let mut surprises = 0;
        for &address in &found {
            let known = self.entries.get(&address);
            if holds(kernel, known)? {
                continue;
            }
            let ran = if known.is_some() { self.round } else { 0 };
            surprises += usize::from(account.as_ref().is_none_or(|account| !account.holds(address)));
            let stack = unwinder.switched_out(read(kernel, &idle, address)?);
            // It may have run meanwhile, and then this is a mixture of what was and what is.
            let mark = stack.task.mark();
            let holds = !mark.on_cpu && Mark::read(kernel, address)? == mark && stays(&stack);
            self.entries.insert(address, Entry { stack: Arc::new(stack), holds, ran });
        }
        let there: HashSet<Gva> = found.iter().copied().collect();
        self.entries.retain(|task, _| there.contains(task));
        self.order = found;
        // What cannot be followed now would not be the next time.
        let followed = doubts.is_empty();
        self.account = account.filter(|_| followed);
        Ok(!followed || surprises == 0 && self.account.is_some())
    }

    /// Those that may have run since the last round, each once; all, if it cannot be told.
    fn suspects(
        &mut self,
        kernel: &Running<'_, impl Memory>,
        cpus: &[CpuStacks],
        on_cpu: &OnCpu,
    ) -> Result<Vec<Gva>, ReadError> {
        if let Some(account) = self.account.take()
            && account.closes(kernel, cpus)?
        {
            self.effort.proven = true;
            let mut suspects = account.into_tasks();
            // Those that had left every list when it was opened, and are gone.
            suspects.retain(|task| self.entries.contains_key(task));
            suspects.extend(tasks::with_processors(kernel, cpus, &mut self.doubts));
            suspects.extend(on_cpu.tasks());
            suspects.extend(self.entries.iter().filter(|(_, entry)| !entry.holds).map(|(&task, _)| task));
            return Ok(unique(suspects));
        }
        self.order = tasks::all(kernel, cpus, &mut self.doubts);
        self.known = None;
        Ok(self.order.clone())
    }
}

/// Each of them once, and no null pointer.
fn unique(mut tasks: Vec<Gva>) -> Vec<Gva> {
    tasks.retain(|task| task.0 != 0);
    tasks.sort_unstable();
    tasks.dedup();
    tasks
}

/// Whether it is the task's stack as long as the task does not run. Of one that has ended, the stack is taken away without its
/// running (`kernel/sched/core.c`, `finish_task_switch`: `put_task_stack`).
fn stays(stack: &Stack) -> bool {
    let going = stack.task.activity == Activity::Dead && stack.task.stack.0 != 0;
    stack.outcome == Outcome::Complete && !going
}

/// Whether what is known of a task is still so.
fn holds(kernel: &Running<'_, impl Memory>, known: Option<&Entry>) -> Result<bool, ReadError> {
    let Some(entry) = known.filter(|entry| entry.holds) else { return Ok(false) };
    Ok(Mark::read(kernel, entry.stack.task.address)? == entry.stack.task.mark())
}

/// The processor of each idle task; the first of those that claim the same one. A guest can claim thousands of processors, so that
/// they are not gone through for each task.
fn idle_tasks(cpus: &[CpuStacks]) -> HashMap<Gva, u32> {
    let mut idle = HashMap::new();
    for cpu in cpus {
        idle.entry(cpu.idle).or_insert(cpu.cpu);
    }
    idle
}

fn read(
    kernel: &Running<'_, impl Memory>,
    idle: &HashMap<Gva, u32>,
    address: Gva,
) -> Result<Task, ReadError> {
    Ok(Task { idle_of: idle.get(&address).copied(), ..Task::read(kernel, address)? })
}
