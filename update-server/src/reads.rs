//! What was read of a guest that ran, to ask in a pause whether it is still so.
//!
//! Whatever follows from what was read alone is true of the guest that stands still, as soon as each of those bytes is found there
//! again: it would be read again, and lead to the same. So the pause compares bytes where it would have to think.

use std::cell::RefCell;

use crate::addr::Gpa;
use crate::guest::{Memory, NoRam};
use crate::limits::{READ_BYTES, READS};

/// How much is compared at once.
const CHUNK: usize = 4096;

/// A guest's RAM, with a record of what is read of it.
#[derive(Debug)]
pub(crate) struct Recorder<'m, M: ?Sized> {
    memory: &'m M,
    record: RefCell<Record>,
}

#[derive(Debug, Default)]
struct Record {
    /// Where something was read, and where in `bytes` that is.
    places: Vec<(Gpa, usize)>,
    bytes: Vec<u8>,
    /// There was more than is kept.
    full: bool,
}

impl<'m, M: Memory + ?Sized> Recorder<'m, M> {
    /// Of `memory`; nothing has been read yet.
    pub(crate) fn new(memory: &'m M) -> Self {
        Self { memory, record: RefCell::default() }
    }

    /// What was read.
    pub(crate) fn finish(self) -> Reads {
        let Record { places, bytes, full } = self.record.into_inner();
        if full { Reads::default() } else { Reads::new(&places, &bytes) }
    }
}

impl<M: Memory + ?Sized> Memory for Recorder<'_, M> {
    // What has no RAM has none later either, so that only what was read is of interest.
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), NoRam> {
        self.memory.read(at, into)?;
        let mut record = self.record.borrow_mut();
        record.full |= record.places.len() >= READS || record.bytes.len() + into.len() > READ_BYTES;
        if !record.full {
            let start = record.bytes.len();
            record.places.push((at, start));
            record.bytes.extend_from_slice(into);
        }
        Ok(())
    }
}

/// Bytes that were read, and where.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// By address, apart from each other.
    pieces: Vec<(Gpa, Vec<u8>)>,
    /// Whether these are all, and none was read twice and had changed in between.
    whole: bool,
}

impl Reads {
    fn new(places: &[(Gpa, usize)], bytes: &[u8]) -> Self {
        let ends = places.iter().skip(1).map(|(_, start)| *start).chain([bytes.len()]);
        let mut reads: Vec<_> =
            places.iter().zip(ends).map(|(&(at, from), to)| (at, &bytes[from..to])).collect();
        reads.sort_by_key(|(at, _)| *at);
        let mut pieces: Vec<(Gpa, Vec<u8>)> = Vec::new();
        for (at, read) in reads {
            let last = pieces.last_mut().and_then(|(start, bytes)| {
                let from = usize::try_from(at.0 - start.0).ok().filter(|from| *from <= bytes.len())?;
                Some((bytes, from))
            });
            let Some((last, from)) = last else {
                pieces.push((at, read.to_vec()));
                continue;
            };
            let (known, more) = read.split_at(read.len().min(last.len() - from));
            if last[from..from + known.len()] != *known {
                return Self::default();
            }
            last.extend_from_slice(more);
        }
        Self { pieces, whole: true }
    }

    /// Whether all of it is in `memory`, too.
    pub(crate) fn hold(&self, memory: &(impl Memory + ?Sized)) -> bool {
        let mut found = [0; CHUNK];
        let same = |at: Gpa, expected: &[u8], found: &mut [u8; CHUNK]| {
            let found = &mut found[..expected.len()];
            memory.read(at, found).is_ok() && found == expected
        };
        let all = |(at, bytes): &(Gpa, Vec<u8>)| {
            let mut chunks = (at.0..).step_by(CHUNK).zip(bytes.chunks(CHUNK));
            chunks.all(|(at, expected)| same(Gpa(at), expected, &mut found))
        };
        self.whole && self.pieces.iter().all(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ram(RefCell<Vec<u8>>);

    impl Memory for Ram {
        fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), NoRam> {
            let ram = self.0.borrow();
            let from = usize::try_from(at.0).unwrap();
            let found = ram.get(from..from + into.len()).ok_or(NoRam { at, len: into.len() })?;
            into.copy_from_slice(found);
            Ok(())
        }
    }

    impl Ram {
        fn new() -> Self {
            Self(RefCell::new((0..0x3000_u32).map(|at| (at % 251) as u8).collect()))
        }

        fn change(&self, at: usize) {
            self.0.borrow_mut()[at] ^= 1;
        }
    }

    fn read(ram: &Ram, places: &[(u64, usize)]) -> Reads {
        let recorder = Recorder::new(ram);
        for &(at, len) in places {
            let _ = recorder.read(Gpa(at), &mut vec![0; len]);
        }
        recorder.finish()
    }

    #[test]
    fn every_byte_that_was_read_counts_and_no_other() {
        let ram = Ram::new();
        let places = [(0x100, 8), (0x2000, 1), (0xf8, 16), (0x104, 4), (0x108, 0x1800), (0x2fff, 2)];
        let reads = read(&ram, &places);
        assert_eq!(reads.pieces.len(), 2);
        assert!(reads.hold(&ram));
        let inside = |at: usize| (0xf8..0x1908).contains(&at) || at == 0x2000;
        for at in 0..0x3000 {
            ram.change(at);
            assert_eq!(reads.hold(&ram), !inside(at), "{at:#x}");
            ram.change(at);
        }
    }

    #[test]
    fn what_has_changed_between_two_readings_holds_nothing() {
        let ram = Ram::new();
        let recorder = Recorder::new(&ram);
        recorder.read(Gpa(0x10), &mut [0; 8]).unwrap();
        ram.change(0x14);
        recorder.read(Gpa(0x14), &mut [0; 8]).unwrap();
        let reads = recorder.finish();
        assert!(!reads.hold(&ram));
        ram.change(0x14);
        assert!(!reads.hold(&ram));
    }

    #[test]
    fn more_than_is_kept_holds_nothing() {
        let ram = Ram::new();
        assert!(!Reads::default().hold(&ram));
        assert!(read(&ram, &vec![(0, 1); READS]).hold(&ram));
        assert!(!read(&ram, &vec![(0, 1); READS + 1]).hold(&ram));
        assert!(!read(&ram, &vec![(0, 0x3000); READ_BYTES / 0x3000 + 1]).hold(&ram));
    }
}
