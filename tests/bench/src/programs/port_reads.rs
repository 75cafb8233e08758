//! A program that reads an I/O port many times, and nothing else. Debian's kernels have no `/dev/port`.

use anyhow::Result;
use iced_x86::code_asm::*;

use super::Program;
use super::system::{PORT, allow_port, exit};

/// A program of `count` reads.
pub(crate) fn port_reads(count: u32) -> Result<Program> {
    Program::new(|a| {
        let mut again = a.create_label();
        allow_port(a)?;
        a.mov(ecx, count)?;
        a.mov(edx, PORT)?;
        a.set_label(&mut again)?;
        a.in_(al, dx)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        exit(a)
    })
}
