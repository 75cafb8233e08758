//! Pauses: nothing moves, nothing is lost, whatever the guest is doing.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod tiny;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lucos_vmm::cli::ExitStatus;
use lucos_vmm::console::OutputQueue;
use lucos_vmm::device::serial::{SerialSink, Uart};
use tiny::{
    COM1, DATA, Machine, Program, RESULT_PORT, Setup, Vcpus, halt, multiprocessor, power_off, put_byte,
    report, reset, uniprocessor,
};

/// Counters of the processors, a cache line each, and a page of buffer for each.
const COUNTERS: u64 = DATA;
const BUFFERS: u64 = DATA + 0x1_0000;
/// Numbers in one string.
const STRING: u32 = 300;

/// `edx` = own port, `rbx` = own counter, `rbp` = own buffer, `r12` = 0.
fn begin(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, edi)?;
    a.shl(edx, 3)?;
    a.add(edx, 0x900)?;
    a.mov(ebx, edi)?;
    a.shl(ebx, 6)?;
    a.add(ebx, i32::try_from(COUNTERS).unwrap_or(0))?;
    a.mov(ebp, edi)?;
    a.shl(ebp, 12)?;
    a.add(ebp, i32::try_from(BUFFERS).unwrap_or(0))?;
    a.xor(r12d, r12d)?;
    a.cld()
}

/// Tells the host what is wrong, and stops.
fn complain(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, u32::from(RESULT_PORT))?;
    a.out(dx, eax)?;
    halt(a)
}

/// Sends 1, 2, 3, … and expects as many answers, one by one.
fn single_io() -> Program {
    multiprocessor(|a| {
        begin(a)?;
        let (mut again, mut wrong) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.inc(r12d)?;
        a.mov(eax, r12d)?;
        a.out(dx, eax)?;
        a.in_(eax, dx)?;
        a.cmp(eax, r12d)?;
        a.jne(wrong)?;
        a.inc(qword_ptr(rbx))?;
        a.jmp(again)?;
        a.set_label(&mut wrong)?;
        complain(a)
    })
}

/// The same by strings.
fn string_io() -> Program {
    multiprocessor(|a| {
        begin(a)?;
        let (mut again, mut fill, mut look) = (a.create_label(), a.create_label(), a.create_label());
        let mut wrong = a.create_label();
        a.set_label(&mut again)?;
        a.mov(rdi, rbp)?;
        a.mov(eax, r12d)?;
        a.mov(ecx, STRING)?;
        a.set_label(&mut fill)?;
        a.inc(eax)?;
        a.stosd()?;
        a.loop_(fill)?;
        a.mov(rsi, rbp)?;
        a.mov(ecx, STRING)?;
        a.rep().outsd()?;
        a.mov(rdi, rbp)?;
        a.mov(ecx, STRING)?;
        a.rep().insd()?;
        a.mov(rsi, rbp)?;
        a.mov(ecx, STRING)?;
        a.set_label(&mut look)?;
        a.inc(r12d)?;
        a.lodsd()?;
        a.cmp(eax, r12d)?;
        a.jne(wrong)?;
        a.loop_(look)?;
        a.inc(qword_ptr(rbx))?;
        a.jmp(again)?;
        a.set_label(&mut wrong)?;
        complain(a)
    })
}

/// Counts, with interrupts off and without any exit.
fn spin() -> Program {
    multiprocessor(|a| {
        begin(a)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(qword_ptr(rbx))?;
        a.jmp(again)
    })
}

/// Pauses `cycles` times and checks that the world stands still; the lengths of the longest pause.
fn cycles(vcpus: &Vcpus, cycles: u32) -> Duration {
    let mut longest = Duration::ZERO;
    for cycle in 0..cycles {
        let begin = Instant::now();
        vcpus.threads.pause().unwrap();
        longest = longest.max(begin.elapsed());
        let before = vcpus.progress(COUNTERS);
        thread::sleep(Duration::from_micros(u64::from(cycle % 7) * 100));
        assert_eq!(vcpus.progress(COUNTERS), before, "something moved in pause {cycle}");
        vcpus.threads.resume();
        thread::sleep(Duration::from_micros(u64::from(cycle % 11) * 100));
    }
    vcpus.check();
    longest
}

fn moved(vcpus: &Vcpus, since: &[(u64, u64, u64)]) -> bool {
    vcpus.progress(COUNTERS).iter().zip(since).all(|(now, then)| now.2 > then.2)
}

fn moves_on(vcpus: &Vcpus) {
    let then = vcpus.progress(COUNTERS);
    tiny::wait_until(Duration::from_secs(10), "every vCPU to move", || moved(vcpus, &then));
}

#[test]
fn no_io_is_lost_or_doubled_by_pauses() {
    let vcpus = Vcpus::start(&single_io(), 2);
    moves_on(&vcpus);
    let longest = cycles(&vcpus, 400);
    moves_on(&vcpus);
    vcpus.threads.pause().unwrap();
    for (read, written, counted) in vcpus.progress(COUNTERS) {
        assert!(written - read <= 1 && read - counted <= 1, "{read} {written} {counted}");
    }
    eprintln!("longest pause {longest:?}, {:?}", vcpus.progress(COUNTERS));
}

#[test]
fn strings_of_io_are_cut_by_pauses_and_stay_whole() {
    let vcpus = Vcpus::start(&string_io(), 2);
    moves_on(&vcpus);
    let longest = cycles(&vcpus, 300);
    moves_on(&vcpus);
    eprintln!("longest pause {longest:?}, {:?}", vcpus.progress(COUNTERS));
}

#[test]
fn a_guest_that_spins_with_interrupts_off_stands_still() {
    let vcpus = Vcpus::start(&spin(), 2);
    moves_on(&vcpus);
    cycles(&vcpus, 300);
    moves_on(&vcpus);
}

#[test]
fn a_halted_guest_can_be_paused() {
    for interrupts in [false, true] {
        let program = multiprocessor(|a| {
            if interrupts {
                a.sti()?;
            }
            a.hlt()
        });
        // Three vCPUs of four halt; the last never starts, and waits for INIT.
        let vcpus = Vcpus::start(&program, 3);
        cycles(&vcpus, 100);
    }
    let never_started = Vcpus::start(&uniprocessor(CodeAssembler::hlt), 3);
    cycles(&never_started, 100);
}

#[test]
fn pauses_nest_and_come_from_several_threads() {
    let vcpus = Vcpus::start(&single_io(), 2);
    moves_on(&vcpus);
    vcpus.threads.pause().unwrap();
    vcpus.threads.pause().unwrap();
    vcpus.threads.resume();
    let before = vcpus.progress(COUNTERS);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(vcpus.progress(COUNTERS), before);
    vcpus.threads.resume();
    moves_on(&vcpus);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| cycles(&vcpus, 100));
        }
    });
    moves_on(&vcpus);
}

#[test]
fn vcpus_stop_while_paused_and_while_being_paused() {
    for program in [single_io(), spin()] {
        let vcpus = Vcpus::start(&program, 2);
        vcpus.threads.pause().unwrap();
        let begin = Instant::now();
        vcpus.threads.stop();
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
    for _ in 0..20 {
        let vcpus = Vcpus::start(&single_io(), 2);
        thread::scope(|scope| {
            scope.spawn(|| {
                (0..10).for_each(|_| vcpus.threads.pause().map(|()| vcpus.threads.resume()).unwrap());
            });
            thread::sleep(Duration::from_millis(2));
            vcpus.threads.stop();
        });
    }
}

#[test]
fn a_vcpu_that_dies_does_not_hold_up_a_pause() {
    let program = multiprocessor(|a| {
        begin(a)?;
        let (mut again, mut others) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.inc(qword_ptr(rbx))?;
        a.test(edi, edi)?;
        a.jz(others)?;
        a.cmp(qword_ptr(rbx), 100_000)?;
        a.jb(again)?;
        a.ud2()?; // no IDT: a triple fault of the second processor
        a.set_label(&mut others)?;
        a.jmp(again)
    });
    let vcpus = Vcpus::start(&program, 2);
    for _ in 0..200 {
        vcpus.threads.pause().unwrap();
        let before = vcpus.progress(COUNTERS);
        thread::sleep(Duration::from_micros(100));
        assert_eq!(vcpus.progress(COUNTERS), before);
        vcpus.threads.resume();
        thread::sleep(Duration::from_micros(300));
    }
}

/// A terminal that takes nothing.
struct Stuck;

impl Write for Stuck {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        loop {
            thread::park();
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_console_that_nobody_reads_holds_up_no_pause() {
    let program = uniprocessor(|a| {
        let mut again = a.create_label();
        a.mov(ebx, u32::try_from(COUNTERS).unwrap_or(0))?;
        a.set_label(&mut again)?;
        report(a, COUNTERS + 4096, 4000)?;
        a.inc(qword_ptr(rbx))?;
        a.jmp(again)
    });
    let queue = OutputQueue::start(Stuck).unwrap();
    let console = Arc::new(Uart::new(Arc::clone(&queue) as Arc<dyn SerialSink>).unwrap());
    // Full already: what the guest sends finds no room.
    while queue.dropped() == 0 {
        queue.send(&[0; 4096]);
    }
    let vcpus = Vcpus::start_with(&program, 1, &[(u64::from(COM1), 8, console)]);
    let longest = cycles(&vcpus, 50);
    moves_on(&vcpus);
    assert!(queue.dropped() > 4096, "{}", queue.dropped());
    assert!(longest < Duration::from_secs(1), "{longest:?}");
}

// From here on as an operator has it.

#[test]
fn memory_stands_still_while_the_api_says_paused() {
    let machine = Machine::start(&spin(), &Setup { cpus: 2, ..Setup::default() }).running();
    for _ in 0..50 {
        machine.pause();
        let before = [machine.guest_word(COUNTERS), machine.guest_word(COUNTERS + 64)];
        thread::sleep(Duration::from_millis(2));
        assert_eq!([machine.guest_word(COUNTERS), machine.guest_word(COUNTERS + 64)], before);
        assert_eq!(machine.state(), "paused");
        machine.resume();
    }
    machine.pause();
    let ending = machine.shut_down();
    assert_eq!(ending.code, Some(i32::from(ExitStatus::Off.code())), "{ending:?}");
}

#[test]
fn a_paused_machine_stays_paused_although_the_guest_asked_for_a_reset() {
    let machine = Machine::start(
        &uniprocessor(|a| {
            a.mov(al, u32::from(b'L'))?;
            put_byte(a, COM1)?;
            reset(a)
        }),
        &Setup::default(),
    );
    let (mut paused, begin) = (0, Instant::now());
    while begin.elapsed() < Duration::from_secs(5) {
        match machine.ask("PUT", "vm.pause") {
            Some((200, _)) => {
                paused += 1;
                thread::sleep(Duration::from_millis(5));
                let lives = machine.console().len();
                thread::sleep(Duration::from_millis(10));
                assert_eq!((machine.console().len(), machine.state().as_str()), (lives, "paused"));
                machine.resume();
            }
            Some((409, _)) => {} // between two lives
            other => panic!("{other:?}: {}", machine.errors()),
        }
    }
    assert!(paused > 0 && machine.console().len() > 2, "{paused} pauses, {} lives", machine.console().len());
    let ending = machine.shut_down();
    assert_eq!(ending.code, Some(i32::from(ExitStatus::Off.code())), "{ending:?}");
}

#[test]
fn pauses_race_with_power_off() {
    let program = uniprocessor(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 20_000)?;
        a.set_label(&mut again)?;
        a.in_(al, 0x80)?;
        a.loop_(again)?;
        power_off(a)
    });
    for round in 0..8 {
        let machine = Machine::start(&program, &Setup::default());
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::SeqCst)
                        && matches!(machine.ask("GET", "vm.info"), Some((200, _)))
                    {
                        machine.ask("PUT", "vm.pause");
                        machine.ask("PUT", "vm.resume");
                    }
                });
            }
            thread::sleep(Duration::from_millis(30 * round));
            done.store(true, Ordering::SeqCst);
        });
        machine.ask("PUT", "vm.resume");
        let ending = machine.wait();
        assert_eq!(ending.code, Some(i32::from(ExitStatus::Off.code())), "{ending:?}");
    }
}
