//! Interrupts and exceptions around a trapped access, and onto a watched stack.

use std::time::Instant;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lucos_vmm::boot::CODE_SELECTOR;
use lucos_vmm::config::Trapping;
use update_server::watch::{Access, By, Kind};

use crate::PATIENCE;
use crate::heard::Heard;
use crate::tiny::{DATA, Program, Vcpus, multiprocessor, uniprocessor, wait_until};
use crate::untrapped::is_as_untrapped;

/// The host says when, the program how far.
pub(crate) const GO: u64 = DATA;
pub(crate) const DONE: u64 = DATA + 8;
/// Ticks of the timer between two interrupts.
const PERIOD: u64 = DATA + 0x18;
const READY: u64 = DATA + 0x20;
/// What handlers record: sums over where they came, and how often each vector did.
pub(crate) const RECORDS: u64 = DATA + 0x100;
pub(crate) const SUM: u64 = RECORDS;
pub(crate) const COUNTS: u64 = DATA + 0x200;
/// The table of handlers, and what LIDT reads.
const IDT: u64 = DATA + 0x2000;
const IDT_POINTER: u64 = DATA + 0x80;
/// A watched page of data, and one with a stack.
pub(crate) const PAGE: u64 = DATA + 0x1_1000;
pub(crate) const STACK_PAGE: u64 = DATA + 0x1_3000;
pub(crate) const STACK: u64 = STACK_PAGE + 0xf00;
/// Where there is neither RAM nor a device: reads give ones.
const DEVICE: u32 = 0xd000_0000;
/// The end of what is mapped.
const UNMAPPED: u64 = 4 << 30;

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

pub(crate) fn stay(a: &mut CodeAssembler) -> Assembled {
    let mut end = a.create_label();
    a.set_label(&mut end)?;
    a.pause()?;
    a.jmp(end)
}

fn undefined_and_breakpoints(a: &mut CodeAssembler) -> Assembled {
    // RSM is no instruction outside of system management mode.
    a.mov(rax, 0xc3_aa0f_u64)?;
    a.mov(qword_ptr(PAGE + 0x180), rax)?;
    a.mov(rax, PAGE + 0x180)?;
    a.call(rax)?;
    // A breakpoint on a store and one on a locked operation (Intel SDM vol. 3B, 18.2): DR0, eight bytes, writes.
    a.mov(rax, PAGE + 0x1c0)?;
    a.mov(dr0, rax)?;
    a.mov(eax, 0x9_0401)?;
    a.mov(dr7, rax)?;
    a.mov(qword_ptr(PAGE + 0x1c0), rbx)?;
    a.lock().inc(qword_ptr(PAGE + 0x1c0))?;
    a.mov(eax, 0x400)?;
    a.mov(dr7, rax)?;
    Ok(())
}

/// Breakpoints, faults, the program's own steps and code that changes itself, all with what they leave told in memory.
fn exceptions() -> Program {
    uniprocessor(|a| {
        let (mut begin, mut on_break, mut on_fault, mut on_step) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        let mut on_undefined = a.create_label();
        a.jmp(begin)?;

        // Counts, and adds up what the frame says.
        a.set_label(&mut on_break)?;
        a.inc(qword_ptr(COUNTS + 3 * 8))?;
        a.push(rax)?;
        a.mov(rax, qword_ptr(rsp + 8))?;
        a.add(qword_ptr(SUM), rax)?;
        a.mov(rax, qword_ptr(rsp + 24))?;
        a.add(qword_ptr(SUM + 8), rax)?;
        a.pop(rax)?;
        a.iretq()?;
        // Goes on behind the instruction, which has three bytes.
        a.set_label(&mut on_fault)?;
        a.inc(qword_ptr(COUNTS + 14 * 8))?;
        a.add(rsp, 8)?;
        a.push(rax)?;
        a.mov(rax, cr2)?;
        a.add(qword_ptr(SUM + 16), rax)?;
        a.mov(rax, qword_ptr(rsp + 24))?;
        a.and(eax, !0x1_0000_i32)?;
        a.add(qword_ptr(SUM + 24), rax)?;
        a.pop(rax)?;
        a.add(qword_ptr(rsp), 3)?;
        a.iretq()?;
        // Goes on behind the instruction, which has two bytes.
        a.set_label(&mut on_undefined)?;
        a.inc(qword_ptr(COUNTS + 6 * 8))?;
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()?;
        a.set_label(&mut on_step)?;
        a.inc(qword_ptr(COUNTS + 8))?;
        a.push(rax)?;
        a.mov(rax, qword_ptr(rsp + 8))?;
        a.add(qword_ptr(SUM + 32), rax)?;
        a.mov(rax, dr6)?;
        a.add(qword_ptr(SUM + 40), rax)?;
        a.xor(eax, eax)?;
        a.mov(dr6, rax)?;
        a.pop(rax)?;
        a.iretq()?;

        a.set_label(&mut begin)?;
        gate(a, 3, on_break)?;
        gate(a, 14, on_fault)?;
        gate(a, 1, on_step)?;
        gate(a, 6, on_undefined)?;
        gate(a, 0x40, on_break)?;
        load_idt(a)?;
        wait_for_go(a)?;
        a.mov(rsp, STACK)?;
        a.mov(ebx, 3)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        // Frames on the watched stack.
        a.int3()?;
        a.int(0x40)?;
        // Faults in the middle of an instruction: it reads what is not there; it reads what is watched, perhaps, and writes to what is
        // not there.
        a.mov(rsi, UNMAPPED)?;
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(rsi, PAGE + 0x20)?;
        a.mov(rdi, UNMAPPED + 8)?;
        a.movsq()?;
        a.nop()?;
        a.mov(rdi, UNMAPPED - 8)?;
        undefined_and_breakpoints(a)?;
        // The program steps through its own stores: plain ones, a locked one, a repeated one.
        a.pushfq()?;
        a.or(qword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.mov(rdi, PAGE)?;
        a.mov(qword_ptr(rdi), rbx)?;
        a.lock().inc(qword_ptr(rdi + 8))?;
        a.mov(ecx, 3)?;
        a.mov(rdi, PAGE + 0x40)?;
        a.rep().stosb()?;
        // Steps in which a fault comes first, and that leave for a device and come back.
        a.mov(rsi, PAGE + 0x20)?;
        a.mov(rdi, UNMAPPED + 8)?;
        a.movsq()?;
        a.nop()?;
        a.mov(edi, DEVICE)?;
        a.movsq()?;
        a.mov(esi, DEVICE)?;
        a.mov(rdi, PAGE + 0x60)?;
        a.movsq()?;
        a.nop()?;
        a.pushfq()?;
        a.and(qword_ptr(rsp), !0x100_i32)?;
        a.popfq()?;
        // It writes an instruction to the watched page and runs it: mov [rdi], ebx; ret.
        a.mov(rdi, PAGE + 0x80)?;
        a.mov(rax, 0xc3_1f89_u64)?;
        a.mov(qword_ptr(PAGE + 0x100), rax)?;
        a.mov(rax, PAGE + 0x100)?;
        a.call(rax)?;
        // One that changes the one behind it.
        a.mov(rax, 0x9090_c390_1f89_u64)?;
        a.mov(qword_ptr(PAGE + 0x100), rax)?;
        a.lea(rdi, ptr(rdi + 8))?;
        a.mov(rax, PAGE + 0x100)?;
        a.call(rax)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.mov(qword_ptr(DONE), 1)?;
        stay(a)
    })
}

#[test]
fn exceptions_are_as_without_a_trap() {
    is_as_untrapped(
        &exceptions(),
        |left| {
            let count =
                |vector: usize| u64::from_le_bytes(left[0][0x100 + vector * 8..][..8].try_into().unwrap());
            assert_eq!([3, 6, 14].map(count), [6, 3, 9]);
            assert!(count(1) >= 3 * 19, "{}", count(1));
        },
        |vcpus, access| {
            let tally = vcpus.threads.traps().tally();
            assert!(tally.delivered >= 6, "{tally:?}");
            assert!(access == Access::Writes || tally.unfinished > 0, "{tally:?}");
        },
    );
}

/// The local APIC (Intel SDM vol. 3A, 11.4.1): end of interrupt, spurious vector, command, timer.
const APIC: u64 = 0xfee0_0000;
const APIC_EOI: u64 = APIC + 0xb0;
pub(crate) const APIC_SPURIOUS: u64 = APIC + 0xf0;
pub(crate) const APIC_COMMAND: u64 = APIC + 0x300;
const APIC_TIMER: u64 = APIC + 0x320;
const APIC_COUNT: u64 = APIC + 0x380;
const APIC_DIVIDE: u64 = APIC + 0x3e0;
pub(crate) const VECTOR: u64 = 0x40;

pub(crate) fn apic(a: &mut CodeAssembler, register: u64, value: u32) -> Assembled {
    a.mov(ebx, u32::try_from(register).unwrap())?;
    a.mov(dword_ptr(rbx), value)
}

/// Changes RAX.
pub(crate) fn end_of_interrupt(a: &mut CodeAssembler) -> Assembled {
    a.mov(eax, u32::try_from(APIC_EOI).unwrap())?;
    a.mov(dword_ptr(rax), 0)
}

/// vCPU 0 counts up on a watched page, with a watched stack, while a timer interrupts it; vCPU 1, if there is one, sends it NMIs.
fn interrupted() -> Program {
    multiprocessor(|a| {
        let (mut first, mut on_timer, mut on_nmi, mut again, mut storm, mut calm) = (
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
        );
        a.test(edi, edi)?;
        a.jz(first)?;
        // Not before the other one has a handler for them.
        let mut early = a.create_label();
        a.set_label(&mut early)?;
        a.pause()?;
        a.cmp(qword_ptr(READY), 1)?;
        a.jne(early)?;
        a.set_label(&mut storm)?;
        // To the one with APIC ID 0, which is written before (Intel SDM vol. 3A, 11.6.1).
        apic(a, APIC_COMMAND + 0x10, 0)?;
        apic(a, APIC_COMMAND, 0x4400)?;
        // As long as the host says.
        a.mov(rcx, qword_ptr(GO))?;
        a.inc(rcx)?;
        a.set_label(&mut calm)?;
        a.pause()?;
        a.dec(rcx)?;
        a.jnz(calm)?;
        a.cmp(qword_ptr(GO), 0)?;
        a.jne(storm)?;
        stay(a)?;

        a.set_label(&mut on_timer)?;
        a.push(rax)?;
        a.inc(qword_ptr(COUNTS))?;
        end_of_interrupt(a)?;
        a.pop(rax)?;
        a.iretq()?;
        a.set_label(&mut on_nmi)?;
        a.inc(qword_ptr(COUNTS + 8))?;
        a.iretq()?;

        a.set_label(&mut first)?;
        gate(a, VECTOR, on_timer)?;
        gate(a, 2, on_nmi)?;
        load_idt(a)?;
        wait_for_go(a)?;
        a.mov(rsp, STACK)?;
        a.mov(qword_ptr(READY), 1)?;
        apic(a, APIC_SPURIOUS, 0x1ff)?;
        apic(a, APIC_DIVIDE, 0xb)?;
        apic(a, APIC_TIMER, u32::try_from(VECTOR).unwrap() | 1 << 17)?;
        a.mov(ebx, u32::try_from(APIC_COUNT).unwrap())?;
        a.mov(eax, dword_ptr(PERIOD))?;
        a.mov(dword_ptr(rbx), eax)?;
        a.sti()?;
        a.xor(r12d, r12d)?;
        a.set_label(&mut again)?;
        // Each by a plain, a locked and a stack access, and held against a register.
        a.inc(r12)?;
        a.inc(qword_ptr(PAGE))?;
        a.lock().inc(qword_ptr(PAGE + 8))?;
        a.mov(qword_ptr(PAGE + 16), r12)?;
        a.push(r12)?;
        a.pop(r13)?;
        a.cmp(r13, r12)?;
        let mut wrong = a.create_label();
        a.jne(wrong)?;
        a.cmp(qword_ptr(PAGE), r12)?;
        a.jne(wrong)?;
        a.cmp(qword_ptr(PAGE + 8), r12)?;
        a.jne(wrong)?;
        a.mov(qword_ptr(DONE), r12)?;
        a.jmp(again)?;
        a.set_label(&mut wrong)?;
        a.cli()?;
        a.mov(edx, u32::from(crate::tiny::RESULT_PORT))?;
        a.mov(eax, r12d)?;
        a.out(dx, eax)?;
        stay(a)
    })
}

#[test]
fn interrupts_and_nmis_find_a_watched_stack() {
    let begin = Instant::now();
    for (way, cpus, wanted) in
        [(Trapping::SecondView, 1, 200), (Trapping::SecondView, 2, 200), (Trapping::HoldAll, 2, 20)]
    {
        let vcpus = Vcpus::start_as(&interrupted(), cpus, &[], way);
        let heard = Heard::of(&vcpus);
        heard.watch(&vcpus, &[PAGE, STACK_PAGE], Access::Writes);
        // Where each step holds the sender, the one that gets all this must come to something in between.
        let (storm, period) = if way == Trapping::HoldAll { (50_000, 40_000_000) } else { (200, 2_000_000) };
        vcpus.set_word(PERIOD, period);
        vcpus.set_word(GO, storm);
        wait_until(PATIENCE, "interrupts", || {
            vcpus.check();
            let nmis = cpus == 1 || vcpus.word(COUNTS + 8) > wanted;
            vcpus.word(COUNTS) > wanted && nmis && vcpus.word(DONE) > wanted
        });
        vcpus.set_word(GO, 0);
        heard.end(&vcpus, &[PAGE, STACK_PAGE]);
        let tally = vcpus.threads.traps().tally();
        assert!(tally.delivered > wanted && tally.unseen == 0 && tally.lost == 0, "{way}: {tally:?}");
        // What the program says of itself, seen from here.
        let told = heard.take();
        let counted: Vec<u64> = told
            .iter()
            .filter(|told| told.at == PAGE && told.kind == Kind::Write)
            .map(|told| u64::from_le_bytes(told.after[..8].try_into().unwrap()))
            .collect();
        assert!(
            counted.len() as u64 >= wanted && counted.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{way}"
        );
        assert!(told.iter().all(|told| matches!(told.by, By::Vcpu { .. })), "{way}");
        vcpus.check();
        eprintln!("{way}, {cpus} vCPUs: {tally:?} in {:?}", begin.elapsed());
    }
}
