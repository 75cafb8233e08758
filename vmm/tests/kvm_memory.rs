//! Guest memory that becomes huge pages while the guest uses it.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod tiny;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use iced_x86::code_asm::*;
use lucos_vmm::memory::collapse_range;
use tiny::{DATA, Program, RESULT_PORT, Vcpus, multiprocessor, need_kvm, wait_until};

/// What the guest fills: 14 huge pages behind the processors' stacks.
const AREA: u64 = 34 << 20;
const AREA_END: u64 = 62 << 20;
const CPUS: u8 = 2;
/// Machines, each with memory that was never touched.
const ROUNDS: u32 = 8;
/// Words written to each page, 512 bytes apart.
const WORDS: i32 = 8;

/// Each processor fills every second page with words that name their own place, and looks behind itself as it goes;
/// at the end it looks at all of its pages once more.
fn fills_and_checks() -> Program {
    let stride = 4096 * i32::from(CPUS);
    multiprocessor(|a| {
        let (mut fill, mut word, mut next) = (a.create_label(), a.create_label(), a.create_label());
        let (mut check, mut look, mut wrong) = (a.create_label(), a.create_label(), a.create_label());
        let (mut good, mut end) = (a.create_label(), a.create_label());
        a.mov(r11, AREA)?;
        a.mov(r13, AREA_END)?;
        a.mov(r10d, edi)?;
        a.shl(r10, 12)?;
        a.add(r10, r11)?;
        a.mov(r12, r10)?;

        a.set_label(&mut fill)?;
        a.cmp(r12, r13)?;
        a.jae(good)?;
        a.mov(rbx, r12)?;
        a.mov(ecx, WORDS)?;
        a.set_label(&mut word)?;
        a.mov(rax, rbx)?;
        a.not(rax)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.add(rbx, 512)?;
        a.dec(ecx)?;
        a.jnz(word)?;
        a.lea(rbx, qword_ptr(r12 - 4 * stride))?;
        a.cmp(rbx, r11)?;
        a.jb(next)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.not(rax)?;
        a.cmp(rax, rbx)?;
        a.jne(wrong)?;
        a.set_label(&mut next)?;
        a.add(r12, stride)?;
        a.jmp(fill)?;

        a.set_label(&mut good)?;
        a.mov(r12, r10)?;
        a.set_label(&mut check)?;
        a.mov(rbx, r12)?;
        a.mov(ecx, WORDS)?;
        a.set_label(&mut look)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.not(rax)?;
        a.cmp(rax, rbx)?;
        a.jne(wrong)?;
        a.add(rbx, 512)?;
        a.dec(ecx)?;
        a.jnz(look)?;
        a.add(r12, stride)?;
        a.cmp(r12, r13)?;
        a.jb(check)?;
        a.shl(edi, 6)?;
        a.mov(eax, 1)?;
        a.mov(qword_ptr(rdi + i32::try_from(DATA).unwrap_or(0)), rax)?;
        a.jmp(end)?;

        a.set_label(&mut wrong)?;
        a.mov(edx, u32::from(RESULT_PORT))?;
        a.mov(eax, ebx)?;
        a.out(dx, eax)?;
        a.set_label(&mut end)?;
        a.nop()
    })
}

/// Ends the other thread however this one ends.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn no_byte_is_lost_when_pages_are_collapsed_under_the_guest() {
    need_kvm();
    let program = fills_and_checks();
    let rounds = std::env::var("LUCOS_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let mut huge = 0;
    for round in 0..rounds {
        let vcpus = Vcpus::start(&program, CPUS);
        let stop = AtomicBool::new(false);
        huge += thread::scope(|scope| {
            let collapse = scope.spawn(|| {
                let mut huge = 0;
                while !stop.load(Ordering::SeqCst) {
                    huge = collapse_range(vcpus.vm.ram().memory(), AREA, AREA_END);
                    // The guest has to get somewhere in between.
                    thread::sleep(Duration::from_millis(5));
                }
                huge
            });
            let at_end = StopAtEnd(&stop);
            wait_until(Duration::from_mins(1), &format!("round {round}"), || {
                vcpus.check();
                (0..u64::from(CPUS)).all(|cpu| vcpus.word(DATA + cpu * 64) == 1)
            });
            drop(at_end);
            collapse.join().unwrap()
        });
    }
    assert!(
        huge > 0,
        "no page was collapsed, so nothing was tested; the host lacks MADV_COLLAPSE (Linux 6.1)"
    );
}
