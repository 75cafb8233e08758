//! Why a patch is not applied or rolled back: never, or not now.

use super::patch::{PatchId, State};
use crate::addr::Gva;
use crate::journal::JournalError;
use crate::kernel::list::Cut;
use crate::kernel::space::ReadError;
use crate::kernel::text_locks::Unclear;
use crate::phases::doubts::Doubts;
use crate::phases::loaded_module::LoadedModuleError;
use crate::phases::patch_module::ModuleError;
use crate::phases::quiet::QuietError;
use crate::phases::rewrite::TextError;
use crate::phases::stack_check::Holder;

/// Why a patch was not applied or rolled back. Nothing in the guest was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There are too many.
    #[error("there are {limit} patches already; remove one that is not applied")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// There is none of that number.
    #[error("there is no patch {}", id.0)]
    Unknown {
        /// The number.
        id: PatchId,
    },
    /// It is not in the state for it.
    #[error("patch {name} is {state:?}, and not {needed:?}")]
    WrongState {
        /// Its name.
        name: String,
        /// Its state.
        state: State,
        /// The state it would have to be in.
        needed: State,
    },
    /// What it is built upon is not there.
    #[error("patch {name} is built upon {missing}, which is not applied; apply that first")]
    Requires {
        /// Its name.
        name: String,
        /// The other's name.
        missing: String,
    },
    /// Another one is built upon it.
    #[error("patch {dependent} is built upon {name}; roll that back first")]
    Required {
        /// Its name.
        name: String,
        /// The other's name.
        dependent: String,
    },
    /// The guest's text is not as it must be.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The guest's copy of the module is not as it must be.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// What a module of the kernel has is not as it must be.
    #[error(transparent)]
    LoadedModule(#[from] LoadedModuleError),
    /// The guest has the patch's code, which refers to a module that was loaded to another place since.
    #[error(
        "{symbol} is not where it was when the code of patch {name} was linked: its module was loaded again; give the patch another \
         name and module name"
    )]
    Moved {
        /// Its name.
        name: String,
        /// The symbol that it refers to.
        symbol: String,
    },
    /// The guest's kernel was built without it (`CONFIG_MODULE_UNLOAD`).
    #[error("the guest's kernel unloads no modules")]
    NeverUnloaded,
    /// A module that did not count itself as a user when it was loaded: whoever likes can unload it, in use or not.
    #[error(
        "module {module} does not pin itself, so that the guest could unload it under those who run it; have its init function call \
         __module_get(THIS_MODULE)"
    )]
    Unpinned {
        /// The module.
        module: String,
    },
    /// There is another one in the place of the patch's.
    #[error("the guest's module {module} is not the one that was applied")]
    OtherModule {
        /// Its name.
        module: String,
    },
    /// Another patch uses the module.
    #[error("patch {by} uses module {module}")]
    ModuleUsed {
        /// The module.
        module: String,
        /// The other patch.
        by: String,
    },
    /// Whether the guest changes its own text cannot be told.
    #[error(transparent)]
    Unclear(#[from] Unclear),
    /// The bytes could not be changed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The guest's memory cannot be followed.
    #[error("the kernel's data cannot be followed: {0}")]
    Unreadable(#[from] ReadError),
}

impl From<QuietError> for Refusal {
    fn from(error: QuietError) -> Self {
        match error {
            QuietError::Unclear(unclear) => unclear.into(),
            QuietError::Unreadable(error) => error.into(),
        }
    }
}

/// Holders that are named; the rest is counted.
const NAMED: usize = 8;

fn names(holders: &[Holder]) -> String {
    let name = |holder: &Holder| format!("{} ({}) in {}", holder.task.comm, holder.task.pid, holder.function);
    let mut names: Vec<String> = holders.iter().take(NAMED).map(name).collect();
    if holders.len() > NAMED {
        names.push(format!("and {} more", holders.len() - NAMED));
    }
    names.join(", ")
}

fn first(doubts: &Doubts) -> &str {
    doubts.told().first().map_or("", |doubt| doubt)
}

/// Why a patch cannot be applied or rolled back at this moment. Nothing in the guest was changed; a moment later it may work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// The guest is changing its own text.
    #[error("the guest is changing its text (the task at {by} has the lock for it)")]
    TextChanges {
        /// Who has the lock.
        by: Gva,
    },
    /// The guest has patched the function by itself: nobody would come to the jump.
    #[error("the guest has a livepatch of its own on {function}; it must be disabled first")]
    Livepatched {
        /// The function.
        function: String,
    },
    /// The guest has more of what changes its text than is looked at: what is not looked at may be in the way.
    #[error("{0}; what is behind that may be in the way")]
    Cut(Cut),
    /// A module whose functions are patched has been taken away, or is about to be.
    #[error("module {module} is being unloaded, or has been loaded again")]
    ModuleChanges {
        /// Its name.
        module: String,
    },
    /// New code is in no module that the guest's kernel says that it has.
    #[error("the guest's kernel has no module at {at}, where the new code of patch {name} is")]
    NoModule {
        /// The patch's name.
        name: String,
        /// A new function.
        at: Gva,
    },
    /// The guest has been given the patch's module free, and is about to unload it.
    #[error("the module of patch {name} is being unloaded")]
    Released {
        /// The patch.
        name: String,
    },
    /// Somebody in the guest keeps the module from being unloaded: a program of BPF, or a tracer.
    #[error(
        "somebody in the guest uses module {module} (its count of references has {others} more than its own)"
    )]
    Referenced {
        /// The module.
        module: String,
        /// How many references there are besides its own.
        others: u32,
    },
    /// Somebody stands where the jump is to be.
    #[error("{} ({}) stands where {} is to jump", holder.task.comm, holder.task.pid, holder.function)]
    Under {
        /// Who.
        holder: Box<Holder>,
    },
    /// Somebody is inside, and may not finish there.
    #[error("{} frames are in the code that is replaced: {}", holders.len(), names(holders))]
    Inside {
        /// Who; at least one.
        holders: Vec<Holder>,
    },
    /// Not everybody's whereabouts are proven.
    #[error("of {} stacks not everything is proven: {}", doubts.len(), first(doubts))]
    Doubt {
        /// What is not; at least one.
        doubts: Doubts,
    },
    /// The guest has put a probe on the jump, which would be lost.
    #[error("a probe is on the jump at {at} in {function}, and is of {owners}; it must be removed first")]
    Probed {
        /// The function.
        function: String,
        /// Where.
        at: Gva,
        /// Who has put it there, as the guest says.
        owners: String,
    },
    /// The guest has a probe in old code: what it has copied of it would not be what is there.
    #[error("a probe is at {at} in the old {function}; it must be removed before that is filled or put back")]
    ProbedInside {
        /// The function.
        function: String,
        /// Where.
        at: Gva,
    },
}

/// Either.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// It will not work later either.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It may work later.
    #[error(transparent)]
    NotNow(#[from] NotNow),
}

impl<E: Into<Refusal>> From<E> for Box<SwitchError> {
    fn from(error: E) -> Self {
        Self::new(SwitchError::Refused(error.into()))
    }
}

pub(super) fn not_now<T>(why: NotNow) -> Result<T, Box<SwitchError>> {
    Err(Box::new(SwitchError::NotNow(why)))
}
