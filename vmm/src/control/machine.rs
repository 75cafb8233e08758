//! The seam between the control API and the machine.

use update_server::addr::Gpa;
use update_server::watch::NotWatched;

use super::model::{
    Counters, MachineState, ModuleReport, PatchInfo, PatchList, PauseReport, ResumeReport, StackReport,
    SymbolReport, TaskReport, TextReport, TrapReport,
};
use super::traps::Arming;
use crate::config::MachineSpec;
use crate::update::{Board, Deadline};

/// A machine, as the control API sees it. All methods may be called from several threads at once.
pub trait MachineControl: Send + Sync {
    /// The state right now. Answers at once, a pause under way included.
    fn state(&self) -> MachineState;

    /// What the machine was built from. Answers at once.
    fn config(&self) -> MachineSpec;

    /// What the machine has counted since it started.
    fn counters(&self) -> Counters;

    /// Stops every vCPU and every device's writes; returns when all stand still. Needs `Running`.
    fn pause(&self) -> Result<PauseReport, ControlError>;

    /// Lets everything that [`MachineControl::pause`] stopped go on. Needs `Paused`.
    fn resume(&self) -> Result<ResumeReport, ControlError>;

    /// Presses the ACPI power button; the guest decides what it does. Needs `Running`.
    fn power_button(&self) -> Result<(), ControlError>;

    /// Reads every kernel stack, and with `verify` all of them once more while the machine stands still. Needs `Running`, and
    /// then stops the machine for a moment, or `Paused`.
    fn stacks(&self, verify: bool) -> Result<StackReport, ControlError>;

    /// Reads the list of tasks; as [`MachineControl::stacks`].
    fn tasks(&self) -> Result<TaskReport, ControlError>;

    /// The kernel's symbols with the name or at the address `filter`, or all; as [`MachineControl::stacks`].
    fn symbols(&self, filter: Option<&str>) -> Result<SymbolReport, ControlError>;

    /// The kernel's modules, or the one called `name` with each place of its text that may change; as
    /// [`MachineControl::stacks`].
    fn modules(&self, name: Option<&str>) -> Result<ModuleReport, ControlError>;

    /// Compares the kernel's text with the image; as [`MachineControl::stacks`].
    fn text_check(&self) -> Result<TextReport, ControlError>;

    /// Takes a patch's file, and goes on with it after this has returned. Only with `unsigned` one without a signature that is
    /// trusted. Needs `Running` or `Paused`.
    fn apply(&self, file: &[u8], unsigned: bool, limit: Deadline) -> Result<PatchInfo, ControlError>;

    /// Begins to roll a patch back.
    fn roll_back(&self, id: u32, limit: Deadline) -> Result<PatchInfo, ControlError>;

    /// All patches. Whether the kernel is still theirs is looked at before.
    fn patches(&self) -> PatchList;

    /// What is known of all patches; answers at once, and tells of changes.
    fn board(&self) -> &Board;

    /// Watches pages of the guest while it runs. Needs `Running`.
    fn arm(&self, arming: &Arming) -> Result<TrapReport, ControlError>;

    /// What is watched, and what was seen of it.
    fn traps(&self) -> Result<TrapReport, ControlError>;

    /// Watches these pages no longer, or none at all without them.
    fn disarm(&self, pages: Option<&[Gpa]>) -> Result<TrapReport, ControlError>;

    /// Asks the VMM to end now, as when a power cord is pulled. Must not wait for anything: the answer to
    /// the client who asked is sent after this returned.
    fn shutdown(&self);
}

/// Why the machine did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The state does not allow it.
    #[error("the machine is {found}; `{operation}` needs it to be {needed}")]
    WrongState {
        /// The endpoint's name.
        operation: &'static str,
        /// The state the machine was in.
        found: MachineState,
        /// The state that the operation needs.
        needed: MachineState,
    },
    /// Not all vCPUs or devices stood still in time; the machine runs on as before.
    #[error("the machine did not stand still within {limit_ms} ms ({holder} did not); it runs on")]
    TimedOut {
        /// The limit.
        limit_ms: u64,
        /// Which vCPU or device held out.
        holder: String,
    },
    /// The guest's ACPI driver has not enabled the power button.
    #[error("the guest does not listen to its power button (yet): its ACPI driver has not enabled it")]
    NobodyListens,
    /// The guest's kernel is not one that can be looked into, or not yet.
    #[error("{why}")]
    UnknownKernel {
        /// What is wrong with it.
        why: String,
    },
    /// A page cannot be watched, and nothing has changed; or some cannot be given up, and are watched still.
    #[error(transparent)]
    NotWatched(#[from] NotWatched),
    /// A patch is not taken, or not moved on. Nothing in the guest was changed.
    #[error("{why}")]
    PatchRefused {
        /// What kind of refusal; stable, for programs.
        code: &'static str,
        /// What is wrong.
        why: String,
    },
    /// There is no such patch.
    #[error("there is no patch {id}")]
    NoPatch {
        /// The number that was asked for.
        id: u32,
    },
    /// The host failed.
    #[error("{why}")]
    Host {
        /// At what.
        why: String,
    },
}
