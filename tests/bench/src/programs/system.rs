//! What several programs ask their kernel for. All of it leaves RCX and R11 undefined, as SYSCALL does, and RAX, RDI, RSI and RDX.

use iced_x86::code_asm::*;

use super::{Assembled, MARK};

/// An I/O port that no device has: above all fixed devices of a PC and below where firmware puts those of PCI. A read of it leaves
/// the guest, finds nobody and comes back: the shortest way through a VMM.
pub(super) const PORT: u32 = 0x5000;
/// Where a program's own memory begins: huge pages of the guest's.
pub(super) const MEMORY: u64 = 0x1000_0000;
/// A huge page, and a page.
pub(super) const HUGE_PAGE: u32 = 2 << 20;
pub(crate) const PAGE: u32 = 4096;

/// Digits of an address.
const DIGITS: u32 = 16;

// The numbers of system calls: arch/x86/entry/syscalls/syscall_64.tbl of Linux.
const WRITE: u32 = 1;
const OPEN: u32 = 2;
const MMAP: u32 = 9;
const PREAD64: u32 = 17;
const EXIT: u32 = 60;
const IOPERM: u32 = 173;

/// Reading and writing; private, at this very place, of no file, by huge pages, filled at once (mmap(2)).
const READ_WRITE: u32 = 1 | 2;
const HOW: u32 = 0x2 | 0x10 | 0x20 | 0x8000 | 0x4_0000;

/// Is allowed to read [`PORT`] from user space.
pub(super) fn allow_port(a: &mut CodeAssembler) -> Assembled {
    a.mov(edi, PORT)?;
    a.mov(esi, 1)?;
    a.mov(edx, 1)?;
    a.mov(eax, IOPERM)?;
    a.syscall()
}

/// Has [`MEMORY`], by `count` huge pages, and says where each is in guest physical memory: lines of [`MARK`] and an address.
pub(super) fn take_memory(a: &mut CodeAssembler, count: u64) -> Assembled {
    let (mut next, mut digit, mut decimal) = (a.create_label(), a.create_label(), a.create_label());
    let (mut path, mut over) = (a.create_label(), a.create_label());
    a.mov(rdi, MEMORY)?;
    a.mov(rsi, count * u64::from(HUGE_PAGE))?;
    a.mov(edx, READ_WRITE)?;
    a.mov(r10d, HOW)?;
    a.mov(r8, -1_i64)?;
    a.xor(r9d, r9d)?;
    a.mov(eax, MMAP)?;
    a.syscall()?;
    // Physical addresses are root's to know; Documentation/admin-guide/mm/pagemap.rst.
    a.lea(rdi, ptr(path))?;
    a.xor(esi, esi)?;
    a.mov(eax, OPEN)?;
    a.syscall()?;
    a.mov(r12d, eax)?;
    a.mov(rbx, MEMORY)?;
    a.sub(rsp, 64)?;
    a.set_label(&mut next)?;
    a.mov(edi, r12d)?;
    a.mov(rsi, rsp)?;
    a.mov(edx, 8)?;
    a.mov(r10, rbx)?;
    a.shr(r10, 12 - 3)?;
    a.mov(eax, PREAD64)?;
    a.syscall()?;
    // Bits 0 to 54 are the number of the page.
    a.mov(rax, qword_ptr(rsp))?;
    a.shl(rax, 9)?;
    a.shr(rax, 9)?;
    a.shl(rax, 12)?;
    a.mov(rcx, mark())?;
    a.mov(qword_ptr(rsp), rcx)?;
    a.lea(rdi, qword_ptr(rsp + 8))?;
    a.mov(ecx, DIGITS)?;
    a.set_label(&mut digit)?;
    a.rol(rax, 4)?;
    a.mov(edx, eax)?;
    a.and(edx, 15)?;
    a.cmp(edx, 10)?;
    a.jb(decimal)?;
    a.add(edx, u32::from(b'a' - b'0' - 10))?;
    a.set_label(&mut decimal)?;
    a.add(edx, u32::from(b'0'))?;
    a.mov(byte_ptr(rdi), dl)?;
    a.inc(rdi)?;
    a.dec(ecx)?;
    a.jnz(digit)?;
    a.mov(byte_ptr(rdi), u32::from(b'\n'))?;
    a.mov(edi, 1)?;
    a.mov(rsi, rsp)?;
    a.mov(edx, 8 + DIGITS + 1)?;
    a.mov(eax, WRITE)?;
    a.syscall()?;
    a.lea(rbx, qword_ptr(rbx + HUGE_PAGE))?;
    a.mov(rax, MEMORY + count * u64::from(HUGE_PAGE))?;
    a.cmp(rbx, rax)?;
    a.jb(next)?;
    a.jmp(over)?;
    a.set_label(&mut path)?;
    a.db(b"/proc/self/pagemap\0")?;
    a.set_label(&mut over)?;
    a.add(rsp, 64)
}

/// [`MARK`] as it is in memory.
fn mark() -> u64 {
    MARK.bytes().rev().fold(0, |word, byte| word << 8 | u64::from(byte))
}

/// Writes a line.
pub(super) fn say(a: &mut CodeAssembler, text: &str) -> Assembled {
    let (mut line, mut over) = (a.create_label(), a.create_label());
    let bytes = format!("{text}\n").into_bytes();
    a.mov(edi, 1)?;
    a.lea(rsi, ptr(line))?;
    a.mov(edx, u32::try_from(bytes.len()).unwrap_or(u32::MAX))?;
    a.mov(eax, WRITE)?;
    a.syscall()?;
    a.jmp(over)?;
    a.set_label(&mut line)?;
    a.db(&bytes)?;
    a.set_label(&mut over)?;
    a.nop()
}

/// Reads [`PORT`] once.
pub(super) fn read_port(a: &mut CodeAssembler) -> Assembled {
    a.mov(edx, PORT)?;
    a.in_(al, dx)
}

/// Ends.
pub(super) fn exit(a: &mut CodeAssembler) -> Assembled {
    a.xor(edi, edi)?;
    a.mov(eax, EXIT)?;
    a.syscall()
}
