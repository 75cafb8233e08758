//! What could not be proven.

use crate::addr::Gva;
use crate::kernel::list::Cut;
use crate::kernel::space::ReadError;

/// Something that cannot be proven.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Doubt {
    /// Which of the guest's processors a vCPU is.
    #[error("vCPU {vcpu} cannot be told to be any of the guest's processors")]
    NoCpu {
        /// The vCPU.
        vcpu: u32,
    },
    /// Which task a vCPU runs.
    #[error("vCPU {vcpu} at {at} is on no task's stack ({stack:?}); its processor's record has {task}")]
    NoTask {
        /// The vCPU.
        vcpu: u32,
        /// Its next instruction.
        at: Gva,
        /// The lower end of the stack that it is on, or that its interrupts came from.
        stack: Option<Gva>,
        /// What its processor's record says.
        task: Gva,
    },
    /// What a list holds behind some point.
    #[error("{what} cannot be followed: {source}")]
    Unreadable {
        /// The list.
        what: &'static str,
        /// What is in the way.
        source: ReadError,
    },
    /// Where a list ends.
    #[error("{what} does not end")]
    Endless {
        /// The list.
        what: &'static str,
    },
    /// What there is beyond what was looked at.
    #[error(transparent)]
    Cut(#[from] Cut),
    /// That a stack is still the one that was found before.
    #[error(
        "the stack of {comm} ({pid}) at {task} is not the one that was known, although the task is said not to have run: {how}"
    )]
    Stale {
        /// The task.
        task: Gva,
        /// Its number.
        pid: u32,
        /// Its name.
        comm: String,
        /// What is different.
        how: String,
    },
    /// How the frames of some code lie.
    #[error("nothing says how the frames of the code at {at} lie: {why}")]
    NoTable {
        /// An instruction of it.
        at: Gva,
        /// What is missing.
        why: String,
    },
    /// That the unwind table of a module tells the truth.
    #[error(
        "the unwind table of module {module} says something else of the frame at {at} than the code there"
    )]
    Contradicted {
        /// The module.
        module: String,
        /// An instruction of it.
        at: Gva,
    },
    /// What is on the stack there.
    #[error("the stack at {at} is not one of the task's or the processor's")]
    OffStack {
        /// The place.
        at: Gva,
    },
    /// A value that is in a register which nobody has saved.
    #[error("the code at {at} keeps its frame in a register whose value is not on the stack")]
    LostRegister {
        /// An instruction of it.
        at: Gva,
    },
    /// That an address on the stack was left there by a call.
    #[error("{address} at {slot} is no address behind a call")]
    NoCall {
        /// The address.
        address: Gva,
        /// Where it is.
        slot: Gva,
    },
    /// Where a frame returns to that a tracer has taken over.
    #[error("a tracer has taken over the return at {slot}, and the task's record does not say from where")]
    Hooked {
        /// Where the address is.
        slot: Gva,
    },
    /// That the stack ends where it seems to.
    #[error("the stack ends at {at}, where no stack ends")]
    WrongEnd {
        /// Where.
        at: Gva,
    },
    /// Frames that lead back.
    #[error("the frame at {at} leads back to where it was come from")]
    Circle {
        /// Where.
        at: Gva,
    },
    /// More frames, all stacks together, than there can be.
    #[error("all stacks together have more than {limit} frames")]
    TooMuch {
        /// The limit.
        limit: u64,
    },
    /// More frames than there can be.
    #[error("more than {limit} frames")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
}

/// Adds `doubt`, unless it was the last to be added: a guest can make the same one be met again and again.
pub(super) fn note(doubts: &mut Vec<Doubt>, doubt: Doubt) {
    if doubts.last() != Some(&doubt) {
        doubts.push(doubt);
    }
}

/// Whether all frames of a stack were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// They were: the last one is where the task entered the kernel or began.
    Complete,
    /// There may be others behind the last one.
    Unprovable(Doubt),
}
