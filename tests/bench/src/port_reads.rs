//! A program for the guest that reads an I/O port many times, and nothing else.
//!
//! Every read leaves the guest, finds no device and comes back: the shortest way through a VMM. Debian's kernels
//! have no `/dev/port`, the tiny guest has no compiler, so these are the bytes of the finished program. It is put
//! on a disk of its own, from which the guest copies it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The port: above all fixed devices of a PC and below where firmware puts those of PCI.
const PORT: u16 = 0x5000;
/// Where the program is loaded; any address that is not the null page.
const BASE: u64 = 0x40_0000;
/// Sizes of an ELF header and of one program header (elf(5)).
const HEADERS: u64 = 64 + 56;
/// A disk consists of whole blocks.
const BLOCK: usize = 4096;

/// Writes a disk image whose first bytes are a program of `count` reads.
pub(crate) fn write_disk(path: &Path, count: u32) -> Result<()> {
    let mut image = program(count);
    image.resize(image.len().next_multiple_of(BLOCK), 0);
    fs::write(path, image).with_context(|| format!("cannot write {}", path.display()))
}

/// A static ELF program of one segment.
fn program(count: u32) -> Vec<u8> {
    let code = code(count);
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
    elf.extend_from_slice(&code);
    elf
}

fn code(count: u32) -> Vec<u8> {
    let [p0, p1] = PORT.to_le_bytes();
    let [c0, c1, c2, c3] = count.to_le_bytes();
    #[rustfmt::skip]
    let code = [
        0xb8, 173, 0, 0, 0,         // mov eax, 173 (ioperm)
        0xbf, p0, p1, 0, 0,         // mov edi, PORT
        0xbe, 1, 0, 0, 0,           // mov esi, 1
        0xba, 1, 0, 0, 0,           // mov edx, 1
        0x0f, 0x05,                 // syscall
        0xb9, c0, c1, c2, c3,       // mov ecx, count
        0xba, p0, p1, 0, 0,         // mov edx, PORT
        0xec,                       // again: in al, dx
        0xff, 0xc9,                 // dec ecx
        0x75, 0xfb,                 // jnz again
        0x31, 0xff,                 // xor edi, edi
        0xb8, 60, 0, 0, 0,          // mov eax, 60 (exit)
        0x0f, 0x05,                 // syscall
    ];
    code.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_point_at_the_code() {
        let elf = program(0x1234_5678);
        assert_eq!(elf.len(), usize::try_from(HEADERS).unwrap() + code(0).len());
        assert_eq!(elf[24..32], (BASE + HEADERS).to_le_bytes());
        assert_eq!(elf[96..104], (elf.len() as u64).to_le_bytes());
        assert_eq!(elf[120], 0xb8);
        // The jump leads back to the read.
        let read = elf.iter().rposition(|&byte| byte == 0xec).unwrap();
        assert_eq!(elf[read + 3..read + 5], [0x75, 0xfb]);
    }
}
