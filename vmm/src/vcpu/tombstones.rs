//! Where old code of the guest's kernel is filled with traps, and who comes to one.
//!
//! Who patches the guest says where they are. A vCPU that comes to one stays there: it leaves the guest again and again, until the
//! old code is back.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

/// The port that a tombstone reads four bytes of.
pub const TOMBSTONE_PORT: u16 = update_server::phases::tombstones::TOMBSTONE as u16;

/// A vCPU on a tombstone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Met {
    /// Its number.
    pub vcpu: u8,
    /// Where it is.
    pub rip: u64,
}

/// All tombstones of one guest.
pub struct Tombstones {
    /// By address.
    places: RwLock<Vec<Range<u64>>>,
    /// Whether there are any, so that other guests' exits cost nothing.
    any: AtomicBool,
    /// Whether somebody was told who has not heard yet: the one who stands there comes again and again.
    told: AtomicBool,
    tell: Box<dyn Fn(Met) + Send + Sync>,
}

impl Tombstones {
    /// None yet. `tell` is called on the thread of the vCPU that has come to one, and does not wait for anything.
    pub fn new(tell: impl Fn(Met) + Send + Sync + 'static) -> Self {
        Self {
            places: RwLock::default(),
            any: AtomicBool::new(false),
            told: AtomicBool::new(false),
            tell: Box::new(tell),
        }
    }

    /// Says where they are from now on; while no vCPU runs.
    pub fn set(&self, places: impl IntoIterator<Item = Range<u64>>) {
        let mut places: Vec<_> = places.into_iter().collect();
        places.sort_unstable_by_key(|place| place.start);
        self.any.store(!places.is_empty(), Ordering::Release);
        *self.places.write().unwrap_or_else(PoisonError::into_inner) = places;
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Tells of a vCPU that reads the port in the kernel, if it stands on one of them; whether it does.
    pub fn meet(&self, met: Met) -> bool {
        if !self.has(met.rip) {
            return false;
        }
        if !self.told.swap(true, Ordering::AcqRel) {
            (self.tell)(met);
        }
        true
    }

    /// The last one that was told of is dealt with.
    pub fn heard(&self) {
        self.told.store(false, Ordering::Release);
    }

    fn has(&self, at: u64) -> bool {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        let behind = places.partition_point(|place| place.start <= at);
        behind.checked_sub(1).is_some_and(|index| places[index].contains(&at))
    }
}

impl Default for Tombstones {
    /// For a guest that nobody patches.
    fn default() -> Self {
        Self::new(|_| {})
    }
}

impl fmt::Debug for Tombstones {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tombstones").field("any", &self.any()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn one_is_told_of_until_that_is_heard() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&told);
        let tombstones = Tombstones::new(move |met: Met| seen.lock().unwrap().push(met.rip));
        let meet = |rip| tombstones.meet(Met { vcpu: 1, rip });
        assert!(!tombstones.any() && !meet(0x1000));
        tombstones.set([0x2000..0x2010, 0x1000..0x1002]);
        assert!(tombstones.any());
        assert_eq!(
            [0xfff, 0x1000, 0x1001, 0x1002, 0x200f, 0x2010].map(meet),
            [false, true, true, false, true, false]
        );
        assert_eq!(*told.lock().unwrap(), [0x1000]);
        tombstones.heard();
        assert!(meet(0x2000) && meet(0x2000));
        assert_eq!(*told.lock().unwrap(), [0x1000, 0x2000]);
        tombstones.set([]);
        tombstones.heard();
        assert!(!tombstones.any() && !meet(0x2000));
        assert_eq!(told.lock().unwrap().len(), 2);
    }
}
