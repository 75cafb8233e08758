//! The state of a vCPU that is out of the guest: what KVM has left of it in shared memory, and what it takes from there on the next
//! entry (KVM api.rst 6.74, `KVM_CAP_SYNC_REGS`).

use std::io;

use kvm_bindings::{
    KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, KVM_VCPUEVENT_VALID_TRIPLE_FAULT, kvm_regs,
    kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::{Error as KvmErrno, SyncReg};

use super::Attached;

/// The vector of an undefined instruction (Intel SDM vol. 3A, 6.15).
const UNDEFINED: u8 = 6;

/// A vCPU's registers, and what is about to be delivered to it.
#[derive(Debug, Clone, Copy, Default)]
pub struct VcpuState {
    /// General registers, RIP and flags.
    pub regs: kvm_regs,
    /// Segments, tables and control registers.
    pub sregs: kvm_sregs,
    /// Exceptions, interrupts and NMIs on their way (KVM api.rst 4.31).
    pub events: kvm_vcpu_events,
}

impl Attached<'_> {
    /// The registers as they were when [`Attached::drain`] found that nothing is pending, if KVM has left them. They cost no call.
    pub fn registers(&self) -> Option<(kvm_regs, kvm_sregs)> {
        let both = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
        (self.left & both == both).then(|| {
            let left = self.vcpu.fd.sync_regs();
            (left.regs, left.sregs)
        })
    }

    /// The whole state at the last exit.
    pub fn state(&self) -> io::Result<VcpuState> {
        let all = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
        if self.left & all == all {
            let left = self.vcpu.fd.sync_regs();
            return Ok(VcpuState { regs: left.regs, sregs: left.sregs, events: left.events });
        }
        let fd = &self.vcpu.fd;
        let read =
            || Ok(VcpuState { regs: fd.get_regs()?, sregs: fd.get_sregs()?, events: fd.get_vcpu_events()? });
        read().map_err(|error: KvmErrno| error.into())
    }

    /// The general registers at the last exit.
    pub fn general_registers(&self) -> io::Result<kvm_regs> {
        if self.left & KVM_SYNC_X86_REGS != 0 {
            return Ok(self.vcpu.fd.sync_regs().regs);
        }
        Ok(self.vcpu.fd.get_regs()?)
    }

    /// What is about to be delivered: as of the last exit, if KVM has left it then.
    pub fn events(&self) -> io::Result<kvm_vcpu_events> {
        if self.left & KVM_SYNC_X86_EVENTS != 0 {
            return Ok(self.vcpu.fd.sync_regs().events);
        }
        Ok(self.vcpu.fd.get_vcpu_events()?)
    }

    /// Puts them where KVM takes them from on the next entry, before it does anything else.
    pub fn set_events_on_entry(&mut self, events: &kvm_vcpu_events) -> io::Result<()> {
        // They are no longer those of the last exit.
        self.left &= !KVM_SYNC_X86_EVENTS;
        if !self.vcpu.vm.has_sync_regs() {
            return self.set_events(events);
        }
        self.vcpu.fd.sync_regs_mut().events = *events;
        self.vcpu.fd.set_sync_dirty_reg(SyncReg::VcpuEvents);
        Ok(())
    }

    /// Takes those back that no entry has brought.
    pub fn take_back_events(&mut self) {
        self.vcpu.fd.clear_sync_dirty_reg(SyncReg::VcpuEvents);
    }

    /// Sets them at once.
    pub fn set_events(&mut self, events: &kvm_vcpu_events) -> io::Result<()> {
        self.left &= !KVM_SYNC_X86_EVENTS;
        Ok(self.vcpu.fd.set_vcpu_events(events)?)
    }

    /// Puts the general registers where the guest gets them on the next entry; before that, nobody else sees them.
    pub fn set_general_registers(&mut self, regs: &kvm_regs) -> io::Result<()> {
        if self.vcpu.vm.has_sync_regs() {
            self.vcpu.fd.sync_regs_mut().regs = *regs;
            self.vcpu.fd.set_sync_dirty_reg(SyncReg::Register);
            return Ok(());
        }
        Ok(self.vcpu.fd.set_regs(regs)?)
    }

    /// Puts everything back that `state` has.
    pub fn restore(&mut self, state: &VcpuState) -> io::Result<()> {
        self.left = 0;
        self.vcpu.fd.set_sregs(&state.sregs)?;
        self.vcpu.fd.set_regs(&state.regs)?;
        // What is optional is not written back.
        self.set_events(&kvm_vcpu_events { flags: 0, ..state.events })
    }

    /// Takes back a shutdown that KVM has on its way, if there is one and it shows that.
    pub fn take_back_shutdown(&mut self) -> io::Result<bool> {
        let mut events = self.events()?;
        if events.triple_fault.pending == 0 {
            return Ok(false);
        }
        (events.flags, events.triple_fault.pending) = (KVM_VCPUEVENT_VALID_TRIPLE_FAULT, 0);
        self.set_events(&events)?;
        Ok(true)
    }

    /// Lets the guest see that its processor does not have the next instruction.
    pub fn raise_undefined(&mut self) -> io::Result<()> {
        self.raise(UNDEFINED)
    }

    /// Raises an exception without an error code, before the next instruction.
    pub fn raise(&mut self, vector: u8) -> io::Result<()> {
        self.change_events(|events| {
            (events.exception.injected, events.exception.nr, events.exception.has_error_code) =
                (1, vector, 0);
        })
    }

    /// Changes what is about to be delivered.
    pub fn change_events(&mut self, change: impl FnOnce(&mut kvm_vcpu_events)) -> io::Result<()> {
        // As of now: an NMI may have come since the last exit.
        let mut events = self.vcpu.fd.get_vcpu_events()?;
        // What is optional is not written back.
        events.flags = 0;
        change(&mut events);
        self.set_events(&events)
    }
}
