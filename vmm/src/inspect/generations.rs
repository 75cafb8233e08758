//! The kernels that were found in the guests of one VMM, counted.

use std::sync::{Mutex, PoisonError};

use update_server::kernel::generation::Generation;

/// What was found last, and how many there were.
#[derive(Debug, Default)]
pub(super) struct Generations(Mutex<Count>);

#[derive(Debug, Default)]
struct Count {
    number: u64,
    last: Option<Generation>,
}

impl Generations {
    /// The machine was reset: whatever is found next is another one.
    pub(super) fn reset(&self) {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        count.number += 1;
        count.last = None;
    }

    /// The number of `found`, from 1 on.
    pub(super) fn number(&self, found: &Generation) -> u64 {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &count.last {
            let differences: Vec<_> = last.differences(found).collect();
            if !differences.is_empty() {
                count.number += 1;
                tracing::info!(
                    "the guest has started another kernel by itself, number {}: another {}",
                    count.number,
                    differences.join(", another ")
                );
            }
        }
        count.last = Some(found.clone());
        count.number.max(1)
    }
}
