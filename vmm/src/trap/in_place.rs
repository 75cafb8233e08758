//! Stores that are carried out here, on behalf of the vCPU: plain ones, and those of string instructions.
//!
//! Only where nothing can come of it but the store: the tables allow it and have nothing to note, it is in one page, and nothing is
//! on its way to the vCPU. Everything else a vCPU carries out itself, in the second view.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use kvm_bindings::kvm_regs;
use update_server::addr::{Gpa, Gva};
use update_server::watch::{By, Kind, page_of};

use super::armed::ArmedPages;
use super::finish::tell_reads;
use super::look::Look;
use super::space::{Space, general};
use crate::sys::PAGE;

/// RFLAGS (Intel SDM vol. 1, 3.4.3): trap, direction, resume.
pub(super) const TF: u64 = 1 << 8;
const DF: u64 = 1 << 10;
pub(super) const RF: u64 = 1 << 16;
/// Interrupts, nested task, virtual mode.
const IF: u64 = 1 << 9;
const NT: u64 = 1 << 14;
const VM: u64 = 1 << 17;
/// Bytes of the frame of an event without an error code.
const FRAME: usize = 40;

/// A kind of instruction that is carried out here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plain {
    /// MOV or MOVNTI from a register, or of an immediate.
    Store,
    Push,
    /// A near call, of a place that does not stand in memory.
    Call,
    /// STOS.
    Fill,
    /// MOVS.
    Copy,
    /// INT n and INT3, which say by themselves what they do.
    Interrupt,
}

impl Plain {
    pub(super) fn of(instruction: &Instruction) -> Option<Self> {
        match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movnti if instruction.op1_kind() != OpKind::Memory => Some(Self::Store),
            Mnemonic::Push if instruction.op0_kind() != OpKind::Memory => Some(Self::Push),
            Mnemonic::Call => match instruction.code() {
                Code::Call_rel32_64 => Some(Self::Call),
                Code::Call_rm64 if instruction.op0_kind() == OpKind::Register => Some(Self::Call),
                _ => None,
            },
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => Some(Self::Fill),
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
                instruction.is_string_instruction().then_some(Self::Copy)
            }
            Mnemonic::Int3 | Mnemonic::Int => Some(Self::Interrupt),
            _ => None,
        }
    }
}

/// Whether the instruction that was looked at is of a kind that is carried out here.
pub(super) fn knows(look: &Look) -> bool {
    !look.others && look.decoded.as_deref().is_some_and(|decoded| decoded.plain.is_some())
}

/// Carries out the instruction that was looked at and tells of it, or does nothing. Returns the registers behind it.
///
/// The guest must have no breakpoints of its own: a store may hit one.
pub(super) fn carry_out(
    space: &Space<'_>,
    look: &mut Look,
    pages: &mut ArmedPages,
    by: By,
) -> Option<kvm_regs> {
    let decoded = look.decoded.as_deref()?;
    let len = decoded.instruction.len() as u64;
    // What the processor would check of the second page is not checked here.
    let within = space.regs.rip % PAGE as u64 + len <= PAGE as u64;
    if space.bits != 64 || space.regs.rflags & TF != 0 || !within {
        return None;
    }
    let mut after = try_to(space, look, pages, by)?;
    // An instruction that is done has passed its breakpoint (Intel SDM vol. 3B, 18.3.1.1). Many a processor sets this flag whenever
    // it leaves the guest in the middle of one.
    if after.rip != space.regs.rip {
        after.rflags &= !RF;
    }
    Some(after)
}

fn try_to(space: &Space<'_>, look: &mut Look, pages: &mut ArmedPages, by: By) -> Option<kvm_regs> {
    let decoded = look.decoded.clone()?;
    let instruction = &decoded.instruction;
    match decoded.plain? {
        Plain::Store => {
            let value = match instruction.op1_kind() {
                OpKind::Register => register(space.regs, instruction.op1_register())?,
                _ => instruction.try_immediate(1).ok()?,
            };
            let mut after = *space.regs;
            after.rip = instruction.next_ip();
            store(space, look, pages, by, value).then_some(after)
        }
        Plain::Push => {
            let value = match instruction.op0_kind() {
                OpKind::Register => register(space.regs, instruction.op0_register())?,
                _ => instruction.try_immediate(0).ok()?,
            };
            pushed(space, look, pages, by, value, instruction.next_ip())
        }
        Plain::Call => {
            // An AMD processor takes this prefix for a call by 16 bits (AMD APM vol. 3, CALL); and there are shadow stacks.
            if look.code().contains(&0x66) || space.has_shadow_stacks() {
                return None;
            }
            let target = match instruction.op0_kind() {
                OpKind::Register => register(space.regs, instruction.op0_register())?,
                _ => instruction.near_branch64(),
            };
            if !space.is_canonical(Gva(target)) {
                return None;
            }
            let mut after = pushed(space, look, pages, by, instruction.next_ip(), target)?;
            after.rip = target;
            Some(after)
        }
        Plain::Fill => string(space, look, pages, by, instruction, None),
        Plain::Copy => {
            let segment = space.value(instruction.memory_segment())?;
            string(space, look, pages, by, instruction, Some(segment.wrapping_add(space.regs.rsi)))
        }
        Plain::Interrupt => interrupt(space, look, pages, by, instruction),
    }
}

/// INT n in the kernel, by a gate that changes neither privilege nor stack (Intel SDM vol. 3A, 6.14.2). A vCPU that carries it out
/// itself would go on in the handler, which may be in the same page as the instruction and cannot be closed then.
fn interrupt(
    space: &Space<'_>,
    look: &mut Look,
    pages: &mut ArmedPages,
    by: By,
    instruction: &Instruction,
) -> Option<kvm_regs> {
    let (bottom, gate) = look.frame?;
    let walk = look.walk(space, &pages.ram, bottom)?;
    let within = bottom.0 % PAGE as u64 <= PAGE as u64 - FRAME as u64;
    let plain = space.cpl == 0 && gate.stack == 0 && gate.selector == space.sregs.cs.selector;
    let plain = plain && space.is_canonical(gate.handler);
    // What the processor would note of the segment is not noted here.
    let notes = look.parts.iter().any(|part| part.kind == Kind::Write && !part.exact);
    if !plain || !within || notes || !space.may_write(&walk, true) {
        return None;
    }
    let regs = space.regs;
    let words = [
        instruction.next_ip(),
        space.sregs.cs.selector.into(),
        // Of an event that is no fault, the image has no resume flag (Intel SDM vol. 3B, 18.3.1.1).
        regs.rflags & !RF,
        regs.rsp,
        space.sregs.ss.selector.into(),
    ];
    let at = walk.page.physical(bottom);
    pages.ram.slice(at, FRAME)?;
    tell_reads(look, pages, by);
    for (place, word) in (0..).zip(words) {
        pages.ram.store(Gpa(at.0 + place * 8), word, 8);
    }
    pages.tell(at, FRAME, Kind::Write, by);
    let keep = if gate.leaves_interrupts { IF } else { 0 };
    let rflags = regs.rflags & (!(TF | NT | RF | VM | IF) | keep);
    Some(kvm_regs { rip: gate.handler.0, rsp: bottom.0, rflags, ..*regs })
}

/// A register as an operand.
fn register(regs: &kvm_regs, register: Register) -> Option<u64> {
    if !register.is_gpr() {
        return None;
    }
    let whole = general(regs, register.full_register())?;
    let high = matches!(register, Register::AH | Register::BH | Register::CH | Register::DH);
    Some(if high { whole >> 8 } else { whole })
}

/// The one operand that is written: where, how long.
fn target(space: &Space<'_>, look: &mut Look, pages: &ArmedPages) -> Option<(Gpa, usize)> {
    let decoded = look.decoded.clone()?;
    let mut writes = decoded.operands.iter().filter(|operand| operand.writes);
    let operand = writes.next()?;
    if writes.next().is_some() || operand.reads || !operand.exact {
        return None;
    }
    let at = Gva(operand.memory.virtual_address(0, |register, _, _| space.value(register))?);
    let len = usize::try_from(operand.len).ok()?;
    // What is aligned is in one page, and written at once.
    if !matches!(len, 1 | 2 | 4 | 8) || !at.0.is_multiple_of(len as u64) {
        return None;
    }
    let walk = look.walk(space, &pages.ram, at)?;
    let place = walk.page.physical(at);
    // Before anything is told: it may be a device's.
    (space.may_write(&walk, true) && pages.ram.slice(place, len).is_some()).then_some((place, len))
}

fn store(space: &Space<'_>, look: &mut Look, pages: &mut ArmedPages, by: By, value: u64) -> bool {
    let Some((at, len)) = target(space, look, pages) else { return false };
    tell_reads(look, pages, by);
    if !pages.ram.store(at, value, len) {
        return false;
    }
    pages.tell(at, len, Kind::Write, by);
    true
}

/// The registers behind a push of eight bytes, with the next instruction at `rip`.
fn pushed(
    space: &Space<'_>,
    look: &mut Look,
    pages: &mut ArmedPages,
    by: By,
    value: u64,
    rip: u64,
) -> Option<kvm_regs> {
    let (_, len) = target(space, look, pages)?;
    if len != 8 || !store(space, look, pages, by, value) {
        return None;
    }
    Some(kvm_regs { rip, rsp: space.regs.rsp.wrapping_sub(8), ..*space.regs })
}

/// As many iterations of STOS, or with a `source` of MOVS, as stay in one page of each. The guest is entered again behind them, so
/// that no event waits for more than that.
fn string(
    space: &Space<'_>,
    look: &mut Look,
    pages: &mut ArmedPages,
    by: By,
    instruction: &Instruction,
    source: Option<u64>,
) -> Option<kvm_regs> {
    // With an address size of 32 bits other registers count.
    if instruction.op0_kind() != OpKind::MemoryESRDI
        || source.is_some() && instruction.op1_kind() != OpKind::MemorySegRSI
    {
        return None;
    }
    let size = instruction.memory_size().size();
    let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let backwards = space.regs.rflags & DF != 0;
    let wanted = if repeats { space.regs.rcx } else { 1 };
    let (to, from) = (Gva(space.regs.rdi), source.map(Gva));
    let room = |at: Gva| {
        let before = usize::try_from(at.0 % PAGE as u64).unwrap_or(0);
        let whole = (PAGE - before) / size;
        // Backwards: the element at `at` must be whole, too.
        if backwards && whole > 0 { before / size + 1 } else { whole }
    };
    let most = room(to).min(from.map_or(usize::MAX, room));
    let count = usize::try_from(wanted).unwrap_or(usize::MAX).min(most);
    if count == 0 {
        // Nothing to do, or an element over the end of a page.
        return None;
    }
    let len = count * size;
    let lowest = |at: Gpa| if backwards { Gpa(at.0 - (len - size) as u64) } else { at };
    let walk = look.walk(space, &pages.ram, to)?;
    if !space.may_write(&walk, to.0.is_multiple_of(size as u64)) {
        return None;
    }
    let at = lowest(walk.page.physical(to));
    pages.ram.slice(at, len)?;
    let mut bytes = [0; PAGE];
    let bytes = &mut bytes[..len];
    if let Some(from) = from {
        let walk = look.walk(space, &pages.ram, from)?;
        let source = lowest(walk.page.physical(from));
        // Where they overlap, the order of bytes counts.
        let apart = source.0 + len as u64 <= at.0 || at.0 + len as u64 <= source.0;
        if !apart || !space.may_read(&walk, from.0.is_multiple_of(size as u64)) {
            return None;
        }
        pages.ram.slice(source, len)?.copy_to(bytes);
        for part in
            look.parts.iter().filter(|part| part.kind == Kind::Read && page_of(part.at) != page_of(source))
        {
            pages.tell(part.at, part.len, Kind::Read, by);
        }
        pages.tell(source, len, Kind::Read, by);
    } else {
        tell_reads(look, pages, by);
        let value = space.regs.rax.to_le_bytes();
        bytes.chunks_mut(size).for_each(|element| element.copy_from_slice(&value[..size]));
    }
    pages.ram.slice(at, len)?.copy_from(bytes);
    pages.tell(at, len, Kind::Write, by);
    let step = if backwards { (len as u64).wrapping_neg() } else { len as u64 };
    let mut after = *space.regs;
    after.rdi = after.rdi.wrapping_add(step);
    if source.is_some() {
        after.rsi = after.rsi.wrapping_add(step);
    }
    if repeats {
        after.rcx -= count as u64;
    }
    if !repeats || after.rcx == 0 {
        after.rip = instruction.next_ip();
    }
    Some(after)
}
