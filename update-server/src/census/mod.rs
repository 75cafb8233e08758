//! One look at every kernel stack there is.
//!
//! What is found is evidence and no judgement: for each stack the frames on it, and whether they are all of them. Doubt is
//! an answer of its own, [`Outcome::Unprovable`], with what could not be proven.

mod account;
mod bounds;
mod call;
mod code;
mod doubt;
pub mod flow;
mod loaded;
mod made;
mod on_cpu;
mod patched;
mod probed;
mod queues;
mod said;
mod stacks;
mod state;
mod survey;
mod task;
mod tasks;
mod unwind;

use std::collections::HashSet;
use std::sync::Arc;

use crate::addr::Gva;
use crate::guest::Paused;
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;

pub use code::{Code, CodeKind};
pub use doubt::{Doubt, Outcome};
pub use loaded::Loaded;
pub use stacks::StackKind;
pub use state::Frame;
pub use survey::Survey;
pub use task::{Activity, Task};

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

impl Stack {
    /// In what it differs from what was `known` of the task; `None` if in nothing.
    fn difference(&self, known: &Self) -> Option<String> {
        if (self.task.start_time, self.task.pid) != (known.task.start_time, known.task.pid) {
            return Some(format!("it was {} ({})", known.task.comm, known.task.pid));
        }
        if self.found != known.found {
            return Some(format!("it is {:?} and was {:?}", self.found, known.found));
        }
        if self.outcome != known.outcome {
            return Some(format!("its outcome is {:?} and was {:?}", self.outcome, known.outcome));
        }
        let (now, before) = (&self.frames, &known.frames);
        let same = now.iter().zip(before).take_while(|(now, before)| now == before).count();
        (now != before)
            .then(|| format!("its frame {same} is {:?} and was {:?}", now.get(same), before.get(same)))
    }
}

/// How much was to be done for a census.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Effort {
    /// Rounds while the guest ran.
    pub rounds: u32,
    /// Whether the guest's own counts have proven that only some tasks had to be looked at while it stood still.
    pub proven: bool,
    /// Tasks that were looked at while it stood still.
    pub checked: usize,
    /// Stacks that were walked then.
    pub walked: usize,
}

/// All stacks, and what stood in the way of finding more.
#[derive(Debug, Clone)]
pub struct Census {
    /// Those that were known before the pause.
    known: Arc<Vec<Arc<Stack>>>,
    /// The tasks of which that does not hold any more.
    outdated: HashSet<Gva>,
    /// Theirs as they are now, and those of tasks that were not known.
    fresh: Vec<Arc<Stack>>,
    /// The code that is not the image's.
    pub loaded: Arc<Loaded>,
    /// What was not found that should be there, or found where it should not be.
    pub doubts: Vec<Doubt>,
    /// What it took.
    pub effort: Effort,
}

impl Census {
    /// One for each task that was found.
    pub fn stacks(&self) -> impl Iterator<Item = &Arc<Stack>> {
        let holds = |stack: &&Arc<Stack>| !self.outdated.contains(&stack.task.address);
        self.known.iter().filter(holds).chain(&self.fresh)
    }

    /// Those that were known before the pause. What was found out of them need not be found out again, but for
    /// [`Census::is_outdated`] ones.
    pub(crate) fn known(&self) -> &Arc<Vec<Arc<Stack>>> {
        &self.known
    }

    /// Whether the stack of `task` is another one since.
    pub(crate) fn is_outdated(&self, task: Gva) -> bool {
        self.outdated.contains(&task)
    }

    /// Those that are not among the known ones.
    pub(crate) fn fresh(&self) -> &[Arc<Stack>] {
        &self.fresh
    }
}

/// Looks at every stack of a guest that stands still, with nothing known before.
pub fn take<M: Paused>(kernel: &Running<'_, M>, guest: &M) -> Result<Census, ReadError> {
    let mut survey = Survey::default();
    survey.settle(kernel, guest)?;
    Ok(survey.census())
}
