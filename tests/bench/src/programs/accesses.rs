//! A program that does one thing to a page many times, then the next, and says so in between: rounds without end.

use anyhow::Result;
use iced_x86::code_asm::*;

use super::system::{MEMORY, PAGE, allow_port, read_port, say, take_memory};
use super::{Assembled, Program};

/// What it does, in this order; before the first of each, there is a line of `at` and this name. `end` is the end of a round.
pub(crate) const KINDS: [&str; 5] = ["port_read", "store", "locked", "rep_stos", "rep_movs"];

/// A program that does each `count` times in a round.
pub(crate) fn accesses(count: u32) -> Result<Program> {
    Program::new(|a| {
        let mut round = a.create_label();
        allow_port(a)?;
        take_memory(a, 1)?;
        a.mov(rbx, MEMORY)?;
        a.set_label(&mut round)?;
        for kind in KINDS {
            say(a, &format!("at {kind}"))?;
            let mut again = a.create_label();
            a.mov(r12d, count)?;
            a.set_label(&mut again)?;
            one(a, kind)?;
            a.dec(r12d)?;
            a.jnz(again)?;
        }
        say(a, "at end")?;
        a.jmp(round)
    })
}

/// One of them, to the page that begins at RBX.
fn one(a: &mut CodeAssembler, kind: &str) -> Assembled {
    let words = PAGE / 8;
    match kind {
        "store" => a.mov(qword_ptr(rbx), r12),
        "locked" => a.lock().inc(qword_ptr(rbx)),
        "rep_stos" => {
            a.mov(rdi, rbx)?;
            a.mov(ecx, words)?;
            // What is written changes from one time to the next.
            a.mov(eax, r12d)?;
            a.rep().stosq()
        }
        "rep_movs" => {
            a.mov(rdi, rbx)?;
            a.lea(rsi, qword_ptr(rbx + PAGE))?;
            a.mov(ecx, words)?;
            a.rep().movsq()
        }
        _ => read_port(a),
    }
}
