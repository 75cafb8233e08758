//! Guests in which many processes sleep.

use anyhow::Result;

use crate::guest::Guest;

/// Sleepers that are started between two lines on the console.
const BATCH: u32 = 250;
/// What the guest says behind each batch, and when all of them and what else it does are there.
const BATCH_DONE: &str = "batch done";
const ALL_THERE: &str = "all there";

/// What the guest does to have `sleepers` processes that sleep, and `load` beside them.
pub(super) fn script(sleepers: u32, load: &str) -> String {
    let batches = sleepers.div_ceil(BATCH);
    // The quotes tell what is said from the command line that the kernel logs.
    format!(
        "n=0; for b in $(seq {batches}); do i=0; while [ $i -lt {BATCH} -a $n -lt {sleepers} ]; do sleep 100000 & \
         i=$((i+1)); n=$((n+1)); done; echo batch 'done'; done; {load} sleep 2; echo all 'there'; wait"
    )
}

/// Waits until the guest has done that. All of them take longer than one line may be waited for.
pub(super) fn wait(guest: &mut Guest, sleepers: u32) -> Result<()> {
    for _ in 0..sleepers.div_ceil(BATCH) {
        guest.line_with(BATCH_DONE)?;
    }
    guest.line_with(ALL_THERE).map(drop)
}
