//! A step that does not end where it should: the guest has moved the handler in front of which it was to be stopped.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lucos_vmm::config::Trapping;
use update_server::watch::{Access, Lost};

use crate::PATIENCE;
use crate::entries::{COUNTS, GO, IDT, STACK_PAGE, VECTOR, gate, load_idt, wait_for_go};
use crate::heard::Heard;
use crate::hostile::ROUNDS;
use crate::tiny::{DATA, Program, Vcpus, multiprocessor, wait_until};

type Assembled = Result<(), IcedError>;

/// The program says here, in the watched page, which round it is in.
const SAID: u64 = STACK_PAGE + 0x400;
/// The host says here in which round it was last heard.
const ANSWER: u64 = DATA + 0x18;
/// Where there is no device.
const PORT: u32 = 0x80;

/// vCPU 0 raises a software interrupt, with the frame over the end of a page of which one side is watched, and does something behind
/// it; vCPU 1 has its gate lead to one handler and to another all the time.
fn moving_its_handler(behind: fn(&mut CodeAssembler) -> Assembled) -> Program {
    multiprocessor(move |a| {
        let (mut first, mut again, mut change, mut one, mut other) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label(), a.create_label());
        wait_for_go(a)?;
        a.test(edi, edi)?;
        a.jz(first)?;
        a.lea(rcx, ptr(one))?;
        a.lea(rdx, ptr(other))?;
        a.set_label(&mut change)?;
        for place in [dx, cx] {
            // Their addresses differ in what is written at once.
            a.mov(word_ptr(IDT + VECTOR * 16), place)?;
            for _ in 0..20 {
                a.pause()?;
            }
        }
        a.jmp(change)?;
        a.set_label(&mut first)?;
        gate(a, VECTOR, one)?;
        load_idt(a)?;
        a.lea(r8, ptr(one))?;
        a.lea(r9, ptr(other))?;
        a.set_label(&mut again)?;
        // What an instruction reads is opened for it, a page that was closed before because a handler is there.
        a.mov(rsp, STACK_PAGE + 0x800)?;
        a.push(qword_ptr(r8))?;
        a.push(qword_ptr(r9))?;
        a.mov(rsp, STACK_PAGE + 0x10)?;
        a.int(i32::try_from(VECTOR).unwrap())?;
        behind(a)?;
        a.inc(qword_ptr(ROUNDS))?;
        a.jmp(again)?;
        // Each in a page of its own.
        for (handler, count) in [(&mut one, COUNTS), (&mut other, COUNTS + 8)] {
            a.db(&[0; 4096])?;
            a.set_label(handler)?;
            a.inc(qword_ptr(count))?;
            a.iretq()?;
        }
        Ok(())
    })
}

fn leave(a: &mut CodeAssembler) -> Assembled {
    a.mov(edx, PORT)?;
    a.out(dx, al)
}

/// Says something in the watched page, and stays away from everything that is watched or closed until that was told: for ever,
/// where nobody sees it. So only a round in which its handler has moved takes longer than a step may.
fn stay_away(a: &mut CodeAssembler) -> Assembled {
    let mut wait = a.create_label();
    a.mov(rbx, qword_ptr(ROUNDS))?;
    a.inc(rbx)?;
    a.mov(qword_ptr(SAID), rbx)?;
    a.set_label(&mut wait)?;
    a.pause()?;
    a.cmp(qword_ptr(ANSWER), rbx)?;
    a.jb(wait)
}

/// Waits until `done`, while the host answers what it hears, and anything once it has lost the page.
fn wait_for(vcpus: &Vcpus, heard: &Heard, what: &str, done: impl Fn() -> bool) {
    wait_until(PATIENCE, what, || {
        vcpus.check();
        let round = if heard.lost().is_empty() { heard.last_word(SAID) } else { Some(u64::MAX) };
        vcpus.set_word(ANSWER, round.unwrap_or(0));
        done()
    });
}

/// A vCPU that has run on, until it left for a device or was got out.
#[test]
fn a_handler_that_moves_lets_a_vcpu_go_for_a_moment() {
    for (behind, how) in
        [(leave as fn(&mut CodeAssembler) -> Assembled, "PortOut"), (stay_away, "ran on for 2s")]
    {
        let vcpus = Vcpus::start_as(&moving_its_handler(behind), 2, &[], Trapping::SecondView);
        let heard = Heard::of(&vcpus);
        heard.watch(&vcpus, &[STACK_PAGE], Access::Writes);
        vcpus.set_word(GO, 1);
        wait_for(&vcpus, &heard, "one that does not come back", || !heard.lost().is_empty());
        let [(STACK_PAGE, Lost::Escaped { vcpu: 0, why })] = &heard.lost()[..] else {
            panic!("{:?}", heard.lost())
        };
        assert!(why.contains(how), "{why}");
        assert!(vcpus.threads.traps().pages().is_empty());
        let rounds = || vcpus.word(ROUNDS);
        eprintln!("{} accesses in {} rounds: {why}", heard.len(), rounds());
        // The guest goes on, and can be watched again.
        let before = rounds();
        wait_for(&vcpus, &heard, "more rounds", || rounds() > before + 1);
        let told = heard.len();
        heard.watch(&vcpus, &[STACK_PAGE], Access::Writes);
        wait_for(&vcpus, &heard, "more that is told", || heard.len() > told);
        // What was written while it was away was found, and may have been seen by nobody.
        heard.check(true);
        vcpus.check();
    }
}

/// Where all others are held, nobody moves it.
#[test]
fn a_handler_stays_where_all_are_held() {
    let vcpus = Vcpus::start_as(&moving_its_handler(leave), 2, &[], Trapping::HoldAll);
    let heard = Heard::of(&vcpus);
    heard.watch(&vcpus, &[STACK_PAGE], Access::Writes);
    vcpus.set_word(GO, 1);
    wait_for(&vcpus, &heard, "1,000 rounds", || vcpus.word(ROUNDS) > 1000);
    assert_eq!(heard.lost(), []);
    heard.end(&vcpus, &[STACK_PAGE]);
    assert!([COUNTS, COUNTS + 8].iter().all(|count| vcpus.word(*count) > 100));
    // Three pushes, of which the last is that of a frame.
    assert!(heard.len() > 3000, "{}", heard.len());
}
