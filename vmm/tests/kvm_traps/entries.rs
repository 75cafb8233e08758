//! What programs that get events are made of: where their data are, the table of handlers, the local APIC.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lucos_vmm::boot::CODE_SELECTOR;

use crate::tiny::DATA;

/// The host says when, the program how far.
pub(crate) const GO: u64 = DATA;
pub(crate) const DONE: u64 = DATA + 8;
/// What handlers record: sums over where they came, and how often each vector did.
pub(crate) const RECORDS: u64 = DATA + 0x100;
pub(crate) const SUM: u64 = RECORDS;
pub(crate) const COUNTS: u64 = DATA + 0x200;
/// The table of handlers, and what LIDT reads.
pub(crate) const IDT: u64 = DATA + 0x2000;
const IDT_POINTER: u64 = DATA + 0x80;
/// A watched page of data, and one with a stack.
pub(crate) const PAGE: u64 = DATA + 0x1_1000;
pub(crate) const STACK_PAGE: u64 = DATA + 0x1_3000;
pub(crate) const STACK: u64 = STACK_PAGE + 0xf00;

type Assembled = Result<(), IcedError>;

/// Puts `handler` behind `vector`; changes RAX.
pub(crate) fn gate(a: &mut CodeAssembler, vector: u64, handler: CodeLabel) -> Assembled {
    let at = IDT + vector * 16;
    a.lea(rax, ptr(handler))?;
    a.mov(word_ptr(at), ax)?;
    a.mov(word_ptr(at + 2), u32::from(CODE_SELECTOR))?;
    // A present gate of level 0 that switches interrupts off (Intel SDM vol. 3A, 6.14.1).
    a.mov(word_ptr(at + 4), 0x8e00)?;
    a.shr(rax, 16)?;
    a.mov(word_ptr(at + 6), ax)?;
    a.shr(rax, 16)?;
    a.mov(dword_ptr(at + 8), eax)?;
    a.mov(dword_ptr(at + 12), 0)
}

/// Changes RAX.
pub(crate) fn load_idt(a: &mut CodeAssembler) -> Assembled {
    a.mov(word_ptr(IDT_POINTER), 0xfff)?;
    a.mov(rax, IDT)?;
    a.mov(qword_ptr(IDT_POINTER + 2), rax)?;
    a.lidt(ptr(IDT_POINTER))
}

pub(crate) fn wait_for_go(a: &mut CodeAssembler) -> Assembled {
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.pause()?;
    a.cmp(qword_ptr(GO), 0)?;
    a.je(wait)
}

/// Lets interrupts in before a loop that may leave the guest for nothing else. Nobody raises any for the guest; but Bochs 2.7 keeps those
/// of its host back from a guest that has them off when it is entered: it masks them before it takes itself to be in the guest
/// (`cpu/vmx.cc`, `VMenterLoadCheckGuestState` and `VMLAUNCH`), and the host's only processor would never come back.
pub(crate) fn let_the_host_in(a: &mut CodeAssembler) -> Assembled {
    a.sti()
}

/// Stays where it is.
pub(crate) fn stay(a: &mut CodeAssembler) -> Assembled {
    let mut end = a.create_label();
    a.set_label(&mut end)?;
    a.pause()?;
    a.jmp(end)
}

/// The local APIC (Intel SDM vol. 3A, 11.4.1): end of interrupt, spurious vector, command, timer.
const APIC: u64 = 0xfee0_0000;
const APIC_EOI: u64 = APIC + 0xb0;
pub(crate) const APIC_SPURIOUS: u64 = APIC + 0xf0;
pub(crate) const APIC_COMMAND: u64 = APIC + 0x300;
pub(crate) const APIC_TIMER: u64 = APIC + 0x320;
pub(crate) const APIC_COUNT: u64 = APIC + 0x380;
pub(crate) const APIC_DIVIDE: u64 = APIC + 0x3e0;
/// Of its interrupts.
pub(crate) const VECTOR: u64 = 0x40;

/// Changes RBX.
pub(crate) fn apic(a: &mut CodeAssembler, register: u64, value: u32) -> Assembled {
    a.mov(ebx, u32::try_from(register).unwrap())?;
    a.mov(dword_ptr(rbx), value)
}

/// Changes RAX.
pub(crate) fn end_of_interrupt(a: &mut CodeAssembler) -> Assembled {
    a.mov(eax, u32::try_from(APIC_EOI).unwrap())?;
    a.mov(dword_ptr(rax), 0)
}
