//! Who comes to a tombstone stays in front of it, with all registers as they were, until other code is there.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod tiny;

use std::thread;
use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use lucos_vmm::config::Trapping;
use lucos_vmm::vcpu::{ExitKind, Met};
use tiny::{DATA, Program, Vcpus, uniprocessor};
use update_server::addr::Gpa;
use update_server::watch::{Access, Watched};
use vm_memory::{Bytes, GuestAddress};

/// Words of the program's: where the tombstone is, whether to go there, and what it has found.
const PLACE: u64 = DATA;
const GO: u64 = DATA + 8;
const BEHIND: u64 = DATA + 16;
const ELSEWHERE: u64 = DATA + 24;
const DONE: u64 = DATA + 32;
/// What is in the register that the read would change: more than the read has.
const VALUE: u64 = 0x1234_5678_9abc_def0;
/// `in eax, 0xe5`, and as many bytes that do nothing (Intel SDM vol. 2B, NOP).
const TOMBSTONE: [u8; 2] = [0xe5, 0xe5];
const OLD_CODE: [u8; 2] = [0x66, 0x90];
const LIMIT: Duration = Duration::from_secs(30);
const PAUSES: usize = 50;

fn program() -> Program {
    uniprocessor(|a| {
        let (mut wait, mut place) = (a.create_label(), a.create_label());
        a.mov(rdi, DATA)?;
        a.lea(rax, qword_ptr(place))?;
        a.mov(qword_ptr(rdi), rax)?;
        a.set_label(&mut wait)?;
        a.cmp(qword_ptr(rdi + 8), 0)?;
        a.je(wait)?;
        // The same bytes where no tombstone is.
        a.mov(rax, VALUE)?;
        a.db(&TOMBSTONE)?;
        a.mov(qword_ptr(rdi + 24), rax)?;
        a.mov(rax, VALUE)?;
        a.set_label(&mut place)?;
        a.db(&TOMBSTONE)?;
        a.mov(qword_ptr(rdi + 16), rax)?;
        a.mov(qword_ptr(rdi + 32), 1)
    })
}

fn wait_for(what: &str, is_it: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_it() {
        assert!(begin.elapsed() < LIMIT, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn whoever_comes_to_one_goes_on_in_what_is_put_there() {
    comes_and_goes_on(&Vcpus::start(&program(), 1), false);
}

/// The read that a tombstone is leaves the guest in the middle of a step then.
#[test]
fn so_does_one_whose_code_is_watched() {
    for way in [Trapping::SecondView, Trapping::HoldAll] {
        comes_and_goes_on(&Vcpus::start_as(&program(), 1, &[], way), true);
    }
}

fn comes_and_goes_on(vcpus: &Vcpus, watched: bool) {
    wait_for("the program does not begin", || vcpus.word(PLACE) != 0);
    let place = vcpus.word(PLACE);
    let exits = || vcpus.threads.counters()[0].get(ExitKind::Tombstone);
    let page = Gpa(place / 4096 * 4096);
    if watched {
        vcpus.threads.set_access(&[page], Some(Access::All)).unwrap();
    }
    vcpus.tombstones.set(std::iter::once(place..place + TOMBSTONE.len() as u64));
    vcpus.set_word(GO, 1);
    wait_for("nobody comes", || !vcpus.met().is_empty());
    // It stays there, wherever it is stopped.
    for _ in 0..PAUSES {
        let before = exits();
        wait_for("it does not come again", || exits() > before);
        vcpus.threads.pause().unwrap();
        let vcpu = &vcpus.threads.snapshots().unwrap()[0];
        assert_eq!((vcpu.rip, vcpu.registers.rax, vcpu.registers.rdi), (place, VALUE, DATA));
        vcpus.threads.resume();
    }
    assert_eq!(vcpus.met(), [Met { vcpu: 0, rip: place }]);
    assert_eq!((vcpus.word(DONE), vcpus.word(ELSEWHERE)), (0, 0xffff_ffff));
    vcpus.threads.pause().unwrap();
    vcpus.vm.ram().memory().write_slice(&OLD_CODE, GuestAddress(place)).unwrap();
    vcpus.tombstones.set([]);
    vcpus.tombstones.heard();
    vcpus.threads.resume();
    wait_for("it does not go on", || vcpus.word(DONE) == 1);
    assert_eq!(vcpus.word(BEHIND), VALUE);
    if watched {
        let tally = vcpus.threads.traps().tally();
        assert!(tally.unfinished >= PAUSES as u64 && tally.lost == 0 && tally.unseen == 0, "{tally:?}");
        assert_eq!(vcpus.threads.traps().pages(), [page]);
    }
    vcpus.check();
}
