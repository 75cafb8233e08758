//! Small programs for the guest: the tiny guest has no compiler, so these are assembled here.
//!
//! They are put on a disk of their own, each in a block, from which the guest copies them.

#![cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "the names of registers and instructions are many")
)]

mod accesses;
mod passes;
mod port_reads;
mod spin;
mod system;
mod touches;

pub(crate) use accesses::{KINDS, accesses};
pub(crate) use passes::{Passes, passes};
pub(crate) use port_reads::port_reads;
pub(crate) use spin::spin;
pub(crate) use system::PAGE;
pub(crate) use touches::{TOUCHED, touches};

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use iced_x86::code_asm::CodeAssembler;
use iced_x86::{BlockEncoderOptions, IcedError};

/// Where a program is loaded; any address that is not the null page.
const BASE: u64 = 0x40_0000;
/// Sizes of an ELF header and of one program header (elf(5)).
const HEADERS: u64 = 64 + 56;
/// What one program may take on a disk, which consists of whole blocks.
const BLOCK: usize = 4096;
/// What lines of a program that say where its memory is begin with.
pub(crate) const MARK: &str = "my page ";

type Assembled = Result<(), IcedError>;

/// A static ELF program of one segment, which it cannot write to.
#[derive(Debug)]
pub(crate) struct Program(Vec<u8>);

impl Program {
    fn new(body: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Result<Self> {
        let assemble = || {
            let mut a = CodeAssembler::new(64)?;
            body(&mut a)?;
            a.assemble_options(BASE + HEADERS, BlockEncoderOptions::NONE)
        };
        let code = assemble().context("cannot assemble a program for the guest")?;
        Ok(Self(elf(&code.inner.code_buffer)))
    }
}

/// Writes a disk image with `programs`.
pub(crate) fn write_disk(path: &Path, programs: &[Program]) -> Result<()> {
    let mut image = Vec::new();
    for Program(elf) in programs {
        ensure!(elf.len() <= BLOCK, "a program of {} bytes is longer than a block", elf.len());
        image.extend_from_slice(elf);
        image.resize(image.len().next_multiple_of(BLOCK), 0);
    }
    fs::write(path, image).with_context(|| format!("cannot write {}", path.display()))
}

/// What the guest does to have the programs of its second disk as `/tmp/0`, `/tmp/1` and so on.
pub(crate) fn copy_script(programs: usize) -> String {
    let last = programs.saturating_sub(1);
    format!(
        "for p in $(seq 0 {last}); do \
         dd if=/dev/nvme1n1 of=/tmp/$p bs={BLOCK} skip=$p count=1 2> /dev/null; chmod +x /tmp/$p; done;"
    )
}

/// The guest physical address in a line that begins with [`MARK`].
pub(crate) fn page_in(line: &str) -> Result<u64> {
    let digits = line.rsplit(' ').next().unwrap_or_default();
    let page = u64::from_str_radix(digits, 16).with_context(|| format!("{line:?} has no address"))?;
    // Without the right to know them, all are 0.
    ensure!(page != 0, "the guest does not say where its memory is");
    Ok(page)
}

fn elf(code: &[u8]) -> Vec<u8> {
    let size = HEADERS + code.len() as u64;
    let mut elf = Vec::new();
    // Identification: 64 bits, little endian, version 1.
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let half = |elf: &mut Vec<u8>, value: u16| elf.extend_from_slice(&value.to_le_bytes());
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend_from_slice(&value.to_le_bytes());
    let long = |elf: &mut Vec<u8>, value: u64| elf.extend_from_slice(&value.to_le_bytes());
    half(&mut elf, 2); // an executable
    half(&mut elf, 62); // for x86-64
    word(&mut elf, 1);
    long(&mut elf, BASE + HEADERS); // entry
    long(&mut elf, 64); // program headers
    long(&mut elf, 0); // no section headers
    word(&mut elf, 0);
    // Size of this header; size and number of program headers; none of sections.
    for value in [64, 56, 1, 0, 0, 0] {
        half(&mut elf, value);
    }
    word(&mut elf, 1); // a segment to load
    word(&mut elf, 5); // readable and executable
    for value in [0, BASE, BASE, size, size, 4096] {
        long(&mut elf, value);
    }
    elf.extend_from_slice(code);
    elf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_point_at_the_code() {
        let elf = elf(&[0x90; 3]);
        assert_eq!(elf.len(), usize::try_from(HEADERS).unwrap() + 3);
        assert_eq!(elf[24..32], (BASE + HEADERS).to_le_bytes());
        assert_eq!(elf[96..104], (elf.len() as u64).to_le_bytes());
        assert_eq!(elf[120], 0x90);
    }

    #[test]
    fn every_program_fits_into_a_block() {
        let programs = [port_reads(1), accesses(1), touches(), spin(), passes()].map(Result::unwrap);
        let image = tempfile();
        write_disk(&image, &programs).unwrap();
        let len = fs::metadata(&image).unwrap().len();
        fs::remove_file(&image).unwrap();
        assert_eq!(len, (programs.len() * BLOCK) as u64);
    }

    fn tempfile() -> std::path::PathBuf {
        std::env::temp_dir().join(format!("lucos-bench-programs-{}", std::process::id()))
    }
}
