//! Programs for a guest, entered as a Linux kernel is: 64-bit mode, paging on, the first 4 GiB mapped to
//! themselves, no interrupts and no IDT.

use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

/// Where the program lies.
const BASE: u64 = 16 << 20;
/// Free RAM for the program's data.
pub(crate) const DATA: u64 = 24 << 20;
/// A page of its own for each processor: stacks grow down from the end of it.
pub(crate) const AP_AREA: u64 = 32 << 20;
/// The console and the agent's port.
pub(crate) const COM1: u32 = 0x3f8;
pub(crate) const COM2: u32 = 0x2f8;
/// For tests on the library alone: where a program says what it found.
pub(crate) const RESULT_PORT: u16 = 0x8f0;
/// The local APIC, its ID register and interrupt command register (Intel SDM vol. 3A, 11.4.1).
const LOCAL_APIC: u32 = 0xfee0_0000;
const APIC_ID: u32 = 0x20;
const APIC_ICR: u32 = 0x300;
/// INIT and SIPI to all but the sender (Intel SDM vol. 3A, 11.6.1); the vector is the page to start at.
const INIT: u32 = 0x000c_4500;
const SIPI: u32 = 0x000c_4600 | (TRAMPOLINE >> 12);
const TRAMPOLINE: u32 = 0x8000;

/// Takes a processor from its start-up in real mode to `BASE` in 64-bit mode, with the tables that the boot
/// protocol left: page tables at 0x9000, GDT at 0x500.
#[rustfmt::skip]
const TRAMPOLINE_CODE: [u8; 0x46] = [
    0xfa,                                           // cli
    0x31, 0xc0,                                     // xor ax, ax
    0x8e, 0xd8,                                     // mov ds, ax
    0x66, 0x0f, 0x01, 0x16, 0x40, 0x80,             // lgdt [0x8040]
    0x0f, 0x20, 0xe0,                               // mov eax, cr4
    0x66, 0x83, 0xc8, 0x20,                         // or eax, PAE
    0x0f, 0x22, 0xe0,                               // mov cr4, eax
    0x66, 0xb8, 0x00, 0x90, 0x00, 0x00,             // mov eax, 0x9000
    0x0f, 0x22, 0xd8,                               // mov cr3, eax
    0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0,             // mov ecx, IA32_EFER
    0x0f, 0x32,                                     // rdmsr
    0x66, 0x0d, 0x00, 0x01, 0x00, 0x00,             // or eax, LME
    0x0f, 0x30,                                     // wrmsr
    0x66, 0xb8, 0x31, 0x00, 0x00, 0x80,             // mov eax, PG | NE | ET | PE
    0x0f, 0x22, 0xc0,                               // mov cr0, eax
    0x66, 0xea, 0x00, 0x00, 0x00, 0x01, 0x10, 0x00, // jmp 0x10:BASE
    0x90,                                           // nop
    0x1f, 0x00, 0x00, 0x05, 0x00, 0x00,             // 0x8040: limit 31, base 0x500
];

/// A program as a vmlinux file.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) vmlinux: Vec<u8>,
}

type Assembled = Result<(), IcedError>;

/// A program for the boot processor alone.
pub(crate) fn uniprocessor(body: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Program {
    build(false, body).unwrap()
}

/// A program that all processors run; each finds its number in `edi`.
pub(crate) fn multiprocessor(body: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Program {
    build(true, body).unwrap()
}

fn build(all: bool, body: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Result<Program, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut boot, mut main, mut trampoline) = (a.create_label(), a.create_label(), a.create_label());
    // BASE: where the trampoline ends.
    a.mov(ebx, LOCAL_APIC + APIC_ID)?;
    a.mov(edi, dword_ptr(rbx))?;
    a.shr(edi, 24)?;
    a.jmp(main)?;
    // Where the boot processor begins.
    a.set_label(&mut boot)?;
    if all {
        a.lea(rsi, qword_ptr(trampoline))?;
        a.mov(edi, TRAMPOLINE)?;
        a.mov(ecx, u32::try_from(TRAMPOLINE_CODE.len()).unwrap_or(0))?;
        a.cld()?;
        a.rep().movsb()?;
        a.mov(ebx, LOCAL_APIC + APIC_ICR)?;
        a.mov(dword_ptr(rbx), INIT)?;
        a.mov(dword_ptr(rbx), SIPI)?;
    }
    a.xor(edi, edi)?;
    a.set_label(&mut main)?;
    a.mov(eax, edi)?;
    a.shl(eax, 12)?;
    a.lea(rsp, qword_ptr(rax + i32::try_from(AP_AREA + 4096).unwrap_or(0)))?;
    body(&mut a)?;
    halt(&mut a)?;
    a.set_label(&mut trampoline)?;
    a.db(&TRAMPOLINE_CODE)?;
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = a.assemble_options(BASE, options)?;
    let entry = result.label_ip(&boot)?;
    Ok(Program { vmlinux: super::elf::vmlinux(BASE, entry, &result.inner.code_buffer) })
}

/// Stops for good.
pub(crate) fn halt(a: &mut CodeAssembler) -> Assembled {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.cli()?;
    a.hlt()?;
    a.jmp(again)
}

/// ACPI soft-off: `SLP_EN` and sleep type 5 to the `PM1a` control register.
pub(crate) fn power_off(a: &mut CodeAssembler) -> Assembled {
    a.mov(edx, 0x604)?;
    a.mov(eax, 0x2000 | (5 << 10))?;
    a.out(dx, ax)?;
    halt(a)
}

/// The keyboard controller's reset line.
pub(crate) fn reset(a: &mut CodeAssembler) -> Assembled {
    a.mov(al, 0xfe)?;
    a.out(0x64, al)?;
    halt(a)
}

/// Sends `al` to a port of one byte; changes `edx`.
pub(crate) fn put_byte(a: &mut CodeAssembler, port: u32) -> Assembled {
    a.mov(edx, port)?;
    a.out(dx, al)
}

/// Sends the `len` bytes at `address` to the console.
pub(crate) fn report(a: &mut CodeAssembler, address: u64, len: u32) -> Assembled {
    a.mov(edx, COM1)?;
    a.mov(rsi, address)?;
    a.mov(ecx, len)?;
    a.cld()?;
    a.rep().outsb()
}

/// Begins a sequence of random numbers in `r15`, another one for each processor.
pub(crate) fn seed_random(a: &mut CodeAssembler, seed: u64) -> Assembled {
    a.mov(r15, seed | 1)?;
    a.mov(eax, edi)?;
    a.inc(eax)?;
    a.imul_3(rax, rax, 0x1003_0507)?;
    a.xor(r15, rax)
}

/// The next one (xorshift64, Marsaglia 2003), in `rax` too; changes `r14`.
pub(crate) fn random(a: &mut CodeAssembler) -> Assembled {
    for (left, count) in [(true, 13), (false, 7), (true, 17)] {
        a.mov(r14, r15)?;
        if left {
            a.shl(r14, count)?;
        } else {
            a.shr(r14, count)?;
        }
        a.xor(r15, r14)?;
    }
    a.mov(rax, r15)
}
