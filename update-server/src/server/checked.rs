//! What was found good while the guest ran: in the pause it is as good, if all bytes that were read for it are still there.

use super::SwitchError;
use crate::guest::Memory;
use crate::journal::Journal;
use crate::kernel::running::Running;
use crate::reads::{Reads, Recorder};

/// The changes of one patch, and what they follow from.
#[derive(Debug)]
pub(super) struct Checked {
    journal: Journal,
    reads: Reads,
}

impl Checked {
    /// What `check` says of a guest that may run. What is wrong now may be right in the pause, and is asked there.
    pub(super) fn before<'g, M: Memory>(
        kernel: &Running<'g, M>,
        check: impl FnOnce(&Running<'_, Recorder<'g, M>>) -> Result<Journal, Box<SwitchError>>,
    ) -> Option<Self> {
        let recorder = Recorder::new(kernel.space().memory());
        let journal = check(&kernel.recorded(&recorder)).ok()?;
        Some(Self { journal, reads: recorder.finish() })
    }

    /// The changes, if the same would be found in the guest as it is now.
    pub(super) fn still(&self, kernel: &Running<'_, impl Memory>) -> Option<&Journal> {
        self.reads.hold(kernel.space().memory()).then_some(&self.journal)
    }
}
