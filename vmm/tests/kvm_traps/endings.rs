//! vCPUs that end, or begin anew, in the middle of a trap.

use std::thread;
use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use update_server::watch::{Access, By, Kind, Lost};
use vm_memory::{Bytes, GuestAddress};

use crate::entries::{APIC_COMMAND, apic, let_the_host_in, stay, wait_for_go};
use crate::heard::{Heard, Told, bytes};
use crate::sharing::{APART, CLOSE, SHARED, counting, word};
use crate::tiny::{DATA, Program, Vcpus, multiprocessor, wait_until};
use crate::{PATIENCE, WAYS};

/// The host says when.
const GO: u64 = DATA;
/// How often vCPU 1 was started anew, and how often that took more than one try.
const RESTARTS: u64 = DATA + 0x40;
const RETRIES: u64 = DATA + 0x48;
/// How far vCPU 1 is.
const ROUNDS: u64 = DATA + 0x4000;

/// Each write that was told to a place leads on by one from what was told before.
fn counts_up(told: &[Told], at: u64) -> usize {
    let values: Vec<(u64, u64)> = told
        .iter()
        .filter(|told| told.at == at && told.kind == Kind::Write)
        .map(|told| (word(&told.before), word(&told.after)))
        .collect();
    let strange: Vec<_> = values.iter().filter(|(before, after)| *after != before + 1).collect();
    assert!(strange.is_empty(), "{at:#x}: {strange:?}");
    let gaps: Vec<_> = values.windows(2).filter(|pair| pair[0].1 != pair[1].0).collect();
    assert!(gaps.is_empty(), "{at:#x}: {gaps:?}");
    values.len()
}

#[test]
fn a_machine_that_ends_leaves_nothing_half_done() {
    for way in WAYS {
        let mut accesses = 0;
        for round in 0..10 {
            let vcpus = Vcpus::start_as(&counting(), 4, &[], way);
            let heard = Heard::of(&vcpus);
            heard.watch(&vcpus, &[SHARED], Access::Writes);
            vcpus.set_word(GO, u64::MAX);
            thread::sleep(Duration::from_millis(3 + 5 * round));
            // A host that is short of processors comes to little in that time.
            wait_until(PATIENCE, "accesses", || heard.len() as u64 >= 4 * round);
            // Of what a device has written right before, too.
            vcpus.vm.ram().memory().write_obj(round + 1, GuestAddress(SHARED + 0xf00)).unwrap();
            vcpus.threads.stop();
            assert!(heard.image(SHARED) == bytes(&vcpus, SHARED, 4096), "{way}, round {round}");
            assert_eq!(heard.lost(), [(SHARED, Lost::Ended)], "{way}");
            heard.check(false);
            let told = heard.take();
            assert!(told.iter().any(|told| told.by == By::Host), "{way}, round {round}");
            for at in [SHARED, APART, APART + 64, APART + 128, CLOSE, CLOSE + 4] {
                accesses += counts_up(&told, at);
            }
            assert!(vcpus.threads.traps().pages().is_empty());
            vcpus.check();
        }
        assert!(accesses > 40, "{way}: {accesses} accesses");
    }
}

fn spin(a: &mut CodeAssembler, count: u32) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(ecx, count)?;
    a.set_label(&mut again)?;
    a.pause()?;
    a.dec(ecx)?;
    a.jnz(again)
}

/// vCPU 1 counts up on a watched page; vCPU 0 starts it anew, again and again, wherever it is.
fn restarting() -> Program {
    multiprocessor(|a| {
        let (mut first, mut again, mut restart, mut wait, mut came) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.test(edi, edi)?;
        a.jz(first)?;
        wait_for_go(a)?;
        let_the_host_in(a)?;
        a.set_label(&mut again)?;
        a.lock().inc(qword_ptr(SHARED))?;
        a.inc(qword_ptr(APART))?;
        a.inc(qword_ptr(ROUNDS))?;
        a.jmp(again)?;

        a.set_label(&mut first)?;
        a.nop()?;
        wait_for_go(a)?;
        a.set_label(&mut restart)?;
        a.mov(r12, qword_ptr(ROUNDS))?;
        // INIT, and start-up twice, at the page with the trampoline (Intel SDM vol. 3A, 9.4.4.1).
        apic(a, APIC_COMMAND, 0x000c_4500)?;
        spin(a, 1000)?;
        for _ in 0..2 {
            apic(a, APIC_COMMAND, 0x000c_4608)?;
            spin(a, 1000)?;
        }
        a.mov(ecx, 2_000_000)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.mov(rax, qword_ptr(ROUNDS))?;
        a.sub(rax, r12)?;
        a.cmp(rax, 3)?;
        a.ja(came)?;
        a.dec(ecx)?;
        a.jnz(wait)?;
        a.inc(qword_ptr(RETRIES))?;
        a.jmp(restart)?;
        a.set_label(&mut came)?;
        a.inc(qword_ptr(RESTARTS))?;
        a.cmp(qword_ptr(GO), 2)?;
        a.jne(restart)?;
        stay(a)
    })
}

#[test]
fn a_vcpu_that_is_started_anew_meanwhile_goes_on() {
    for way in WAYS {
        let vcpus = Vcpus::start_as(&restarting(), 2, &[], way);
        let heard = Heard::of(&vcpus);
        heard.watch(&vcpus, &[SHARED], Access::Writes);
        vcpus.set_word(GO, 1);
        wait_until(PATIENCE, "100 restarts", || {
            vcpus.check();
            vcpus.word(RESTARTS) >= 100
        });
        let retries = vcpus.word(RETRIES);
        vcpus.set_word(GO, 2);
        heard.end(&vcpus, &[SHARED]);
        let told = heard.take();
        assert!(counts_up(&told, SHARED) >= 100 && counts_up(&told, APART) >= 100, "{way}");
        let tally = vcpus.threads.traps().tally();
        assert!(tally.unseen == 0 && tally.lost == 0, "{way}: {tally:?}");
        eprintln!("{way}: 100 restarts, {retries} tried again: {tally:?}");
        vcpus.check();
    }
}
