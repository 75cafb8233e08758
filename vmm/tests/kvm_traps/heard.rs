//! What was told of watched pages, checked as it comes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use update_server::addr::Gpa;
use update_server::watch::{Access, Accessed, By, Kind, Lost, Watched, Watcher, page_of};

use crate::tiny::Vcpus;

/// One access that was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) at: u64,
    pub(crate) kind: Kind,
    pub(crate) by: By,
    pub(crate) before: Vec<u8>,
    pub(crate) after: Vec<u8>,
}

#[derive(Debug, Default)]
struct Inner {
    told: Vec<Told>,
    lost: Vec<(u64, Lost)>,
    /// What each page is, by what was told of it.
    images: BTreeMap<u64, Vec<u8>>,
    wrong: Vec<String>,
}

/// Hears everything.
#[derive(Debug, Default)]
pub(crate) struct Heard(Mutex<Inner>);

impl Watcher for Heard {
    fn accessed(&self, access: &Accessed<'_>) {
        let mut inner = self.0.lock().unwrap();
        let Accessed { at, kind, by, before, after } = *access;
        let from = usize::try_from(at.0 % 4096).unwrap();
        if from + before.len() > 4096 || before.len() != after.len() || before.is_empty() {
            inner.wrong.push(format!("{access:?} is not within a page"));
            return;
        }
        if let Some(image) = inner.images.get_mut(&page_of(at).0) {
            let known = &mut image[from..from + before.len()];
            let gap = known != before;
            known.copy_from_slice(after);
            if gap {
                inner.wrong.push(format!("{access:x?} does not begin where the last one ended"));
            }
        }
        if kind == Kind::Read && before != after {
            inner.wrong.push(format!("{access:x?} changes what it reads"));
        }
        inner.told.push(Told { at: at.0, kind, by, before: before.to_vec(), after: after.to_vec() });
    }

    fn lost(&self, page: Gpa, why: &Lost) {
        self.0.lock().unwrap().lost.push((page.0, why.clone()));
    }
}

impl Heard {
    pub(crate) fn of(vcpus: &Vcpus) -> Arc<Self> {
        let heard = Arc::new(Self::default());
        vcpus.threads.traps().set_watcher(Arc::clone(&heard) as _);
        heard
    }

    /// Watches pages, which nobody writes to yet.
    pub(crate) fn watch(&self, vcpus: &Vcpus, pages: &[u64], access: Access) {
        let places: Vec<Gpa> = pages.iter().copied().map(Gpa).collect();
        for &page in pages {
            self.0.lock().unwrap().images.insert(page, bytes(vcpus, page, 4096));
        }
        vcpus.threads.set_access(&places, Some(access)).unwrap();
    }

    /// Ends that, and checks that everything was told.
    pub(crate) fn end(&self, vcpus: &Vcpus, pages: &[u64]) {
        let places: Vec<Gpa> = pages.iter().copied().map(Gpa).collect();
        vcpus.threads.set_access(&places, None).unwrap();
        self.check(false);
    }

    /// Fails if anything told was wrong, or, unless `unseen`, if something was written that nobody saw.
    pub(crate) fn check(&self, unseen: bool) {
        let inner = self.0.lock().unwrap();
        assert!(inner.wrong.is_empty(), "{:#?}", inner.wrong);
        let blind: Vec<_> = inner.told.iter().filter(|told| told.by == By::Unseen).collect();
        assert!(unseen || blind.is_empty(), "nobody saw {blind:x?}");
    }

    /// What a page is by what was told.
    pub(crate) fn image(&self, page: u64) -> Vec<u8> {
        self.0.lock().unwrap().images[&page].clone()
    }

    /// How much was told since it was last taken.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().told.len()
    }

    /// Takes what was told so far.
    pub(crate) fn take(&self) -> Vec<Told> {
        std::mem::take(&mut self.0.lock().unwrap().told)
    }

    /// What was last written to an address, eight bytes at once.
    pub(crate) fn last_word(&self, at: u64) -> Option<u64> {
        let inner = self.0.lock().unwrap();
        let told = inner.told.iter().rev().find(|told| told.at == at && told.kind == Kind::Write)?;
        told.after.as_slice().try_into().ok().map(u64::from_le_bytes)
    }

    pub(crate) fn lost(&self) -> Vec<(u64, Lost)> {
        self.0.lock().unwrap().lost.clone()
    }
}

/// Bytes of the guest's memory.
pub(crate) fn bytes(vcpus: &Vcpus, at: u64, len: usize) -> Vec<u8> {
    use vm_memory::{Bytes, GuestAddress};
    let mut bytes = vec![0; len];
    vcpus.vm.ram().memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}
