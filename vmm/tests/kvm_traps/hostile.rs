//! A guest that changes what an access is while it is carried out.

use iced_x86::code_asm::*;
use lucos_vmm::boot::BOOT_PAGE_TABLES;
use lucos_vmm::config::Trapping;
use lucos_vmm::vcpu::GuestStop;
use update_server::addr::Gpa;
use update_server::watch::{Access, By, Watched};
use vm_memory::{Bytes, GuestAddress};

use crate::entries::{COUNTS, GO, gate, let_the_host_in, load_idt, wait_for_go};
use crate::heard::{Heard, bytes};
use crate::tiny::{DATA, Program, Vcpus, multiprocessor, uniprocessor, wait_until};
use crate::{PATIENCE, WAYS};

pub(crate) const ROUNDS: u64 = DATA + 8;
/// Watched pages, each with pages around it that nobody may write to.
const ONE: u64 = DATA + 0x2_1000;
const OTHER: u64 = DATA + 0x2_4000;
const AROUND: u64 = DATA + 0x2_0000;
const AROUND_LEN: usize = 0x6000;
/// The command register of the local APIC, to which an SMI is written (Intel SDM vol. 3A, 11.6.1).
const COMMAND: u32 = 0xfee0_0300;
/// Through this, one of two ranges of 2 MiB is seen.
pub(crate) const WINDOW: u64 = 0xa000_0000;
pub(crate) const RANGES: [u64; 2] = [40 << 20, 42 << 20];

/// vCPU 0 carries out an instruction that vCPU 1 changes all the time: to which page it writes, and how.
fn rewriting() -> Program {
    multiprocessor(|a| {
        let (mut writer, mut place, mut again, mut change) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        wait_for_go(a)?;
        a.test(edi, edi)?;
        a.jz(writer)?;
        a.lea(rbx, ptr(place))?;
        a.set_label(&mut change)?;
        // mov [rdi], eax; mov [rsi], eax; inc dword [rdi]; lock inc dword [rsi]: each is one instruction of four bytes.
        for code in [0x0789_3e3e_u32, 0x0689_3e3e, 0x07ff_3e3e, 0x06ff_f03e] {
            a.mov(dword_ptr(rbx), code)?;
            for _ in 0..20 {
                a.pause()?;
            }
        }
        a.jmp(change)?;
        a.set_label(&mut writer)?;
        let_the_host_in(a)?;
        a.mov(rdi, ONE + 0x10)?;
        a.mov(rsi, OTHER + 0x20)?;
        a.set_label(&mut again)?;
        a.inc(eax)?;
        a.jmp(place)?;
        // One write changes it: it is in one word.
        for _ in 0..8 {
            a.nop()?;
        }
        a.set_label(&mut place)?;
        a.db(&[0x3e, 0x3e, 0x89, 0x07])?;
        a.inc(qword_ptr(ROUNDS))?;
        a.jmp(again)
    })
}

#[test]
fn an_instruction_that_changes_writes_nowhere_else() {
    for way in WAYS {
        let vcpus = Vcpus::start_as(&rewriting(), 2, &[], way);
        let memory = vcpus.vm.ram().memory();
        memory.write_slice(&vec![0x5a; AROUND_LEN], GuestAddress(AROUND)).unwrap();
        let heard = Heard::of(&vcpus);
        heard.watch(&vcpus, &[ONE, OTHER], Access::Writes);
        vcpus.set_word(GO, 1);
        wait_until(PATIENCE, "3,000 rounds", || {
            vcpus.check();
            vcpus.word(ROUNDS) > 3000
        });
        vcpus.threads.pause().unwrap();
        let around = bytes(&vcpus, AROUND, AROUND_LEN);
        let allowed =
            |at: u64| (ONE + 0x10..ONE + 0x14).contains(&at) || (OTHER + 0x20..OTHER + 0x24).contains(&at);
        let strange = (AROUND..).zip(&around).find(|(at, byte)| **byte != 0x5a && !allowed(*at));
        assert_eq!(strange, None, "{way}");
        vcpus.threads.resume();
        vcpus.threads.set_access(&[ONE, OTHER].map(Gpa), None).unwrap();
        // What was carried out may be another instruction than was looked at; nothing of it is lost.
        heard.check(true);
        let told = heard.take();
        let of = |page: u64| told.iter().filter(|told| told.at & !0xfff == page).count();
        let unseen = told.iter().filter(|told| told.by == By::Unseen).count();
        assert!(of(ONE) > 100 && of(OTHER) > 100, "{way}: {} and {}", of(ONE), of(OTHER));
        eprintln!("{way}: {} accesses, {unseen} of them found later", told.len());
        for page in [ONE, OTHER] {
            assert!(told.iter().all(|told| allowed(told.at)), "{page:#x}");
        }
    }
}

/// vCPU 0 carries out an instruction that vCPU 1 makes RSM and back all the time: what a processor does not have outside of system
/// management mode, which the second view takes a vCPU for.
fn becoming_rsm() -> Program {
    multiprocessor(|a| {
        let (mut writer, mut place, mut again, mut change, mut on_undefined) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label(), a.create_label());
        wait_for_go(a)?;
        a.test(edi, edi)?;
        a.jz(writer)?;
        a.lea(rbx, ptr(place))?;
        a.set_label(&mut change)?;
        // lock inc dword [rdi]; nop, and rsm; nop; nop.
        for code in [0x9007_fff0_u32, 0x9090_aa0f] {
            a.mov(dword_ptr(rbx), code)?;
            for _ in 0..20 {
                a.pause()?;
            }
        }
        a.jmp(change)?;
        // Goes on behind it.
        a.set_label(&mut on_undefined)?;
        a.inc(qword_ptr(COUNTS + 6 * 8))?;
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()?;
        a.set_label(&mut writer)?;
        let_the_host_in(a)?;
        gate(a, 6, on_undefined)?;
        load_idt(a)?;
        a.mov(rdi, ONE)?;
        a.set_label(&mut again)?;
        a.jmp(place)?;
        for _ in 0..8 {
            a.nop()?;
        }
        a.set_label(&mut place)?;
        a.db(&[0xf0, 0xff, 0x07, 0x90])?;
        a.inc(qword_ptr(ROUNDS))?;
        a.jmp(again)
    })
}

#[test]
fn an_instruction_that_becomes_rsm_is_undefined() {
    for way in WAYS {
        let vcpus = Vcpus::start_as(&becoming_rsm(), 2, &[], way);
        let heard = Heard::of(&vcpus);
        heard.watch(&vcpus, &[ONE], Access::Writes);
        vcpus.set_word(GO, 1);
        let resumed = || vcpus.threads.traps().tally().unfinished;
        let undefined = || vcpus.word(COUNTS + 6 * 8);
        wait_until(PATIENCE, "100 accesses and exceptions, and five steps that were RSM", || {
            vcpus.check();
            // Where all others are held, nobody changes what was looked at.
            heard.len() > 100 && undefined() > 100 && (way == Trapping::HoldAll || resumed() >= 5)
        });
        vcpus.threads.pause().unwrap();
        let (rounds, undefined) = (vcpus.word(ROUNDS), undefined());
        vcpus.threads.resume();
        heard.end(&vcpus, &[ONE]);
        let told = heard.take().len() as u64;
        eprintln!("{way}: {rounds} rounds, {undefined} exceptions, {} in a step, {told} accesses", resumed());
    }
}

/// vCPU 0 writes through a window that vCPU 1 moves from one of these addresses to the other all the time.
pub(crate) fn remapping(ranges: [u64; 2]) -> Program {
    multiprocessor(move |a| {
        let (mut writer, mut again, mut change) = (a.create_label(), a.create_label(), a.create_label());
        // The third directory maps 2 to 3 GiB.
        let entry = BOOT_PAGE_TABLES + 0x1000 * (2 + (WINDOW >> 30)) + ((WINDOW >> 21) & 511) * 8;
        wait_for_go(a)?;
        a.test(edi, edi)?;
        a.jz(writer)?;
        a.mov(rbx, entry)?;
        a.set_label(&mut change)?;
        for range in ranges {
            a.mov(rax, range | 0x83)?;
            a.mov(qword_ptr(rbx), rax)?;
            for _ in 0..20 {
                a.pause()?;
            }
        }
        a.jmp(change)?;
        a.set_label(&mut writer)?;
        let_the_host_in(a)?;
        a.mov(rdi, WINDOW + 0x1010)?;
        a.set_label(&mut again)?;
        a.invlpg(ptr(rdi))?;
        a.inc(eax)?;
        a.mov(dword_ptr(rdi), eax)?;
        a.lock().inc(dword_ptr(rdi + 8))?;
        a.inc(qword_ptr(ROUNDS))?;
        a.jmp(again)
    })
}

#[test]
fn a_mapping_that_changes_leads_nowhere_else() {
    for way in WAYS {
        let vcpus = Vcpus::start_as(&remapping(RANGES), 2, &[], way);
        let heard = Heard::of(&vcpus);
        let pages = RANGES.map(|range| range + 0x1000);
        heard.watch(&vcpus, &pages, Access::Writes);
        vcpus.set_word(GO, 1);
        wait_until(PATIENCE, "2,000 rounds", || {
            vcpus.check();
            vcpus.word(ROUNDS) > 2000
        });
        vcpus.threads.set_access(&pages.map(Gpa), None).unwrap();
        heard.check(true);
        let told = heard.take();
        let unseen = told.iter().filter(|told| told.by == By::Unseen).count();
        eprintln!("{way}: {} accesses, {unseen} of them found later", told.len());
        for page in pages {
            assert!(told.iter().filter(|told| told.at & !0xfff == page).count() > 100, "{way}");
        }
        // Beside the two words, nothing.
        let allowed = |at: u64| (0x1010..0x101c).contains(&(at % (2 << 20)));
        assert!(told.iter().all(|told| allowed(told.at)), "{way}");
        for range in RANGES {
            let all = bytes(&vcpus, range, 0x4000);
            let strange = (range..).zip(&all).find(|(at, byte)| **byte != 0 && !allowed(*at));
            assert_eq!(strange, None, "{way}");
        }
    }
}

#[test]
fn a_guest_in_system_management_mode_ends() {
    let program = uniprocessor(|a| {
        let mut again = a.create_label();
        wait_for_go(a)?;
        a.mov(rdi, ONE)?;
        a.mov(ebx, COMMAND)?;
        a.set_label(&mut again)?;
        a.inc(ecx)?;
        a.lock().inc(dword_ptr(rdi))?;
        a.cmp(ecx, 50)?;
        a.jb(again)?;
        // To itself.
        a.mov(dword_ptr(rbx), 0x4_4200)?;
        a.jmp(again)
    });
    let vcpus = Vcpus::start_as(&program, 1, &[], Trapping::SecondView);
    let heard = Heard::of(&vcpus);
    heard.watch(&vcpus, &[ONE], Access::Writes);
    vcpus.set_word(GO, 1);
    wait_until(PATIENCE, "the end", || !vcpus.stops().is_empty());
    let stop = vcpus.stops().remove(0).1;
    assert!(matches!(stop, GuestStop::SystemManagementMode), "{stop:?}");
    assert!(heard.take().len() >= 50);
}

/// The second processor sends an SMI to the first, which does nothing but be trapped.
#[test]
fn a_system_management_interrupt_in_the_middle_of_a_step_ends_it() {
    for way in WAYS {
        let program = multiprocessor(|a| {
            let (mut writer, mut again, mut wait) = (a.create_label(), a.create_label(), a.create_label());
            wait_for_go(a)?;
            a.test(edi, edi)?;
            a.jz(writer)?;
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(qword_ptr(ROUNDS), 50)?;
            a.jb(wait)?;
            a.mov(ebx, COMMAND)?;
            // To all but the sender.
            a.mov(dword_ptr(rbx), 0xc_4200)?;
            a.hlt()?;
            a.set_label(&mut writer)?;
            let_the_host_in(a)?;
            a.mov(rdi, ONE)?;
            a.set_label(&mut again)?;
            a.lock().inc(qword_ptr(rdi))?;
            a.lock().inc(qword_ptr(rdi))?;
            a.lock().inc(qword_ptr(rdi))?;
            a.inc(qword_ptr(ROUNDS))?;
            a.jmp(again)
        });
        let vcpus = Vcpus::start_as(&program, 2, &[], way);
        let heard = Heard::of(&vcpus);
        heard.watch(&vcpus, &[ONE], Access::Writes);
        vcpus.set_word(GO, 1);
        wait_until(PATIENCE, "the end", || !vcpus.stops().is_empty());
        assert_eq!(vcpus.stops(), [(0, GuestStop::SystemManagementMode)], "{way}");
        vcpus.threads.traps().end();
        heard.check(false);
        let told = heard.take();
        assert!(told.len() >= 150, "{way}: {} accesses", told.len());
        assert_eq!(vcpus.word(ONE), told.len() as u64, "{way}");
    }
}
