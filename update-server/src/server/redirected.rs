//! Frames that tell the host by themselves that they leave, of all patches.

use std::collections::{BTreeMap, HashSet};

use super::{Entry, Patch, UpdateServer};
use crate::addr::Gva;
use crate::census::Census;
use crate::guest::Memory;
use crate::kernel::running::Running;
use crate::phases::redirect::{Plan, Stubs};
use crate::phases::stack_check::Presence;

impl UpdateServer {
    /// A vCPU has come through the stub at `stub`, as far as the guest can be believed: it can jump there as it likes. Whether that was
    /// waited for.
    pub fn passed(&mut self, stub: Gva) -> bool {
        self.patches.values_mut().any(|entry| entry.stubs.passed(stub))
    }

    /// Every stub that a frame is still to come through.
    pub fn waiting(&self) -> impl Iterator<Item = Gva> {
        self.patches.values().flat_map(|entry| entry.stubs.waiting())
    }

    /// Leaves of frames only those stubs that will tell. One that somebody has come through, while it is still on a stack, was told a
    /// lie about; then its frame is watched as others are.
    pub(super) fn believe(&self, presence: &mut Presence) {
        let waiting: HashSet<Gva> = self.waiting().collect();
        for leave in presence.holders.iter_mut().filter_map(|holder| holder.leave.as_mut()) {
            if leave.stub.is_some_and(|stub| !waiting.contains(&stub)) {
                (leave.stub, leave.certain) = (None, false);
            }
        }
    }
}

impl Entry {
    /// What was made of the stubs of a module whose sections are at `sections`: of one that was loaded anew, nothing.
    pub(super) fn stubs_at(&self, sections: &BTreeMap<String, Gva>) -> Stubs {
        if self.sections.as_deref() == Some(sections) { self.stubs.clone() } else { Stubs::default() }
    }
}

impl Patch {
    /// How frames of `presence` are redirected through `stubs` of its module, whose sections are at `sections`.
    pub(super) fn redirect<M: Memory>(
        &self,
        stubs: &Stubs,
        kernel: &Running<'_, M>,
        census: &Census,
        presence: &Presence,
        sections: &BTreeMap<String, Gva>,
    ) -> Plan {
        let start = if self.redirect { self.module.stubs(sections) } else { None };
        start.map(|start| stubs.plan(kernel, census, presence, start)).unwrap_or_default()
    }
}
