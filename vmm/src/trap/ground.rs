//! Where one vCPU carries out what was trapped: where the watched pages are open to it and to nobody else.
//!
//! Either in the second view, while all others run on; or, where KVM has none, in the first one, while all others are kept out of the
//! guest. In both, the table of interrupts or the handlers' pages are closed, so that the vCPU comes back before a handler runs.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_VCPUEVENT_VALID_SMM, kvm_vcpu_events};
use kvm_ioctls::VcpuFd;
use update_server::addr::Gpa;
use update_server::watch::Access;

use super::armed::ArmedPages;
use super::doors::Doors;
use super::ram::Ram;
use crate::sys::vcpu::Attached;
use crate::sys::{PAGE, Protection, View};

/// Most pages that stay closed in the second view: a table of interrupts and its handlers have some ten, 258 at most.
const MOST_CLOSED: usize = 512;

/// One of the two.
#[derive(Debug)]
pub(super) enum Ground {
    /// The second view. What is closed there stays so from step to step.
    SecondView { closed: BTreeSet<u64> },
    /// The first view, with all others held.
    AllHeld {
        doors: Arc<Doors>,
        /// Pages that are protected otherwise than they will be when the others go on.
        changed: BTreeSet<u64>,
    },
}

/// All vCPUs but one are out of the guest, until this is dropped.
#[derive(Debug)]
pub(super) struct Held(Arc<Doors>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// What a step needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    /// Pages to be closed, if the instruction does not need them.
    pub(super) close: &'a [Gpa],
    /// Pages that it needs.
    pub(super) need: &'a [Gpa],
    /// Whether it may need any other that is watched.
    pub(super) others: bool,
}

impl Ground {
    pub(super) fn second_view() -> Self {
        Self::SecondView { closed: BTreeSet::new() }
    }

    pub(super) fn all_held(doors: &Arc<Doors>) -> Self {
        Self::AllHeld { doors: Arc::clone(doors), changed: BTreeSet::new() }
    }

    /// Keeps all other vCPUs out of the guest until what is returned is dropped, if that is how steps are made here. What is looked at
    /// meanwhile stays as it is.
    pub(super) fn hold(&self) -> io::Result<Option<Held>> {
        let Self::AllHeld { doors, .. } = self else { return Ok(None) };
        let failed = |count| io::Error::other(format!("{count} vCPUs did not come out of the guest"));
        doors.close().map_err(failed)?;
        Ok(Some(Held(Arc::clone(doors))))
    }

    /// Puts the vCPU there; says whether it is. One that another has sent an INIT is not: it will not carry out what it was trapped
    /// at, but begin anew, and in the second view KVM would drop what tells it where (arch/x86/kvm/lapic.c,
    /// `kvm_apic_accept_events`).
    pub(super) fn enter(
        &mut self,
        vcpu: &mut Attached<'_>,
        plan: Plan<'_>,
        pages: &ArmedPages,
    ) -> io::Result<bool> {
        let close = |page: &&Gpa| !plan.need.contains(page);
        match self {
            Self::SecondView { closed } => {
                // What else is closed there is in nobody's way, unless it is needed.
                for page in plan.need.iter().filter(|page| closed.contains(&page.0)) {
                    protect(&pages.ram, page.0, Protection::Open, second)?;
                }
                closed.retain(|page| !plan.need.contains(&Gpa(*page)));
                for page in plan.close.iter().filter(close).filter(|page| !closed.contains(&page.0)) {
                    protect(&pages.ram, page.0, Protection::Closed, second)?;
                }
                closed.extend(plan.close.iter().filter(close).map(|page| page.0));
                // A guest that moves its handlers about would have all its memory closed in time.
                if closed.len() > MOST_CLOSED {
                    for page in closed.iter().filter(|page| !plan.close.contains(&Gpa(**page))) {
                        protect(&pages.ram, *page, Protection::Open, second)?;
                    }
                    closed.retain(|page| plan.close.contains(&Gpa(*page)));
                }
                // As of now, and nothing else is done before the entry: another vCPU may send an INIT at any time.
                let events = events(vcpu.fd())?;
                let begins_anew = events.smi.latched_init != 0;
                if !begins_anew {
                    vcpu.set_events_on_entry(&with_system_management(events, true))?;
                }
                Ok(!begins_anew)
            }
            Self::AllHeld { changed, .. } => {
                // No vCPU can send one now; a message of a device can be one, and no kernel has it so.
                if events(vcpu.fd())?.smi.latched_init != 0 {
                    return Ok(false);
                }
                let need = plan.need.iter().map(|page| page.0).filter(|page| pages.pages.contains_key(page));
                let open: Vec<u64> =
                    if plan.others { pages.pages.keys().copied().collect() } else { need.collect() };
                for page in open {
                    changed.insert(page);
                    protect(&pages.ram, page, Protection::Open, first)?;
                }
                for page in plan.close.iter().filter(close) {
                    changed.insert(page.0);
                    protect(&pages.ram, page.0, Protection::Closed, first)?;
                }
                Ok(true)
            }
        }
    }

    /// Opens everything but `keep`, for a step that needs more than was known.
    pub(super) fn open_all(&mut self, pages: &ArmedPages, keep: &[Gpa]) -> io::Result<()> {
        let keeps = |page: u64| keep.contains(&Gpa(page));
        match self {
            Self::SecondView { closed } => {
                let open = closed.iter().filter(|page| !keeps(**page));
                open.into_iter().try_for_each(|&page| protect(&pages.ram, page, Protection::Open, second))?;
                closed.retain(|page| keeps(*page));
            }
            Self::AllHeld { changed, .. } => {
                changed.extend(pages.pages.keys());
                let mut open = changed.iter().filter(|page| !keeps(**page));
                open.try_for_each(|&page| protect(&pages.ram, page, Protection::Open, first))?;
            }
        }
        Ok(())
    }

    /// Takes the vCPU away from there; says whether it had left the second view by itself. What cannot be closed again is reported;
    /// the vCPU has left in any case.
    pub(super) fn leave(&mut self, vcpu: &mut Attached<'_>, pages: &ArmedPages) -> io::Result<bool> {
        match self {
            Self::SecondView { .. } => {
                vcpu.take_back_events();
                let events = vcpu.events()?;
                let by_itself = events.smi.smm == 0;
                if !by_itself {
                    vcpu.set_events(&with_system_management(events, false))?;
                }
                Ok(by_itself)
            }
            Self::AllHeld { changed, .. } => {
                let again = changed.iter().try_for_each(|&page| {
                    let access = pages.pages.get(&page).map(|armed| armed.access);
                    protect(&pages.ram, page, protection(access), first)
                });
                changed.clear();
                again.map(|()| false)
            }
        }
    }

    /// Opens what is closed for no step in particular; when nothing is watched any more.
    pub(super) fn rest(&mut self, ram: &Ram) -> io::Result<()> {
        let Self::SecondView { closed } = self else { return Ok(()) };
        let closed = std::mem::take(closed);
        closed.iter().try_for_each(|&page| protect(ram, page, Protection::Open, second))
    }
}

/// How a page is protected in the first view.
pub(super) fn protection(access: Option<Access>) -> Protection {
    match access {
        None => Protection::Open,
        Some(Access::Writes) => Protection::ReadOnly,
        Some(Access::All) => Protection::Closed,
    }
}

/// The view that the guest runs on.
pub(super) fn first(region: &crate::memory::RamRegion) -> &View {
    region.protectable()
}

fn second(region: &crate::memory::RamRegion) -> &View {
    region.second()
}

fn protect(
    ram: &Ram,
    page: u64,
    protection: Protection,
    view: impl Fn(&crate::memory::RamRegion) -> &View,
) -> io::Result<()> {
    // What is no RAM cannot be protected, and needs not be: an access to it leaves by itself.
    let Some((region, offset)) = ram.region(Gpa(page), PAGE) else { return Ok(()) };
    view(region).protect(offset, PAGE, protection)
}

fn events(fd: &VcpuFd) -> io::Result<kvm_vcpu_events> {
    Ok(fd.get_vcpu_events()?)
}

/// KVM uses its second address space for a vCPU whose system management flag is set (KVM api.rst 4.35). The flag can be set without
/// anything else that comes with that mode (KVM api.rst 4.32, `KVM_SET_VCPU_EVENTS`). With the flag goes whether an INIT is pending: one
/// that comes after `events` were read, right before the entry and at the exit, is lost; so is a start-up that comes during the step.
fn with_system_management(mut events: kvm_vcpu_events, on: bool) -> kvm_vcpu_events {
    // Nothing else is written back: an NMI may have come meanwhile.
    events.flags = KVM_VCPUEVENT_VALID_SMM;
    events.smi.smm = u8::from(on);
    events
}
