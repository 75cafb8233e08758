//! Pages that cannot be watched, and pages that become such.

use iced_x86::code_asm::*;
use lucos_vmm::boot::BOOT_PAGE_TABLES;
use lucos_vmm::config::Trapping;
use update_server::addr::Gpa;
use update_server::watch::{Access, Lost, NotWatched, Watched};

use crate::PATIENCE;
use crate::heard::Heard;
use crate::tiny::{DATA, Vcpus, uniprocessor, wait_until};

/// The clock's page, and where the program says how far it is.
const CLOCK: u64 = DATA + 0x3000;
const STEAL: u64 = DATA + 0x5000;
const STEP: u64 = DATA;

/// What the program never comes to.
const UNTOUCHED: usize = 48 << 20;

/// KVM's registers for its clock and for steal time (Documentation/virt/kvm/x86/msr.rst).
const MSR_CLOCK: u32 = 0x4b56_4d01;
const MSR_STEAL: u32 = 0x4b56_4d03;

#[test]
fn what_kvm_writes_to_is_refused_or_given_up() {
    let program = uniprocessor(|a| {
        let (mut wait, mut end) = (a.create_label(), a.create_label());
        let set = |a: &mut CodeAssembler, index: u32, value: u64| {
            a.mov(ecx, index)?;
            a.mov(eax, u32::try_from(value).unwrap())?;
            a.xor(edx, edx)?;
            a.wrmsr()
        };
        set(a, MSR_CLOCK, CLOCK | 1)?;
        a.mov(qword_ptr(STEP), 1)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(qword_ptr(STEP), 2)?;
        a.jne(wait)?;
        set(a, MSR_STEAL, STEAL | 1)?;
        a.mov(qword_ptr(STEP), 3)?;
        a.set_label(&mut end)?;
        a.pause()?;
        a.jmp(end)
    });
    let vcpus = Vcpus::start(&program, 1);
    let heard = Heard::of(&vcpus);
    wait_until(PATIENCE, "the clock", || vcpus.word(STEP) == 1);
    let clock = vcpus.threads.set_access(&[Gpa(DATA + 0x7000), Gpa(CLOCK)], Some(Access::Writes));
    assert_eq!(clock, Err(NotWatched::Hypervisor { at: Gpa(CLOCK), what: "clock" }));
    assert!(vcpus.threads.traps().pages().is_empty(), "all or none");
    heard.watch(&vcpus, &[STEAL], Access::Writes);
    vcpus.set_word(STEP, 2);
    wait_until(PATIENCE, "steal time", || vcpus.word(STEP) == 3);
    assert_eq!(heard.lost(), [(STEAL, Lost::Hypervisor { what: "steal time" })]);
    assert!(vcpus.threads.traps().pages().is_empty());
    // KVM has begun to keep the clock: its version is even and not 0 (struct pvclock_vcpu_time_info).
    let version = vcpus.word(CLOCK) & 0xffff_ffff;
    assert!(version != 0 && version.is_multiple_of(2), "{version}");
    vcpus.check();
}

#[test]
fn what_is_no_page_of_data_is_refused() {
    let program = uniprocessor(|a| {
        let mut end = a.create_label();
        a.set_label(&mut end)?;
        a.pause()?;
        a.jmp(end)
    });
    let vcpus = Vcpus::start(&program, 1);
    let refused =
        |at: u64| vcpus.threads.set_access(&[Gpa(DATA), Gpa(at)], Some(Access::Writes)).unwrap_err();
    // The topmost table, one in the middle; what is between two pages; what is no RAM.
    for table in [BOOT_PAGE_TABLES, BOOT_PAGE_TABLES + 0x3000] {
        assert_eq!(refused(table), NotWatched::Table(Gpa(table)));
    }
    assert_eq!(refused(DATA + 8), NotWatched::NotFirst(Gpa(DATA + 8)));
    for nowhere in [64 << 20, 0xfee0_0000, !0xfff, u64::MAX] {
        assert_eq!(refused(nowhere), NotWatched::NoPage(Gpa(nowhere)));
    }
    assert!(vcpus.threads.traps().pages().is_empty());
    // Ending what was never begun is no error.
    vcpus.threads.set_access(&[Gpa(DATA), Gpa(64 << 20)], None).unwrap();
    takes_no_memory(&vcpus);
    // Only one of several, and nothing where one of them is no page.
    let watched = |pages: &[u64]| {
        let pages: Vec<Gpa> = pages.iter().copied().map(Gpa).collect();
        assert_eq!(vcpus.threads.traps().pages(), pages);
    };
    vcpus.threads.set_access(&[Gpa(DATA), Gpa(DATA + 0x1000)], Some(Access::Writes)).unwrap();
    let middle = vcpus.threads.set_access(&[Gpa(DATA), Gpa(DATA + 0x1008)], None);
    assert_eq!(middle, Err(NotWatched::NotFirst(Gpa(DATA + 0x1008))));
    watched(&[DATA, DATA + 0x1000]);
    vcpus.threads.set_access(&[Gpa(DATA)], None).unwrap();
    watched(&[DATA + 0x1000]);
    vcpus.threads.set_access(&vcpus.threads.traps().pages(), None).unwrap();
    watched(&[]);
    vcpus.check();
}

/// Memory that nobody has touched stays unallocated, whether a page of it is watched for a moment or is only named.
fn takes_no_memory(vcpus: &Vcpus) {
    let resident = || {
        let mut pages = [0];
        let region = vcpus.vm.ram().regions().next().unwrap();
        region.protectable().residency(UNTOUCHED, &mut pages).unwrap();
        pages[0]
    };
    let place = [Gpa(UNTOUCHED as u64)];
    assert_eq!(resident(), 0);
    vcpus.threads.set_access(&place, None).unwrap();
    assert_eq!(resident(), 0);
    vcpus.threads.set_access(&place, Some(Access::Writes)).unwrap();
    vcpus.threads.set_access(&place, None).unwrap();
    // The page itself was read.
    assert!(resident() <= 1, "{}", resident());
}

#[test]
fn a_page_that_becomes_a_table_is_given_up() {
    // A copy of the topmost table, which the program then uses.
    const COPY: u64 = DATA + 0x6000;
    let program = uniprocessor(|a| {
        let (mut wait, mut end) = (a.create_label(), a.create_label());
        a.mov(rsi, BOOT_PAGE_TABLES)?;
        a.mov(rdi, COPY)?;
        a.mov(ecx, 512)?;
        a.cld()?;
        a.rep().movsq()?;
        a.mov(qword_ptr(STEP), 1)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(qword_ptr(STEP), 2)?;
        a.jne(wait)?;
        a.mov(rax, COPY)?;
        a.mov(cr3, rax)?;
        a.mov(qword_ptr(STEP), 3)?;
        a.set_label(&mut end)?;
        a.pause()?;
        a.jmp(end)
    });
    for way in [Trapping::SecondView, Trapping::HoldAll] {
        let vcpus = Vcpus::start_as(&program, 1, &[], way);
        let heard = Heard::of(&vcpus);
        wait_until(PATIENCE, "the copy", || vcpus.word(STEP) == 1);
        heard.watch(&vcpus, &[COPY], Access::Writes);
        vcpus.set_word(STEP, 2);
        wait_until(PATIENCE, "the new table", || vcpus.word(STEP) == 3);
        assert_eq!(heard.lost(), [(COPY, Lost::Table)], "{way}");
        vcpus.check();
    }
}
