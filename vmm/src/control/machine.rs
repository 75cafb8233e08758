//! The seam between the control API and the machine.

use super::model::{Counters, MachineState, PauseReport, ResumeReport};
use crate::config::MachineSpec;

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
}
