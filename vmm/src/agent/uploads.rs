//! Patches that are handed in from inside the guest.
//!
//! There is one at a time, in pieces or whole: what a guest can make the VMM keep is [`UPLOAD_BYTES`].

use lucos_abi::{ErrorCode, Place, UPLOAD_BYTES};

/// A patch as it was handed over. Nothing of it has been looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// From 1 on, in each life of the guest.
    pub number: u32,
    /// What the guest calls it: a line of text without control characters.
    pub name: String,
    /// Its file.
    pub bytes: Vec<u8>,
}

/// Pieces of one that are here.
#[derive(Debug)]
struct Upload {
    number: u32,
    bytes: Vec<u8>,
}

/// What is on its way in.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    /// Whether the operator wants any.
    allowed: bool,
    begun: Option<Upload>,
    whole: Option<Submission>,
    count: u32,
}

impl Uploads {
    /// Says whether the operator wants any.
    pub(super) fn allow(&mut self, allowed: bool) {
        self.allowed = allowed;
    }

    /// Forgets all that came in.
    pub(super) fn reset(&mut self) {
        *self = Self { allowed: self.allowed, ..Self::default() };
    }

    /// Whether `len` bytes at `place` would be taken now.
    pub(super) fn check(&self, place: Place, len: usize) -> Result<(), ErrorCode> {
        if !self.allowed {
            return Err(ErrorCode::Denied);
        }
        if self.whole.is_some() {
            return Err(ErrorCode::Busy);
        }
        if place.offset != 0 && self.len(place.number) != Some(place.offset) {
            return Err(ErrorCode::BadOffset);
        }
        let end = place.offset.saturating_add(len as u64);
        if end > UPLOAD_BYTES { Err(ErrorCode::TooLarge) } else { Ok(()) }
    }

    /// Takes bytes.
    pub(super) fn write(&mut self, place: Place, bytes: &[u8]) -> Result<(), ErrorCode> {
        self.check(place, bytes.len())?;
        match &mut self.begun {
            Some(upload) if place.offset != 0 => upload.bytes.extend_from_slice(bytes),
            begun => *begun = Some(Upload { number: place.number, bytes: bytes.to_vec() }),
        }
        Ok(())
    }

    /// The upload is whole: `place` says which, and how long it has to be. Returns the number of the submission.
    pub(super) fn submit(&mut self, place: Place, name: &str) -> Result<u32, ErrorCode> {
        if !self.allowed {
            return Err(ErrorCode::Denied);
        }
        if self.len(place.number) != Some(place.offset) {
            return Err(ErrorCode::BadOffset);
        }
        let upload = self.begun.take().ok_or(ErrorCode::BadOffset)?;
        // It has to fit into eax, and into the bits of a place.
        self.count = self.count % Place::NUMBER_MAX + 1;
        self.whole = Some(Submission { number: self.count, name: name.to_owned(), bytes: upload.bytes });
        Ok(self.count)
    }

    /// Bytes that are here of the upload with this number.
    fn len(&self, number: u32) -> Option<u64> {
        let upload = self.begun.as_ref().filter(|upload| upload.number == number)?;
        Some(upload.bytes.len() as u64)
    }

    /// What was handed over.
    pub(super) fn take(&mut self) -> Option<Submission> {
        self.whole.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u32, offset: u64) -> Place {
        Place { number, offset }
    }

    fn open() -> Uploads {
        Uploads { allowed: true, ..Uploads::default() }
    }

    #[test]
    fn pieces_in_order_become_a_submission() {
        let mut uploads = open();
        uploads.write(at(9, 0), b"lu").unwrap();
        uploads.write(at(9, 2), b"cos").unwrap();
        assert_eq!(uploads.submit(at(9, 4), "x"), Err(ErrorCode::BadOffset));
        assert_eq!(uploads.submit(at(9, 5), "fix.lup"), Ok(1));
        assert_eq!(uploads.submit(at(9, 5), "fix.lup"), Err(ErrorCode::BadOffset));
        assert_eq!(uploads.write(at(9, 0), b"x"), Err(ErrorCode::Busy));
        let taken = uploads.take().unwrap();
        assert_eq!((taken.number, &taken.name[..], &taken.bytes[..]), (1, "fix.lup", &b"lucos"[..]));
        uploads.write(at(9, 0), b"x").unwrap();
        assert_eq!(uploads.submit(at(9, 1), "y"), Ok(2));
    }

    #[test]
    fn two_at_once_do_not_mix() {
        let mut uploads = open();
        uploads.write(at(1, 0), b"aa").unwrap();
        uploads.write(at(2, 0), b"bb").unwrap();
        assert_eq!(uploads.write(at(1, 2), b"aa"), Err(ErrorCode::BadOffset));
        assert_eq!(uploads.submit(at(1, 2), "a"), Err(ErrorCode::BadOffset));
        uploads.write(at(2, 2), b"bb").unwrap();
        uploads.submit(at(2, 4), "b").unwrap();
        assert_eq!(uploads.take().unwrap().bytes, b"bbbb");
    }

    #[test]
    fn no_order_of_pieces_takes_more_than_the_limit() {
        let mut uploads = open();
        let piece = vec![0; 64 << 10];
        for offset in [1, u64::MAX, Place::OFFSET_MAX] {
            assert_eq!(uploads.write(at(1, offset), &piece), Err(ErrorCode::BadOffset));
        }
        for offset in (0..UPLOAD_BYTES).step_by(piece.len()) {
            uploads.write(at(1, offset), &piece).unwrap();
        }
        assert_eq!(uploads.write(at(1, UPLOAD_BYTES), b"x"), Err(ErrorCode::TooLarge));
        uploads.submit(at(1, UPLOAD_BYTES), "x").unwrap();
        assert_eq!(uploads.write(at(1, 0), b"x"), Err(ErrorCode::Busy));
    }

    #[test]
    fn nothing_is_kept_that_the_operator_does_not_want() {
        let mut uploads = Uploads::default();
        assert_eq!(uploads.write(at(1, 0), b"x"), Err(ErrorCode::Denied));
        assert_eq!(uploads.submit(at(1, 0), "x"), Err(ErrorCode::Denied));
        assert!(uploads.begun.is_none());
    }
}
