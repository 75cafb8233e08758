//! A limit on messages that a guest can cause.

use std::sync::atomic::{AtomicU64, Ordering};

/// Lets the 1st, 2nd, 4th, 8th, … occurrence of something through: a guest that does it for ever must not fill
/// the host's log, and the operator still learns of it, and how often it happens.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(AtomicU64);

impl LogLimit {
    /// Counts one more; the count if it should be told.
    pub(crate) fn pass(&self) -> Option<u64> {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        count.is_power_of_two().then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_occurrences_make_twenty_messages() {
        let limit = LogLimit::default();
        assert_eq!((0..1_000_000).filter_map(|_| limit.pass()).count(), 20);
    }
}
