//! Pages that KVM writes to by itself.
//!
//! The guest names them by writing to a model-specific register. KVM writes to them past every trap, and does not write at all where
//! a page is protected (measured: the guest's clock stands still, and nothing is reported). So those writes leave to this VMM, which
//! remembers the pages; none of them can be watched.

use std::collections::HashMap;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use update_server::addr::Gpa;
use update_server::watch::page_of;

/// A register that names memory to KVM (Documentation/virt/kvm/x86/msr.rst). Those of Hyper-V are none: no guest is told that
/// there is one, and KVM refuses them then, to the guest, but not to this VMM.
struct Register {
    index: u32,
    what: &'static str,
    /// The bits that are no part of the address.
    flags: u64,
    /// The bit that must be set for KVM to write; 0 where any value will do.
    enable: u64,
    /// Whether KVM goes on to write there.
    stays: bool,
}

const REGISTERS: [Register; 7] = [
    Register { index: 0x4b56_4d01, what: "clock", flags: 1, enable: 1, stays: true },
    Register { index: 0x12, what: "clock", flags: 1, enable: 1, stays: true },
    Register { index: 0x4b56_4d00, what: "wall clock", flags: 0, enable: 0, stays: false },
    Register { index: 0x11, what: "wall clock", flags: 0, enable: 0, stays: false },
    Register { index: 0x4b56_4d02, what: "asynchronous page faults", flags: 0x3f, enable: 1, stays: true },
    Register { index: 0x4b56_4d03, what: "steal time", flags: 0x3f, enable: 1, stays: true },
    Register { index: 0x4b56_4d04, what: "end of interrupts", flags: 3, enable: 1, stays: true },
];
/// The longest of what is written there: steal time has 64 bytes. It may cross a page.
const LONGEST: u64 = 64;

/// The registers whose writes are to leave to this VMM.
pub(super) fn watched() -> Vec<u32> {
    REGISTERS.iter().map(|register| register.index).collect()
}

/// The pages of one guest.
#[derive(Debug, Default)]
pub(super) struct HypervisorPages {
    /// By vCPU and register.
    named: HashMap<(u8, u32), (Gpa, &'static str)>,
}

/// What a write to a register will make KVM write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) pages: [Gpa; 2],
    pub(super) what: &'static str,
}

/// What the guest names when it writes `value` to register `index`.
pub(super) fn named(index: u32, value: u64) -> Option<Named> {
    let register = REGISTERS.iter().find(|register| register.index == index)?;
    if register.enable != 0 && value & register.enable == 0 {
        return None;
    }
    let at = value & !register.flags;
    let pages = [page_of(Gpa(at)), page_of(Gpa(at.saturating_add(LONGEST - 1)))];
    Some(Named { pages, what: register.what })
}

impl HypervisorPages {
    /// What the page is used for.
    pub(super) fn purpose(&self, page: Gpa) -> Option<&'static str> {
        let uses = |at: &Gpa| page == page_of(*at) || page == page_of(Gpa(at.0.saturating_add(LONGEST - 1)));
        self.named.values().find(|(at, _)| uses(at)).map(|(_, what)| *what)
    }

    /// Remembers what a vCPU has written to a register.
    pub(super) fn set(&mut self, vcpu: u8, index: u32, value: u64) {
        let Some(register) = REGISTERS.iter().find(|register| register.index == index) else { return };
        if register.stays && named(index, value).is_some() {
            self.named.insert((vcpu, index), (Gpa(value & !register.flags), register.what));
        } else {
            self.named.remove(&(vcpu, index));
        }
    }
}

/// Writes a register as the guest wanted to; `false` when KVM refuses that.
pub(super) fn write(fd: &VcpuFd, index: u32, value: u64) -> bool {
    let entry = kvm_msr_entry { index, data: value, ..kvm_msr_entry::default() };
    // One entry always fits.
    Msrs::from_entries(&[entry]).is_ok_and(|msrs| fd.set_msrs(&msrs).is_ok_and(|written| written == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_known_while_they_are_named() {
        let mut pages = HypervisorPages::default();
        pages.set(1, 0x4b56_4d01, 0x5041);
        pages.set(0, 0x12, 0x7fe1);
        assert_eq!(
            [0x5000, 0x6000, 0x7000, 0x8000].map(|at| pages.purpose(Gpa(at))),
            [
                Some("clock"),
                None,
                Some("clock"),
                // It goes on there.
                Some("clock"),
            ]
        );
        pages.set(1, 0x4b56_4d01, 0x5040);
        pages.set(2, 0x4b56_4d00, 0x5000);
        assert_eq!(pages.purpose(Gpa(0x5000)), None);
        assert_eq!(named(0x4b56_4d00, 0x5000).map(|named| named.what), Some("wall clock"));
        assert_eq!(named(0x4b56_4d04, 0x5002), None);
    }
}
