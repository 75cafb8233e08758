//! Exceptions around a trapped access, and onto a watched stack.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lucos_vmm::boot::{CODE_SELECTOR, DATA_SELECTOR};
use update_server::watch::Access;

use crate::entries::{COUNTS, DONE, PAGE, STACK, STACK_PAGE, SUM, gate, load_idt, stay, wait_for_go};
use crate::tiny::{DATA, Program, uniprocessor};
use crate::untrapped::{Left, is_as_untrapped};

/// A table of segments on the page of data, what LGDT reads, and a segment that is not noted as loaded (Intel SDM vol. 3A, 3.4.5).
const GDT: u64 = PAGE + 0x200;
const GDT_POINTER: u64 = DATA + 0x90;
const DATA_SEGMENT: u64 = 0x00cf_9200_0000_ffff;
/// Where there is neither RAM nor a device: reads give ones.
const DEVICE: u32 = 0xd000_0000;
/// The end of what is mapped.
const UNMAPPED: u64 = 4 << 30;
/// KVM's register for steal time, and a value with a bit that it refuses (Documentation/virt/kvm/x86/msr.rst).
const MSR_STEAL: u32 = 0x4b56_4d03;
const REFUSED: u64 = (DATA + 0x5000) | 3;

type Assembled = Result<(), IcedError>;

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
    // While there are breakpoints nothing is carried out on behalf of the processor.
    a.int3()?;
    a.int(0x40)?;
    a.mov(eax, 0x400)?;
    a.mov(dr7, rax)?;
    // Nor is a frame over the end of a page.
    a.mov(rsp, STACK_PAGE + 0x10)?;
    a.int3()?;
    a.mov(rsp, STACK)?;
    segments_that_are_noted(a)
}

/// The table of segments is on the watched page, and the processor notes in it what it has loaded.
fn segments_that_are_noted(a: &mut CodeAssembler) -> Assembled {
    for (selector, descriptor) in [(CODE_SELECTOR, 0x00af_9a00_0000_ffff), (DATA_SELECTOR, DATA_SEGMENT)] {
        a.mov(rax, descriptor)?;
        a.mov(qword_ptr(GDT + u64::from(selector)), rax)?;
    }
    a.mov(word_ptr(GDT_POINTER), 0x1f)?;
    a.mov(rax, GDT)?;
    a.mov(qword_ptr(GDT_POINTER + 2), rax)?;
    a.lgdt(ptr(GDT_POINTER))?;
    // By the gate, and on the way back.
    a.int3()?;
    a.mov(rax, DATA_SEGMENT)?;
    a.mov(qword_ptr(GDT + u64::from(DATA_SELECTOR)), rax)?;
    a.mov(eax, u32::from(DATA_SELECTOR))?;
    a.mov(ds, eax)
}

/// The program steps through its own stores: plain ones, a locked one, a repeated one.
fn steps_itself(a: &mut CodeAssembler) -> Assembled {
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
    // One on the watched page that faults when what the device gave is at hand: movsq; nop; ret.
    a.mov(rax, PAGE + 0x1a0)?;
    a.mov(dword_ptr(rax), 0xc390_a548_u32)?;
    a.mov(esi, DEVICE)?;
    a.mov(rdi, UNMAPPED + 8)?;
    a.call(rax)?;
    a.pushfq()?;
    a.and(qword_ptr(rsp), !0x100_i32)?;
    a.popfq()
}

/// A handler of steps: counts, and adds up where they came and what DR6 says.
fn tell_step(a: &mut CodeAssembler) -> Assembled {
    a.inc(qword_ptr(COUNTS + 8))?;
    a.push(rax)?;
    a.mov(rax, qword_ptr(rsp + 8))?;
    a.add(qword_ptr(SUM + 32), rax)?;
    a.mov(rax, dr6)?;
    a.add(qword_ptr(SUM + 40), rax)?;
    a.xor(eax, eax)?;
    a.mov(dr6, rax)?;
    a.pop(rax)?;
    a.iretq()
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
        tell_step(a)?;

        // What comes behind an event cannot be in the page that leads there.
        a.db(&[0; 4096])?;
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
        steps_itself(a)?;
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

/// How often a vector's handler was entered.
fn count(left: &Left, vector: usize) -> u64 {
    u64::from_le_bytes(left[0][0x100 + vector * 8..][..8].try_into().unwrap())
}

#[test]
fn are_as_without_a_trap() {
    is_as_untrapped(
        &exceptions(),
        |left| {
            assert_eq!([3, 6, 14].map(|vector| count(left, vector)), [18, 3, 12]);
            assert!(count(left, 1) >= 3 * 19, "{}", count(left, 1));
        },
        |vcpus, access| {
            let tally = vcpus.threads.traps().tally();
            assert!(tally.delivered >= 6, "{tally:?}");
            assert!(access == Access::Writes || tally.unfinished > 0, "{tally:?}");
        },
    );
}

/// A write to a register that leaves for this VMM, which KVM then refuses: the instruction is on the watched page, and the program
/// steps itself the second time.
fn refused_register() -> Program {
    uniprocessor(|a| {
        let (mut begin, mut on_protection, mut on_step) =
            (a.create_label(), a.create_label(), a.create_label());
        a.jmp(begin)?;
        // Goes on behind the instruction, which has two bytes.
        a.set_label(&mut on_protection)?;
        a.inc(qword_ptr(COUNTS + 13 * 8))?;
        a.add(rsp, 8)?;
        a.push(rax)?;
        a.mov(rax, qword_ptr(rsp + 8))?;
        a.add(qword_ptr(SUM), rax)?;
        a.mov(rax, qword_ptr(rsp + 24))?;
        a.add(qword_ptr(SUM + 8), rax)?;
        a.pop(rax)?;
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()?;
        a.set_label(&mut on_step)?;
        tell_step(a)?;
        a.db(&[0; 4096])?;
        a.set_label(&mut begin)?;
        gate(a, 1, on_step)?;
        gate(a, 13, on_protection)?;
        load_idt(a)?;
        wait_for_go(a)?;
        a.mov(rsp, STACK)?;
        // wrmsr; ret
        a.mov(rsi, PAGE + 0x180)?;
        a.mov(dword_ptr(rsi), 0x00c3_300f)?;
        a.mov(ecx, MSR_STEAL)?;
        a.mov(eax, u32::try_from(REFUSED).unwrap())?;
        a.xor(edx, edx)?;
        a.call(rsi)?;
        a.pushfq()?;
        a.or(qword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.call(rsi)?;
        a.pushfq()?;
        a.and(qword_ptr(rsp), !0x100_i32)?;
        a.popfq()?;
        a.mov(qword_ptr(DONE), 1)?;
        stay(a)
    })
}

#[test]
fn a_register_that_is_refused_is_a_fault_as_without_a_trap() {
    is_as_untrapped(
        &refused_register(),
        |left| {
            // A fault is no step: CALL, RET and the three behind them are.
            assert_eq!([1, 13].map(|vector| count(left, vector)), [5, 2]);
        },
        |vcpus, access| {
            let tally = vcpus.threads.traps().tally();
            assert!(access == Access::Writes || tally.unfinished >= 2, "{tally:?}");
        },
    );
}
