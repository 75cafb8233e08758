//! What is known of one frame while a stack is walked.

use crate::addr::Gva;
use crate::guest::Registers;

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Where it goes on.
    pub address: Gva,
    /// Whether that is behind a call; it is the next instruction of an interrupted frame otherwise.
    pub behind_call: bool,
    /// Where on the stack the address is; `None` for what is in a vCPU's registers.
    pub slot: Option<Gva>,
    /// The stub of a patch that is gone through on the way to the address ([`crate::x86::stub`]).
    pub stub: Option<Gva>,
}

/// Registers as far as they are known in a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    pub(super) ip: Gva,
    pub(super) sp: Gva,
    pub(super) bp: Gva,
    /// Whether the instruction at `ip` is the next one; it is behind a call otherwise.
    pub(super) signal: bool,
    /// Where it was called from it: the place in the function that returns to `ip`.
    pub(super) callee: Option<Gva>,
    /// Those of the last interruption, while they still hold: none behind a call.
    pub(super) saved: Saved,
}

impl State {
    /// Whether the same frame is found from it.
    pub(super) fn same(&self, other: &Self) -> bool {
        (self.ip, self.sp, self.bp, self.signal) == (other.ip, other.sp, other.bp, other.signal)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Saved {
    None,
    /// In a vCPU.
    Vcpu(Registers),
    /// In a `struct pt_regs` at this address.
    Stack(Gva),
    /// In the end of one that begins at this address; what is not in it may be in a whole one further in.
    Partial(Option<Gva>),
}
