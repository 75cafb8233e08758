//! How a guest can end, and what `lucos-vmm` says and returns then.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod tiny;

use std::time::Duration;

use iced_x86::code_asm::*;
use lucos_vmm::cli::ExitStatus;
use tiny::{COM1, Ending, Machine, Program, Setup, power_off, put_byte, reset, uniprocessor, wait_until};

fn run(program: &Program) -> Ending {
    Machine::start(program, &Setup::default()).wait()
}

fn assert_ends(ending: &Ending, status: ExitStatus, says: &[&str]) {
    assert_eq!(ending.code, Some(i32::from(status.code())), "{ending:?}");
    for piece in says {
        assert!(ending.errors.contains(piece), "{piece:?} is not in {:?}", ending.errors);
    }
}

#[test]
fn soft_off_ends_with_zero() {
    let ending = run(&uniprocessor(|a| {
        a.mov(al, u32::from(b'x'))?;
        put_byte(a, COM1)?;
        power_off(a)
    }));
    assert_ends(&ending, ExitStatus::Off, &[]);
    assert_eq!(ending.console, b"x");
}

/// Each life prints a letter and resets.
fn restarts(program: &Program) {
    let machine = Machine::start(program, &Setup::default());
    wait_until(Duration::from_secs(20), "a third life", || machine.console().len() >= 3);
    let ending = machine.shut_down();
    assert_ends(&ending, ExitStatus::Off, &[]);
    assert!(ending.console.iter().all(|&byte| byte == b'L'), "{:?}", ending.console);
}

#[test]
fn an_i8042_reset_restarts_the_guest() {
    restarts(&uniprocessor(|a| {
        a.mov(al, u32::from(b'L'))?;
        put_byte(a, COM1)?;
        reset(a)
    }));
}

#[test]
fn an_acpi_reset_restarts_the_guest() {
    restarts(&uniprocessor(|a| {
        a.mov(al, u32::from(b'L'))?;
        put_byte(a, COM1)?;
        a.mov(al, 1)?;
        put_byte(a, 0x608)
    }));
}

#[test]
fn a_reset_after_a_panic_is_a_crash() {
    let ending = run(&uniprocessor(|a| {
        a.mov(ebx, 0x472)?;
        a.mov(word_ptr(rbx), 0x1234)?;
        reset(a)
    }));
    assert_ends(&ending, ExitStatus::GuestCrash, &["panicked"]);
}

#[test]
fn a_triple_fault_is_a_crash() {
    let ending = run(&uniprocessor(CodeAssembler::ud2));
    assert_ends(&ending, ExitStatus::GuestCrash, &["triple fault"]);
}

#[test]
fn what_kvm_cannot_emulate_is_told_with_its_place() {
    // Instructions fetched from where nothing answers.
    let ending = run(&uniprocessor(|a| {
        a.mov(eax, 0xd000_0000_u32)?;
        a.jmp(rax)
    }));
    assert_ends(&ending, ExitStatus::HostFailure, &["the guest cannot go on", "vCPU 0", "0xd0000000"]);
}

#[test]
fn an_endless_stream_of_reset_requests_is_one_reset() {
    restarts(&uniprocessor(|a| {
        a.mov(al, u32::from(b'L'))?;
        put_byte(a, COM1)?;
        a.mov(al, 0xfe)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.out(0x64, al)?;
        a.jmp(again)
    }));
}
