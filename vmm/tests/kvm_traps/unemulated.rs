//! What KVM's emulator fails at: because a page is watched, or because it always does.

use iced_x86::code_asm::*;
use lucos_vmm::boot::BOOT_PAGE_TABLES;
use lucos_vmm::config::Trapping;
use lucos_vmm::vcpu::ExitKind;
use update_server::addr::Gpa;
use update_server::watch::{Access, Watched};
use vm_memory::{Bytes, GuestAddress};

use crate::entries::{COUNTS, GO, gate, load_idt, wait_for_go};
use crate::heard::Heard;
use crate::hostile::{RANGES, ROUNDS, WINDOW, remapping};
use crate::sharing::word;
use crate::tiny::{DATA, Program, Vcpus, uniprocessor, wait_until};
use crate::{PATIENCE, WAYS};

/// A page that can be watched.
const PAGE: u64 = DATA + 0x1_1000;
/// Segments: none, none, the kernel's code and data, a program's data and code, and the task state segment (Intel SDM vol. 3A, 3.4.5,
/// 8.2.3); what LGDT reads; the task state segment itself, with the kernel's stack at 4.
const GDT: u64 = DATA + 0x3000;
const GDT_POINTER: u64 = DATA + 0x90;
const TSS: u64 = DATA + 0x3800;
const SEGMENTS: [u64; 8] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    (TSS & 0xff_ffff) << 16 | (TSS >> 24) << 56 | 0x89 << 40 | 0x67,
    0,
];
const PROGRAM_DATA: i32 = 0x23;
const PROGRAM_CODE: i32 = 0x2b;
const TASK: u32 = 0x30;
/// The vector of an undefined instruction.
const UNDEFINED: u64 = 6;

/// KVM's emulator begins with a device and finds a watched page.
#[test]
fn a_mapping_between_a_device_and_a_watched_page_stops_nobody() {
    for way in WAYS {
        // There is nothing where the window is at first, either.
        let vcpus = Vcpus::start_as(&remapping([WINDOW, RANGES[0]]), 2, &[], way);
        let heard = Heard::of(&vcpus);
        let page = RANGES[0] + 0x1000;
        heard.watch(&vcpus, &[page], Access::Writes);
        vcpus.set_word(GO, 1);
        let failed = || vcpus.threads.counters()[0].get(ExitKind::NotEmulated);
        wait_until(PATIENCE, "KVM's emulator to fail five times", || {
            vcpus.check();
            failed() >= 5
        });
        let (rounds, told) = (vcpus.word(ROUNDS), heard.len());
        wait_until(PATIENCE, "it to go on", || {
            vcpus.check();
            vcpus.word(ROUNDS) > rounds + 10 && heard.len() > told + 10
        });
        vcpus.threads.set_access(&[Gpa(page)], None).unwrap();
        heard.check(true);
        eprintln!("{way}: {} failures in {} rounds", failed(), vcpus.word(ROUNDS));
        // Each of those that found the page has counted up by one.
        let told = heard.take();
        let counted = told.iter().filter(|told| told.at == page + 0x18);
        for told in counted {
            assert_eq!(word(&told.after), word(&told.before) + 1, "{way}");
        }
    }
}

#[test]
fn code_that_talks_to_a_device_may_be_watched_meanwhile() {
    for (way, rounds) in [(Trapping::SecondView, 200), (Trapping::HoldAll, 50)] {
        let program = uniprocessor(|a| {
            let mut again = a.create_label();
            a.mov(rbx, WINDOW)?;
            a.set_label(&mut again)?;
            a.mov(dword_ptr(rbx), eax)?;
            a.mov(eax, dword_ptr(rbx))?;
            a.inc(qword_ptr(ROUNDS))?;
            a.jmp(again)
        });
        let vcpus = Vcpus::start_as(&program, 1, &[], way);
        let heard = Heard::of(&vcpus);
        vcpus.threads.pause().unwrap();
        let page = Gpa(vcpus.threads.snapshots().unwrap()[0].rip & !0xfff);
        vcpus.threads.resume();
        for _ in 0..rounds {
            vcpus.threads.set_access(&[page], Some(Access::All)).unwrap();
            std::thread::yield_now();
            vcpus.threads.set_access(&[page], None).unwrap();
            vcpus.check();
        }
        let before = vcpus.word(ROUNDS);
        wait_until(PATIENCE, "it to go on", || vcpus.word(ROUNDS) > before);
        let failed = vcpus.threads.counters()[0].get(ExitKind::NotEmulated);
        eprintln!("{way}: {} accesses, {failed} times KVM's emulator failed", heard.take().len());
    }
}

/// A program of user space that again and again loads a number from a device, as KVM cannot; its kernel counts the exceptions.
fn loads_from_a_device() -> Program {
    uniprocessor(|a| {
        let (mut program, mut handler, mut next) = (a.create_label(), a.create_label(), a.create_label());
        wait_for_go(a)?;
        gate(a, UNDEFINED, handler)?;
        load_idt(a)?;
        a.lgdt(ptr(GDT_POINTER))?;
        a.mov(eax, TASK)?;
        a.ltr(ax)?;
        // Programs may use everything: the tables of three levels are next to each other.
        a.mov(ebx, u32::try_from(BOOT_PAGE_TABLES).unwrap())?;
        a.mov(ecx, 6 * 512)?;
        a.set_label(&mut next)?;
        a.or(qword_ptr(rbx), 4)?;
        a.add(ebx, 8)?;
        a.dec(ecx)?;
        a.jnz(next)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.push(PROGRAM_DATA)?;
        a.push(rsp)?;
        a.push(2)?;
        a.push(PROGRAM_CODE)?;
        a.lea(rax, ptr(program))?;
        a.push(rax)?;
        a.iretq()?;
        a.set_label(&mut program)?;
        a.mov(rbx, WINDOW)?;
        a.fld(qword_ptr(rbx))?;
        a.hlt()?;
        a.set_label(&mut handler)?;
        a.inc(qword_ptr(COUNTS))?;
        a.iretq()
    })
}

#[test]
fn a_program_gets_its_exception_each_time() {
    for way in WAYS {
        let vcpus = Vcpus::start_as(&loads_from_a_device(), 1, &[], way);
        let memory = vcpus.vm.ram().memory();
        for (at, segment) in (0..).zip(SEGMENTS) {
            memory.write_obj(segment, GuestAddress(GDT + at * 8)).unwrap();
        }
        memory
            .write_obj(u16::try_from(size_of_val(&SEGMENTS) - 1).unwrap(), GuestAddress(GDT_POINTER))
            .unwrap();
        memory.write_obj(GDT, GuestAddress(GDT_POINTER + 2)).unwrap();
        memory.write_obj(TSS - 0x100, GuestAddress(TSS + 4)).unwrap();
        vcpus.set_word(GO, 1);
        let hundred_more = || {
            let before = vcpus.word(COUNTS);
            wait_until(PATIENCE, "a hundred exceptions", || {
                vcpus.check();
                vcpus.word(COUNTS) >= before + 100
            });
        };
        hundred_more();
        let failed = || vcpus.threads.counters()[0].get(ExitKind::NotEmulated);
        // Nothing was watched: it is not tried again.
        let (count, at_most) = (vcpus.word(COUNTS), failed());
        assert!(at_most.abs_diff(count) < 20, "{way}: {count} exceptions of {at_most} failures");
        vcpus.threads.set_access(&[Gpa(PAGE)], Some(Access::Writes)).unwrap();
        hundred_more();
        vcpus.threads.set_access(&[Gpa(PAGE)], None).unwrap();
        hundred_more();
        eprintln!("{way}: {} exceptions of {} failures", vcpus.word(COUNTS), failed());
    }
}
