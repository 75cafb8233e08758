//! What is done about an exit, wherever the vCPU goes on behind it.

use std::sync::Arc;

use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use update_server::addr::Gva;
use update_server::x86::stub;

use super::caller::caller;
use super::exit::VmExit;
use super::thread::GuestStop;
use super::tombstones::{TOMBSTONE_PORT, Tombstones};
use crate::agent::HypercallPort;
use crate::device::bus::Bus;
use crate::device::pci::PciBus;
use crate::sys::kvm::KvmError;
use crate::sys::vcpu::Attached;
use crate::trap::Traps;
use crate::update::StubExits;

/// RFLAGS.TF (Intel SDM vol. 1, 3.4.3).
const TF: u64 = 1 << 8;

/// Where exits go: the two address spaces of a PC, and hypercalls.
#[derive(Debug)]
pub struct PortsAndMemory {
    /// I/O ports.
    pub ports: Bus,
    /// Memory addresses without RAM.
    pub pci: Arc<PciBus>,
    /// Hypercalls. They are on no bus: they need the registers and page tables of the vCPU that makes them.
    pub hypercalls: HypercallPort,
    /// Tombstones. They are on no bus, either: where the vCPU stands is what matters.
    pub tombstones: Arc<Tombstones>,
    /// Stubs of patches, which are told by where the vCPU is.
    pub stubs: Arc<StubExits>,
}

impl PortsAndMemory {
    /// Serves any exit but those that need the vCPU's registers.
    fn serve(&self, exit: VmExit<'_>) -> Result<(), GuestStop> {
        match exit {
            VmExit::PortIn { port, size, data } => {
                data.chunks_mut(size).for_each(|unit| self.ports.read(u64::from(port), unit));
            }
            VmExit::PortOut { port, size, data } => {
                data.chunks(size).for_each(|unit| self.ports.write(u64::from(port), unit));
            }
            VmExit::MmioRead { address, data } => {
                data.fill(0xff);
                self.pci.read_memory(address, data);
            }
            VmExit::MmioWrite { address, data } => {
                self.pci.write_memory(address, data);
            }
            VmExit::Interrupted
            | VmExit::Hypercall
            | VmExit::Tombstone
            | VmExit::Stub { .. }
            | VmExit::MsrWrite { .. } => {}
            VmExit::Trapped => {
                return Err(GuestStop::Stuck(
                    "memory that the host cannot give it (KVM_RUN: EFAULT)".to_owned(),
                ));
            }
            VmExit::Stepped { .. } => {
                return Err(GuestStop::Stuck(
                    "one instruction was carried out, which nobody asked for".to_owned(),
                ));
            }
            VmExit::Shutdown => return Err(GuestStop::TripleFault),
            VmExit::SystemManagement => return Err(GuestStop::SystemManagementMode),
            VmExit::NotEmulated { data }
            | VmExit::InternalError { suberror: KVM_INTERNAL_ERROR_EMULATION, data } => {
                return Err(GuestStop::Stuck(format!(
                    "an instruction that KVM cannot emulate, or code where there is no RAM (KVM internal error, \
                     data {data:x?})"
                )));
            }
            VmExit::InternalError { suberror, data } => {
                return Err(GuestStop::Stuck(format!("KVM internal error {suberror}, data {data:x?}")));
            }
            VmExit::FailEntry { reason } => {
                return Err(GuestStop::Stuck(format!(
                    "the CPU refused the guest's state, reason {reason:#x}"
                )));
            }
            VmExit::Unexpected { reason } => {
                return Err(GuestStop::Stuck(format!("KVM exit {reason}, which this VMM does not know")));
            }
        }
        Ok(())
    }
}

/// What is to be done when an exit has been served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    /// Nothing more.
    Done,
    /// The guest steps through its own code, and has to hear of it when the instruction is complete: KVM does not raise that
    /// exception behind a write that left (arch/x86/kvm/x86.c, `x86_emulate_instruction`), as a write to memory never does by
    /// itself.
    GuestStep,
}

/// Serves the last exit, unless it is one for which the vCPU may be put elsewhere.
pub(super) fn serve(
    id: u8,
    vcpu: &mut Attached<'_>,
    bus: &PortsAndMemory,
    traps: &Traps,
) -> Result<Served, GuestStop> {
    let emulated = match vcpu.last_exit() {
        VmExit::MmioRead { address, .. } => traps.is_ram(address).then_some(false),
        VmExit::MmioWrite { address, .. } => traps.is_ram(address).then_some(true),
        _ => None,
    };
    if let Some(writes) = emulated {
        let regs = vcpu.general_registers().map_err(|error| GuestStop::Stuck(error.to_string()))?;
        traps.emulated(id, regs.rip, vcpu.last_exit());
        return Ok(if writes && regs.rflags & TF != 0 { Served::GuestStep } else { Served::Done });
    }
    if matches!(vcpu.last_exit(), VmExit::NotEmulated { .. }) && ends_a_program(vcpu)? {
        vcpu.raise_undefined().map_err(|error| GuestStop::Stuck(error.to_string()))?;
        return Ok(Served::Done);
    }
    match vcpu.last_exit() {
        VmExit::Hypercall => serve_hypercall(vcpu, &bus.hypercalls)?,
        // Nobody stays there, or it is a string's.
        VmExit::Tombstone => read_nothing(vcpu, bus),
        VmExit::Stub { value } => serve_stub(vcpu, bus, value)?,
        VmExit::MsrWrite { index, value } => traps.write_msr(id, vcpu, index, value),
        other => bus.serve(other)?,
    }
    Ok(Served::Done)
}

/// Whether an instruction that KVM cannot emulate is a program's. KVM would give that the exception, and let the guest live on, if it
/// were not told to leave (arch/x86/kvm/x86.c, `handle_emulation_failure`). One that gets an exception already is not helped by
/// another: KVM did not even come to its instruction.
fn ends_a_program(vcpu: &Attached<'_>) -> Result<bool, GuestStop> {
    let state = vcpu.state().map_err(|error| GuestStop::Stuck(error.to_string()))?;
    Ok(state.sregs.ss.dpl != 0 && state.events.exception.injected == 0)
}

/// Answers a hypercall: only here are registers read, so that other exits cost no more.
fn serve_hypercall(vcpu: &mut Attached<'_>, port: &HypercallPort) -> Result<(), GuestStop> {
    let caller = caller(vcpu.fd()).map_err(|error| GuestStop::Stuck(error.to_string()))?;
    vcpu.answer(port.serve(&caller));
    Ok(())
}

/// Answers a read of the port that tombstones name as the bus does.
fn read_nothing(vcpu: &mut Attached<'_>, bus: &PortsAndMemory) {
    let mut data = [0; 4];
    bus.ports.read(TOMBSTONE_PORT.into(), &mut data);
    vcpu.answer(u32::from_le_bytes(data));
}

/// Notes that a frame leaves through a stub. From anywhere else it is a write to a port like any other.
fn serve_stub(vcpu: &mut Attached<'_>, bus: &PortsAndMemory, value: u8) -> Result<(), GuestStop> {
    if bus.stubs.any() {
        let regs = vcpu.fd().get_regs().map_err(KvmError::of("KVM_GET_REGS"));
        let rip = regs.map_err(|error| GuestStop::Stuck(error.to_string()))?.rip;
        if bus.stubs.passed(Gva(rip)) {
            return Ok(());
        }
    }
    bus.ports.write(u64::from(stub::PORT), &[value]);
    Ok(())
}
