//! A program that works on memory of its own, and tells how far it is by reads of a port, which the VMM counts.

use anyhow::Result;
use iced_x86::code_asm::*;

use super::Program;
use super::system::{allow_port, read_port};

/// Between two reads: milliseconds on an emulated host, so that the reads do not matter.
const WORK: u32 = 400_000;

/// The program.
pub(crate) fn spin() -> Result<Program> {
    Program::new(|a| {
        let (mut chunk, mut again) = (a.create_label(), a.create_label());
        allow_port(a)?;
        a.set_label(&mut chunk)?;
        a.mov(ecx, WORK)?;
        a.set_label(&mut again)?;
        a.add(qword_ptr(rsp - 64), 1)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        read_port(a)?;
        a.jmp(chunk)
    })
}
