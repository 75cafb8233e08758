//! Stubs that somebody is to come through, between vCPU threads, which see that, and the owner of patches, who is told.
//!
//! A guest can come through a stub as often as it likes. Each is told of once, and one event at most is on its way, so that all that
//! it costs is the guest's own time.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use update_server::addr::Gva;
use update_server::x86::stub;

/// One of them.
#[derive(Debug)]
struct Stub {
    at: Gva,
    /// Whether somebody has come through it.
    passed: AtomicBool,
}

/// All of them.
#[derive(Default)]
pub struct StubExits {
    /// By address.
    stubs: RwLock<Vec<Stub>>,
    /// How many there are, for those who come when there is none.
    count: AtomicUsize,
    /// Whether the owner was told that somebody has come through one.
    told: AtomicBool,
    tell: Option<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for StubExits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StubExits").field("stubs", &self.stubs).finish_non_exhaustive()
    }
}

impl StubExits {
    /// Calls `tell` when somebody has come through a stub, and then not before [`StubExits::take`]. It is called on a vCPU's thread,
    /// and must not wait.
    pub(super) fn new(tell: impl Fn() + Send + Sync + 'static) -> Self {
        Self { tell: Some(Box::new(tell)), ..Self::default() }
    }

    /// Whether there is any.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// A vCPU with RIP at `rip` has written to the stubs' port; whether from a stub that somebody is to come through.
    pub(crate) fn passed(&self, rip: Gva) -> bool {
        let Some(at) = stub::of_rip(rip) else { return false };
        let stubs = self.stubs.read().unwrap_or_else(PoisonError::into_inner);
        let Ok(index) = stubs.binary_search_by_key(&at, |stub| stub.at) else { return false };
        if !stubs[index].passed.swap(true, Ordering::AcqRel)
            && !self.told.swap(true, Ordering::AcqRel)
            && let Some(tell) = &self.tell
        {
            tell();
        }
        true
    }

    /// From now on somebody is to come through `wanted`, and no others. What was seen of one that was there before, and was not
    /// taken, stays.
    pub(super) fn watch(&self, mut wanted: Vec<Gva>) {
        wanted.sort_unstable();
        let mut stubs = self.stubs.write().unwrap_or_else(PoisonError::into_inner);
        let passed = |at: Gva| {
            let found = stubs.binary_search_by_key(&at, |stub| stub.at);
            found.is_ok_and(|index| stubs[index].passed.load(Ordering::Acquire))
        };
        let all = wanted.into_iter().map(|at| Stub { at, passed: passed(at).into() }).collect();
        *stubs = all;
        self.count.store(stubs.len(), Ordering::Relaxed);
    }

    /// The stubs that somebody has come through. They are given again until others are watched.
    pub(super) fn take(&self) -> Vec<Gva> {
        // First: who comes from here on is told of again.
        self.told.store(false, Ordering::Release);
        let stubs = self.stubs.read().unwrap_or_else(PoisonError::into_inner);
        stubs.iter().filter(|stub| stub.passed.load(Ordering::Acquire)).map(|stub| stub.at).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn whoever_comes_through_a_stub_is_told_of_once() {
        let calls = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&calls);
        let exits = StubExits::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let calls = || calls.load(Ordering::Relaxed);
        let (one, other) = (Gva(0xffff_ffff_c040_0018), Gva(0xffff_ffff_c050_0800));
        assert!(!exits.any() && !exits.passed(stub::entry(one)));
        exits.watch(vec![other, one]);
        assert!(exits.any());
        // Not from anywhere else in a stub, or from others.
        for rip in [one, one.wrapping_add(2), one.wrapping_add(9), one.wrapping_offset(-7), Gva(1)] {
            assert!(!exits.passed(rip), "{rip}");
        }
        assert_eq!((exits.take(), calls()), (vec![], 0));
        for _ in 0..1000 {
            assert!(exits.passed(stub::entry(one)) && exits.passed(other.wrapping_add(3)));
        }
        assert_eq!((exits.take(), calls()), (vec![one, other], 1));
        // What is taken is told of no more; what is to be taken yet is not forgotten.
        exits.watch(vec![one]);
        assert!(exits.passed(stub::entry(one)) && !exits.passed(stub::entry(other)));
        assert_eq!((exits.take(), calls()), (vec![one], 1));
        exits.watch(vec![]);
        exits.watch(vec![one, other]);
        assert!(exits.passed(stub::entry(other)));
        assert_eq!((exits.take(), calls()), (vec![other], 2));
        exits.watch(vec![]);
        assert!(!exits.any() && !exits.passed(stub::entry(one)));
    }
}
