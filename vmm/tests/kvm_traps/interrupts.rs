//! Interrupts and NMIs around a trapped access, and onto a watched stack.

use std::time::Instant;

use iced_x86::code_asm::*;
use lucos_vmm::config::Trapping;
use update_server::watch::{Access, By, Kind};

use crate::PATIENCE;
use crate::entries::{
    APIC_COMMAND, APIC_COUNT, APIC_DIVIDE, APIC_SPURIOUS, APIC_TIMER, COUNTS, DONE, GO, PAGE, STACK,
    STACK_PAGE, VECTOR, apic, end_of_interrupt, gate, load_idt, stay, wait_for_go,
};
use crate::heard::Heard;
use crate::tiny::{DATA, Program, Vcpus, multiprocessor, wait_until};

/// Ticks of the timer between two interrupts.
const PERIOD: u64 = DATA + 0x18;
const READY: u64 = DATA + 0x20;

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
fn and_nmis_find_a_watched_stack() {
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
