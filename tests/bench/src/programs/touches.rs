//! A program that touches two pages in turns, for ever, and says nothing.

use anyhow::Result;
use iced_x86::code_asm::*;

use super::Program;
use super::system::{MEMORY, PAGE, take_memory};

/// How it touches them; the first begins where its memory does, the next a page later.
pub(crate) const TOUCHED: [&str; 2] = ["store", "locked"];

/// The program. Neither page is touched by anything else.
pub(crate) fn touches() -> Result<Program> {
    Program::new(|a| {
        let mut again = a.create_label();
        take_memory(a, 1)?;
        a.mov(rbx, MEMORY)?;
        a.set_label(&mut again)?;
        a.mov(qword_ptr(rbx), rcx)?;
        a.inc(rcx)?;
        a.lock().inc(qword_ptr(rbx + PAGE))?;
        a.jmp(again)
    })
}
