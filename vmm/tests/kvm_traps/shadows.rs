//! What a processor holds back until the next instruction is done, when that is a trapped one; and where it goes on that is nowhere.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::entries::{
    APIC_COMMAND, APIC_SPURIOUS, COUNTS, DONE, PAGE, RECORDS, STACK, SUM, VECTOR, apic, end_of_interrupt,
    gate, load_idt, stay, wait_for_go,
};
use crate::tiny::{Program, uniprocessor};
use crate::untrapped::is_as_untrapped;

type Assembled = Result<(), IcedError>;

/// How often the program does it all.
const ROUNDS: u64 = 5;
/// Neither in the lower half of the address space nor in the upper one.
const NOWHERE: u64 = 0x8000_0000_0000_0000;
/// To the sender itself (Intel SDM vol. 3A, 11.6.1).
const TO_ITSELF: u32 = 1 << 18;
/// Interrupts in a round.
const HELD_BACK: u64 = 5;
/// Where a call finds where it leads.
const TARGET: u64 = PAGE + 0x80;

/// An interrupt waits; it comes behind the `held` instruction that follows what lets it come.
fn hold_back(a: &mut CodeAssembler, held: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Assembled {
    a.cli()?;
    apic(a, APIC_COMMAND, TO_ITSELF | u32::try_from(VECTOR).unwrap())?;
    a.sti()?;
    held(a)?;
    // It should have come before this.
    a.nop()?;
    a.nop()
}

/// Calls `NOWHERE`; the handler of the fault goes on where R14 says, with the stack as R13 says.
fn call_nowhere(a: &mut CodeAssembler, call: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Assembled {
    let mut behind = a.create_label();
    a.lea(r14, ptr(behind))?;
    a.mov(r13, rsp)?;
    call(a)?;
    a.set_label(&mut behind)?;
    a.inc(qword_ptr(PAGE + 0x88))
}

fn handlers(a: &mut CodeAssembler) -> Assembled {
    let (mut begin, mut on_interrupt, mut on_step, mut on_general) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.jmp(begin)?;

    // Counts, and adds up where it came.
    a.set_label(&mut on_interrupt)?;
    a.push(rax)?;
    a.inc(qword_ptr(COUNTS))?;
    a.mov(rax, qword_ptr(rsp + 8))?;
    a.add(qword_ptr(SUM), rax)?;
    end_of_interrupt(a)?;
    a.pop(rax)?;
    a.iretq()?;
    a.set_label(&mut on_step)?;
    a.push(rax)?;
    a.inc(qword_ptr(COUNTS + 8))?;
    a.mov(rax, qword_ptr(rsp + 8))?;
    a.add(qword_ptr(SUM + 8), rax)?;
    a.pop(rax)?;
    a.iretq()?;
    // Above the error code are where it came, and the stack of then.
    a.set_label(&mut on_general)?;
    a.add(rsp, 8)?;
    a.inc(qword_ptr(COUNTS + 13 * 8))?;
    a.mov(rax, qword_ptr(rsp))?;
    a.add(qword_ptr(SUM + 16), rax)?;
    a.mov(rax, qword_ptr(rsp + 24))?;
    a.add(qword_ptr(SUM + 24), rax)?;
    a.mov(qword_ptr(rsp), r14)?;
    a.mov(qword_ptr(rsp + 24), r13)?;
    a.iretq()?;

    a.set_label(&mut begin)?;
    gate(a, VECTOR, on_interrupt)?;
    gate(a, 1, on_step)?;
    gate(a, 13, on_general)?;
    load_idt(a)
}

fn program() -> Program {
    uniprocessor(|a| {
        handlers(a)?;
        wait_for_go(a)?;
        a.mov(rsp, STACK)?;
        apic(a, APIC_SPURIOUS, 0x1ff)?;
        a.mov(r12, ROUNDS)?;
        a.mov(r15d, ss)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        // Carried out on behalf of the processor otherwise, by the processor alone, on the stack, and one in which it reads first.
        hold_back(a, |a| a.mov(qword_ptr(PAGE), r12))?;
        hold_back(a, |a| a.lock().inc(qword_ptr(PAGE + 8)))?;
        hold_back(a, |a| a.push(r12))?;
        hold_back(a, |a| a.pop(qword_ptr(PAGE + 0x10)))?;
        // Two in a row that hold back.
        hold_back(a, |a| {
            a.mov(ss, r15d)?;
            a.mov(qword_ptr(PAGE + 0x18), r12)
        })?;
        // With MOV SS, the program's own steps.
        a.pushfq()?;
        a.or(qword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.mov(ss, r15d)?;
        a.mov(qword_ptr(PAGE + 0x20), r12)?;
        a.nop()?;
        a.mov(ss, r15d)?;
        a.lock().inc(qword_ptr(PAGE + 0x28))?;
        a.nop()?;
        a.pushfq()?;
        a.and(qword_ptr(rsp), !0x100_i32)?;
        a.popfq()?;
        a.cli()?;
        a.mov(rax, NOWHERE)?;
        a.mov(qword_ptr(TARGET), rax)?;
        call_nowhere(a, |a| a.call(rax))?;
        call_nowhere(a, |a| a.call(qword_ptr(TARGET)))?;
        a.dec(r12)?;
        a.jnz(again)?;
        a.mov(qword_ptr(DONE), 1)?;
        stay(a)
    })
}

#[test]
fn what_is_held_back_comes_behind_a_trapped_access() {
    is_as_untrapped(
        &program(),
        |left| {
            let count = |vector: u64| {
                let at = usize::try_from(COUNTS - RECORDS + vector * 8).unwrap();
                u64::from_le_bytes(left[0][at..][..8].try_into().unwrap())
            };
            assert_eq!([0, 13].map(count), [HELD_BACK * ROUNDS, 2 * ROUNDS]);
            // Whether MOV SS holds a step back, too, is the processor's.
            assert!(count(1) >= 6 * ROUNDS, "{}", count(1));
        },
        |vcpus, _| {
            let tally = vcpus.threads.traps().tally();
            assert!(tally.delivered >= (HELD_BACK + 2) * ROUNDS, "{tally:?}");
        },
    );
}
