//! What is done behind a step: what it left in the guest that is not the guest's is taken out, and its accesses are told.

use std::io;

use iced_x86::{FlowControl, Mnemonic};
use kvm_bindings::kvm_regs;
use update_server::addr::{Gpa, Gva};
use update_server::watch::{By, Kind};

use super::armed::ArmedPages;
use super::in_place::{RF, TF};
use super::look::Look;
use super::ram::Ram;
use super::space::Space;
use crate::sys::vcpu::{Attached, VcpuState};

/// DR6.BS: a debug exception comes of a single step (Intel SDM vol. 3B, 18.2.3).
const DR6_BS: u64 = 1 << 14;
/// DR6.B0 to B3: one of a breakpoint.
const DR6_HIT: u64 = 0xf;
/// The vector of a debug exception.
const DEBUG: u8 = 1;
/// Exceptions that are no faults, so that the instruction is behind the guest: breakpoint and overflow; or lost: double fault and machine
/// check (Intel SDM vol. 3A, table 7-1). The debug exception may be either.
const NO_FAULTS: [u8; 4] = [3, 4, 8, 18];
/// Where IRETQ finds the flags, from the top of the stack.
const IRET_FLAGS: u64 = 16;

/// What has to be known of the state in front of a step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    rip: u64,
    /// Whether the guest steps through its code itself.
    pub(super) guest_steps: bool,
    /// Whether the instruction begins that: it takes flags from the stack, and the trap flag is among them.
    begins_to_step: bool,
    /// Where PUSHF puts the byte of the flags that has the trap flag.
    pushed: Option<Gpa>,
}

impl Before {
    pub(super) fn note(space: Option<&Space<'_>>, look: &mut Look, ram: &Ram, state: &VcpuState) -> Self {
        let mut before = Self {
            rip: state.regs.rip,
            guest_steps: state.regs.rflags & TF != 0,
            begins_to_step: false,
            pushed: None,
        };
        let (Some(space), Some(decoded)) = (space, look.decoded.clone()) else { return before };
        let mut flags = [0; 2];
        if let Some(offset) = takes_flags(decoded.instruction.mnemonic())
            && look.read(space, ram, space.linear(space.regs.rsp.wrapping_add(offset)), &mut flags)
        {
            before.begins_to_step = u64::from(u16::from_le_bytes(flags)) & TF != 0;
        }
        if decoded.pushes_flags
            && let Some(operand) = decoded.operands.iter().find(|operand| operand.writes)
            && let Some(at) = operand.memory.virtual_address(0, |register, _, _| space.value(register))
            && let at = Gva(at.wrapping_add(1))
            && let Some(walk) = look.walk(space, ram, at)
        {
            before.pushed = Some(walk.page.physical(at));
        }
        before
    }
}

/// An instruction was carried out, or one iteration of it.
pub(super) fn instruction(
    before: &Before,
    space: Option<&Space<'_>>,
    look: &Look,
    pages: &mut ArmedPages,
    vcpu: &mut Attached<'_>,
    (mut regs, dr6): (kvm_regs, u64),
    by: By,
) -> io::Result<()> {
    let decoded = look.decoded.as_ref();
    if let Some(at) = before.pushed.filter(|_| !before.guest_steps)
        && decoded.is_some_and(|decoded| regs.rip == decoded.instruction.next_ip())
        && let Some(slice) = pages.ram.slice(at, 1)
    {
        let mut byte = [0_u8];
        slice.copy_to(&mut byte);
        slice.copy_from(&[byte[0] & !(TF >> 8).to_le_bytes()[0]]);
    }
    // KVM takes the flag away with its own.
    let pops = || decoded.is_some_and(|decoded| takes_flags(decoded.instruction.mnemonic()).is_some());
    if before.begins_to_step || before.guest_steps && !pops() {
        regs.rflags |= TF;
        vcpu.set_general_registers(&regs)?;
    }
    // KVM takes a breakpoint of the guest's that was hit for the end of its own step.
    let hit = if dr6 & DR6_HIT != 0 { dr6 & DR6_HIT & enabled_breakpoints(vcpu) } else { 0 };
    if before.guest_steps || hit != 0 {
        raise_debug_exception(vcpu, hit | if before.guest_steps { DR6_BS } else { 0 })?;
    }
    // Where it goes on tells whether a handler has run in between.
    let strayed = decoded.is_none_or(|decoded| {
        let goes_on = decoded.instruction.flow_control() == FlowControl::Next;
        goes_on && regs.rip != decoded.instruction.next_ip() && regs.rip != before.rip
    });
    let compared = tell(look, pages, by, strayed);
    // Another vCPU may have changed the instruction, or where it leads to, after it was looked at: then something else was written.
    if !compared && !space.is_some_and(|space| look.is_still_so(space, &pages.ram)) {
        pages.tally.compared += 1;
        pages.compare_all(by);
    }
    Ok(())
}

/// An event was delivered; the vCPU is in front of its handler.
pub(super) fn delivery(look: &Look, pages: &mut ArmedPages, regs: &kvm_regs, by: By) {
    // Its stack tells whether it is the event that was foreseen: there may have been an exception on the way.
    if look.frame.is_some_and(|(bottom, _)| bottom == Gva(regs.rsp)) {
        tell(look, pages, by, false);
    } else {
        tell_reads(look, pages, by);
        pages.tally.compared += 1;
        pages.compare_all(by);
    }
}

/// It leaves for a device, with what it has read of memory, and goes on in the first view.
pub(super) fn outside(look: &Look, pages: &mut ArmedPages, by: By) {
    tell_reads(look, pages, by);
    partly(look, pages, by);
}

pub(super) fn tell_reads(look: &Look, pages: &mut ArmedPages, by: By) {
    for part in look.parts.iter().filter(|part| part.kind == Kind::Read) {
        pages.tell(part.at, part.len, Kind::Read, by);
    }
}

/// Something else came in the middle: what was written is told, and no more.
pub(super) fn partly(look: &Look, pages: &mut ArmedPages, by: By) {
    for part in look.parts.iter().filter(|part| part.kind == Kind::Write) {
        pages.compare_part(part.at, part.len, by);
    }
    if look.others {
        pages.compare_all(by);
    }
}

/// Returns whether all pages were compared.
fn tell(look: &Look, pages: &mut ArmedPages, by: By, strayed: bool) -> bool {
    for part in &look.parts {
        if part.kind == Kind::Write && !part.exact {
            pages.compare_part(part.at, part.len, by);
        } else {
            pages.tell(part.at, part.len, part.kind, by);
        }
    }
    let all = look.others || strayed;
    if all {
        pages.tally.compared += 1;
        pages.compare_all(by);
    }
    all
}

/// Whether the guest has breakpoints that a store could hit.
pub(super) fn has_breakpoints(vcpu: &Attached<'_>) -> bool {
    enabled_breakpoints(vcpu) != 0
}

/// Which of its four are active, as DR6 has them: each has two bits of DR7.
fn enabled_breakpoints(vcpu: &Attached<'_>) -> u64 {
    let dr7 = vcpu.fd().get_debug_regs().map_or(0, |registers| registers.dr7);
    (0..4).filter(|number| dr7 >> (number * 2) & 3 != 0).map(|number| 1 << number).sum()
}

/// Where an instruction that takes the flags from the stack finds them, from its top on.
fn takes_flags(mnemonic: Mnemonic) -> Option<u64> {
    match mnemonic {
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => Some(0),
        Mnemonic::Iretq => Some(IRET_FLAGS),
        Mnemonic::Iretd => Some(IRET_FLAGS / 2),
        _ => None,
    }
}

/// Lets a guest go on to step through its own code, which KVM has taken away with its own step.
pub(super) fn put_back_trap_flag(before: &Before, vcpu: &mut Attached<'_>) -> io::Result<()> {
    if before.guest_steps { guest_step(vcpu, false) } else { Ok(()) }
}

/// The same behind an instruction that was completed outside of its step; `raise`: with the exception that the guest waits for, unless
/// the instruction has ended with another one.
pub(super) fn guest_step(vcpu: &mut Attached<'_>, raise: bool) -> io::Result<()> {
    let mut with = None;
    // KVM forgets an exception that it has raised, but not begun to deliver, when registers are set (arch/x86/kvm/x86.c, `__set_regs`).
    // Those that it is given, it keeps; it does not tell one from the other.
    vcpu.change_events(|events| with = (events.exception.injected != 0).then_some(events.exception.nr))?;
    let with = with.filter(|&vector| vector != DEBUG);
    let mut regs = vcpu.general_registers()?;
    regs.rflags |= TF;
    if with.is_some_and(|vector| !NO_FAULTS.contains(&vector)) {
        // KVM sets it when it begins to deliver (arch/x86/kvm/x86.c, `kvm_check_and_inject_events`), and takes this for begun.
        regs.rflags |= RF;
    }
    vcpu.set_general_registers(&regs)?;
    if raise && with.is_none() { raise_debug_exception(vcpu, DR6_BS) } else { Ok(()) }
}

/// The exception that a guest waits for which steps through its own code, or has a breakpoint.
fn raise_debug_exception(vcpu: &mut Attached<'_>, conditions: u64) -> io::Result<()> {
    let mut registers = vcpu.fd().get_debug_regs()?;
    registers.dr6 |= conditions;
    vcpu.fd().set_debug_regs(&registers)?;
    vcpu.raise(DEBUG)
}

/// An instruction that the guest's processor does not have, where it is.
pub(super) fn undefined(vcpu: &mut Attached<'_>, regs: &kvm_regs) -> io::Result<()> {
    vcpu.set_general_registers(regs)?;
    vcpu.raise_undefined()
}

/// Takes back the event that KVM remembers of an instruction that raises one by itself, and does not show: it was carried out here.
pub(super) fn forget_soft_event(vcpu: &mut Attached<'_>) -> io::Result<()> {
    vcpu.change_events(|events| (events.exception.injected, events.interrupt.injected) = (0, 0))
}
