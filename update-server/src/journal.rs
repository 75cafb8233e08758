//! Changes to a guest's memory that are made together, or not at all.
//!
//! An edit says what must be there before, so that nothing is overwritten that is not ours or known. All of them are checked
//! before the first byte is written; should a write fail all the same, those before it are taken back.

use crate::addr::{Gpa, Gva};
use crate::guest::{Memory, Paused};
use crate::kernel::space::{AddressSpace, ReadError};

/// Bytes that are to be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Where, in the kernel's address space.
    pub at: Gva,
    /// What is there.
    pub before: Vec<u8>,
    /// What is to be there: as many bytes.
    pub after: Vec<u8>,
}

impl Edit {
    /// The one that takes this one back.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self { at: self.at, before: self.after.clone(), after: self.before.clone() }
    }
}

/// Why nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// It cannot be reached.
    #[error("{at} cannot be changed: {source}")]
    Unreachable {
        /// Where.
        at: Gva,
        /// Why.
        source: ReadError,
    },
    /// It is not what it was thought to be.
    #[error("at {at} there is {}, where {} was expected", hex(found), hex(expected))]
    Differs {
        /// Where.
        at: Gva,
        /// What is there.
        found: Vec<u8>,
        /// What should be.
        expected: Vec<u8>,
    },
    /// Two edits want the same bytes, or one has no bytes for all of its place.
    #[error("two changes, or none that fits, for the bytes at {at}")]
    Conflict {
        /// Where.
        at: Gva,
    },
    /// The RAM was there when it was looked at, and cannot be written to.
    #[error("the guest's memory at {at} cannot be written to")]
    Failed {
        /// Where.
        at: Gva,
        /// Whether what had been written was taken back.
        undone: bool,
    },
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// Edits that were checked.
#[derive(Debug)]
pub struct Journal {
    pieces: Vec<Piece>,
}

/// Bytes of an edit that are in one page.
#[derive(Debug, Clone)]
struct Piece {
    at: Gva,
    place: Gpa,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.place.0.saturating_add(self.before.len() as u64)
    }
}

impl Journal {
    /// Checks every edit and where it leads to.
    pub fn check(space: &AddressSpace<'_, impl Memory>, edits: &[Edit]) -> Result<Self, JournalError> {
        let mut pieces = Vec::new();
        for edit in edits {
            let Edit { at, before, after } = edit;
            if before.len() != after.len() || before.is_empty() {
                return Err(JournalError::Conflict { at: *at });
            }
            let unreachable = |source| JournalError::Unreachable { at: *at, source };
            let mut found = vec![0; before.len()];
            space.read(*at, &mut found).map_err(unreachable)?;
            if found != *before {
                return Err(JournalError::Differs { at: *at, found, expected: before.clone() });
            }
            let mut done = 0;
            for (place, len) in space.pieces(*at, before.len()).map_err(unreachable)? {
                let bytes = |bytes: &[u8]| bytes[done..done + len].to_vec();
                let at = at.wrapping_add(done as u64);
                pieces.push(Piece { at, place, before: bytes(before), after: bytes(after) });
                done += len;
            }
        }
        Self::apart(pieces)
    }

    /// These and `more`, which are checked now.
    pub fn with(&self, more: &[Edit], space: &AddressSpace<'_, impl Memory>) -> Result<Self, JournalError> {
        let more = Self::check(space, more)?.pieces;
        Self::apart(self.pieces.iter().cloned().chain(more).collect())
    }

    /// Of pieces that must not overlap.
    fn apart(mut pieces: Vec<Piece>) -> Result<Self, JournalError> {
        // By where they are in RAM: one page may be mapped at two addresses.
        pieces.sort_by_key(|piece: &Piece| piece.place);
        let overlap = pieces.windows(2).find(|pair| pair[0].end() > pair[1].place.0);
        match overlap {
            Some(pair) => Err(JournalError::Conflict { at: pair[1].at }),
            None => Ok(Self { pieces }),
        }
    }

    /// Writes all of them.
    pub fn commit(&self, guest: &impl Paused) -> Result<(), JournalError> {
        for (index, piece) in self.pieces.iter().enumerate() {
            if guest.write(piece.place, &piece.after).is_err() {
                let mut undone = true;
                for done in self.pieces[..index].iter().rev() {
                    undone &= guest.write(done.place, &done.before).is_ok();
                }
                return Err(JournalError::Failed { at: piece.at, undone });
            }
        }
        Ok(())
    }
}
