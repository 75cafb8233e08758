//! What could not be proven of stacks: the first of it in words, all of it counted.

use std::fmt;

use crate::limits::DOUBTS;

/// What could not be proven. Each counts, whether it is told or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doubts {
    told: Vec<String>,
    more: usize,
}

impl Doubts {
    /// The first of them, [`DOUBTS`] at most.
    pub fn told(&self) -> &[String] {
        &self.told
    }

    /// How many there are besides.
    pub fn more(&self) -> usize {
        self.more
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.told.len() + self.more
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds one. It is put into words only if it is told.
    pub(crate) fn push(&mut self, doubt: impl fmt::Display) {
        if self.told.len() < DOUBTS {
            self.told.push(doubt.to_string());
        } else {
            self.more += 1;
        }
    }

    /// Adds one that is told in any case.
    pub(crate) fn push_first(&mut self, doubt: String) {
        self.told.insert(0, doubt);
        if self.told.len() > DOUBTS {
            self.told.truncate(DOUBTS);
            self.more += 1;
        }
    }
}

impl<D: fmt::Display> FromIterator<D> for Doubts {
    fn from_iter<I: IntoIterator<Item = D>>(doubts: I) -> Self {
        let mut all = Self::default();
        doubts.into_iter().for_each(|doubt| all.push(doubt));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counts_and_the_first_are_told() {
        assert!(Doubts::default().is_empty());
        let mut doubts: Doubts = (0..DOUBTS).collect();
        assert_eq!((doubts.len(), doubts.more()), (DOUBTS, 0));
        doubts.push("one of too many");
        assert_eq!((doubts.told().len(), doubts.more(), doubts.len()), (DOUBTS, 1, DOUBTS + 1));
        assert_eq!(doubts.told()[0], "0");
        assert!(!doubts.told().iter().any(|doubt| doubt == "one of too many"));
    }

    #[test]
    fn what_must_be_told_is_told_first() {
        let mut doubts: Doubts = (0..DOUBTS).collect();
        doubts.push_first("this".to_owned());
        assert_eq!((doubts.told().len(), doubts.more()), (DOUBTS, 1));
        assert_eq!(doubts.told()[..2], ["this", "0"]);
    }
}
