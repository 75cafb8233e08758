//! How much more may be looked at. A guest decides what there is to follow; a look at it ends all the same.

use std::cell::Cell;

/// Steps that are left; whatever follows what a guest has written takes its share.
#[derive(Debug)]
pub struct Steps(Cell<u64>);

impl Steps {
    /// So many.
    pub fn new(count: u64) -> Self {
        Self(Cell::new(count))
    }

    /// Takes one; `false` if there is none left.
    pub fn take(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left > 0
    }

    /// Takes `count`, or what is left.
    pub fn take_up_to(&self, count: u64) {
        self.0.set(self.0.get().saturating_sub(count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_than_there_were() {
        let steps = Steps::new(3);
        assert!(steps.take());
        steps.take_up_to(1);
        assert!(steps.take());
        assert!(!steps.take());
        steps.take_up_to(5);
        assert!(!steps.take());
    }
}
