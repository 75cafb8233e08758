//! Where a processor in 64-bit mode puts the frame of an interrupt or exception (Intel SDM vol. 3A, 6.14; AMD APM vol. 2, 8.9).

use kvm_bindings::kvm_vcpu_events;
use update_server::addr::Gva;
use update_server::watch::Kind;

use super::look::Look;
use super::ram::Ram;
use super::space::Space;

/// Bytes of a gate, and how many vectors there are.
const GATE: u64 = 16;
pub(super) const VECTORS: usize = 256;
/// Where the stack pointers of the task state segment begin (Intel SDM vol. 3A, 8.7): those of privilege levels, and of gates that
/// name one.
const TSS_RSP0: u64 = 4;
const TSS_IST1: u64 = 0x24;
/// SS, RSP, RFLAGS, CS and RIP.
const FRAME: u64 = 40;
/// Types of gates (Intel SDM vol. 3A, 6.14.1).
const INTERRUPT_GATE: u8 = 0xe;
const TRAP_GATE: u8 = 0xf;
/// Type bit of a segment's descriptor (Intel SDM vol. 3A, 3.4.5.1).
const SEGMENT_ACCESSED: u64 = 1 << 40;
/// The vector of an NMI.
const NMI: u8 = 2;

/// An event that is on its way to the guest: KVM has begun to deliver it, and was stopped by a page that is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Injected {
    pub(super) vector: u8,
    pub(super) error_code: bool,
}

/// The one that is.
pub(super) fn injected(events: &kvm_vcpu_events) -> Option<Injected> {
    let kvm_vcpu_events { exception, interrupt, nmi, .. } = events;
    if exception.injected != 0 {
        return Some(Injected { vector: exception.nr, error_code: exception.has_error_code != 0 });
    }
    if nmi.injected != 0 {
        return Some(Injected { vector: NMI, error_code: false });
    }
    (interrupt.injected != 0).then_some(Injected { vector: interrupt.nr, error_code: false })
}

/// A gate of the descriptor table of interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gate {
    pub(super) handler: Gva,
    pub(super) selector: u16,
    /// Whether it leaves interrupts as they are: a trap gate.
    pub(super) leaves_interrupts: bool,
    /// Which stack of the task state segment it names; 0 is none.
    pub(super) stack: u8,
}

impl Gate {
    /// Reads one; `None` of one that is not there.
    pub(super) fn parse(bytes: [u8; 16]) -> Option<Self> {
        let half = |at: usize| u64::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let handler = half(0) | half(6) << 16 | half(8) << 32 | half(10) << 48;
        // Present, and of one of the two kinds that there are.
        let kind = bytes[5] & 0x9f;
        (kind == 0x80 | INTERRUPT_GATE || kind == 0x80 | TRAP_GATE).then_some(Self {
            handler: Gva(handler),
            selector: u16::from_le_bytes([bytes[2], bytes[3]]),
            leaves_interrupts: bytes[5] & 0xf == TRAP_GATE,
            stack: bytes[4] & 7,
        })
    }
}

/// Adds to `look` what the delivery of `event` accesses.
pub(super) fn foresee(look: &mut Look, space: &Space<'_>, ram: &Ram, event: Injected) {
    // What is pushed there as well is not known.
    look.others |= space.has_shadow_stacks();
    let idt = &space.sregs.idt;
    let at = Gva(idt.base.wrapping_add(u64::from(event.vector) * GATE));
    look.add(space, ram, at, GATE, Kind::Read, true);
    let mut gate = [0; 16];
    let within = u64::from(event.vector) * GATE + GATE - 1 <= u64::from(idt.limit);
    let found = within && look.read(space, ram, at, &mut gate);
    let Some(gate) = Gate::parse(gate).filter(|_| found) else {
        look.others = true;
        return;
    };
    // The code segment's descriptor, whose "accessed" bit is set if it is not yet. Nobody has kernel code in a local table.
    look.others |= gate.selector & 4 != 0;
    let at = Gva(space.sregs.gdt.base.wrapping_add(u64::from(gate.selector & !7)));
    let mut descriptor = [0; 8];
    look.add(space, ram, at, 8, Kind::Read, true);
    if !look.read(space, ram, at, &mut descriptor) || u64::from_le_bytes(descriptor) & SEGMENT_ACCESSED == 0 {
        look.add(space, ram, at, 8, Kind::Write, false);
    }
    let tss = space.sregs.tr.base;
    let slot = match (gate.stack, space.cpl) {
        (0, 0) => None,
        (0, _) => Some(tss.wrapping_add(TSS_RSP0)),
        (stack, _) => Some(tss.wrapping_add(TSS_IST1 + 8 * u64::from(stack - 1))),
    };
    let mut top = space.regs.rsp;
    if let Some(slot) = slot {
        let mut bytes = [0; 8];
        look.add(space, ram, Gva(slot), 8, Kind::Read, true);
        if !look.read(space, ram, Gva(slot), &mut bytes) {
            look.others = true;
            return;
        }
        top = u64::from_le_bytes(bytes);
    }
    let len = FRAME + if event.error_code { 8 } else { 0 };
    let bottom = Gva((top & !0xf).wrapping_sub(len));
    look.add(space, ram, bottom, len, Kind::Write, true);
    look.frame = Some((bottom, gate));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_read() {
        let gate: [u8; 16] = [0x20, 0x0e, 0x10, 0, 3, 0x8e, 0xa0, 0x81, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert_eq!(
            Gate::parse(gate),
            Some(Gate {
                handler: Gva(0xffff_ffff_81a0_0e20),
                selector: 0x10,
                leaves_interrupts: false,
                stack: 3
            })
        );
        assert_eq!(Gate::parse([0; 16]), None);
    }
}
