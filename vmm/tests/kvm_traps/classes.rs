//! Every kind of instruction: memory, registers and flags as without a trap, and each write told.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lucos_vmm::boot::CODE_SELECTOR;
use lucos_vmm::config::Trapping;
use lucos_vmm::vcpu::ExitKind;
use update_server::watch::{Access, By, Kind};
use vm_memory::{Bytes, GuestAddress};

use crate::heard::{Heard, bytes};
use crate::tiny::{DATA, Program, Vcpus, uniprocessor, wait_until};
use crate::{PATIENCE, WAYS};

/// The program waits for the number of a case here, and says here that it has done it.
const GO: u64 = DATA;
const DONE: u64 = DATA + 8;
/// Registers after the case: fifteen, the stack pointer and the flags.
const RESULT: u64 = DATA + 0x100;
const RESULTS: usize = 17;
/// What is read and never watched: a page of bytes.
const SOURCE: u64 = DATA + 0x2000;
/// The two pages that are watched, with one on each side that is not.
const PAGE: u64 = DATA + 0x1_1000;
const NEXT: u64 = PAGE + 0x1000;
const AROUND: u64 = PAGE - 0x1000;
const AROUND_LEN: usize = 0x4000;
/// The end of a stack in the first of them.
const STACK: u64 = PAGE + 0x800;
/// Where there is neither RAM nor a device: reads give ones. A port whose reads count up, and none behind it.
const DEVICE: u32 = 0xd000_0000;
const PORT: u32 = 0x900;
/// Sixteen indices, apart from each other.
const SCATTER: u64 = DATA + 0x6000;
/// A stack that is not watched.
const CALM: u64 = DATA + 0x8000;

type Assembled = Result<(), IcedError>;

struct Case {
    name: &'static str,
    code: fn(&mut CodeAssembler) -> Assembled,
}

macro_rules! cases {
    ($($name:literal: |$a:ident| $code:expr;)+) => { vec![$(Case { name: $name, code: |$a| { $code; Ok(()) } }),+] };
}

/// Each begins with RDI in the middle of the watched page, RSI at the source, RSP on the watched stack, RCX 5, and fixed values
/// elsewhere.
#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let mut cases = cases! {
        "mov m8, r8": |a| a.mov(byte_ptr(rdi + 3), al)?;
        "mov m8, ah": |a| a.mov(byte_ptr(rdi), ah)?;
        "mov m16, r16": |a| a.mov(word_ptr(rdi + 2), ax)?;
        "mov m32, r32": |a| a.mov(dword_ptr(rdi + rcx * 4), r9d)?;
        "mov m64, r64": |a| a.mov(qword_ptr(rdi), rax)?;
        "mov m64, imm32": |a| a.mov(qword_ptr(rdi), -5_i32)?;
        "mov m64 by rip": |a| a.mov(qword_ptr(PAGE + 0x18), rax)?;
        "movabs": |a| { a.db(&[0x48, 0xa3])?; a.db(&PAGE.to_le_bytes())?; };
        "the same value": |a| { a.mov(qword_ptr(rdi), rax)?; a.mov(qword_ptr(rdi), rax)?; };
        "mov, not aligned": |a| a.mov(qword_ptr(rdi + 3), rax)?;
        "mov over the end": |a| a.mov(qword_ptr(NEXT - 3), rax)?;
        "mov into the next": |a| a.mov(qword_ptr(NEXT + 0x1000 - 4), rax)?;
        "mov from before": |a| a.mov(qword_ptr(PAGE - 4), rax)?;
        "movnti": |a| a.movnti(qword_ptr(rdi), rax)?;
        "movbe": |a| a.movbe(qword_ptr(rdi), rax)?;
        "xchg": |a| a.xchg(qword_ptr(rdi), rax)?;
        "lock cmpxchg, equal": |a| { a.mov(rax, qword_ptr(rdi))?; a.lock().cmpxchg(qword_ptr(rdi), rdx)?; };
        "lock cmpxchg, other": |a| a.lock().cmpxchg(qword_ptr(rdi), rdx)?;
        "lock cmpxchg8b": |a| a.lock().cmpxchg8b(qword_ptr(rdi))?;
        "lock cmpxchg16b": |a| a.lock().cmpxchg16b(xmmword_ptr(rdi))?;
        "lock xadd": |a| a.lock().xadd(qword_ptr(rdi), rax)?;
        "lock add": |a| a.lock().add(dword_ptr(rdi), 77)?;
        "lock bts": |a| a.lock().bts(qword_ptr(rdi), 9)?;
        "lock inc, not aligned": |a| a.lock().inc(qword_ptr(rdi + 5))?;
        "lock inc, over the end": |a| a.lock().inc(qword_ptr(NEXT - 3))?;
        "lock xadd, into the next": |a| a.lock().xadd(qword_ptr(NEXT + 0x1000 - 4), rax)?;
        "inc": |a| a.inc(word_ptr(rdi))?;
        "adc": |a| { a.stc()?; a.adc(qword_ptr(rdi), rax)?; };
        "sub": |a| a.sub(dword_ptr(rdi), eax)?;
        "neg, not": |a| { a.neg(qword_ptr(rdi))?; a.not(byte_ptr(rdi + 9))?; };
        "bts, far bit": |a| { a.mov(edx, 8 * 100 + 3)?; a.bts(qword_ptr(rdi), rdx)?; };
        "shl": |a| a.shl(dword_ptr(rdi), 3)?;
        "shld": |a| a.shld(qword_ptr(rdi), rax, 7)?;
        "setcc": |a| { a.cmp(eax, eax)?; a.sete(byte_ptr(rdi))?; };
        "stosb": |a| a.stosb()?;
        "stosq, backwards": |a| { a.std()?; a.stosq()?; a.cld()?; };
        "rep stosb, over the end": |a| { a.mov(rdi, NEXT - 40)?; a.mov(ecx, 90)?; a.rep().stosb()?; };
        "rep stosd, over the end, not aligned": |a| { a.mov(rdi, NEXT - 42)?; a.mov(ecx, 20)?; a.rep().stosd()?; };
        "rep stosq, backwards": |a| { a.mov(rdi, NEXT + 24)?; a.mov(ecx, 8)?; a.std()?; a.rep().stosq()?; a.cld()?; };
        "rep stosb, none": |a| { a.xor(ecx, ecx)?; a.rep().stosb()?; };
        "rep stosb, 32-bit address": |a| { a.db(&[0x67])?; a.rep().stosb()?; };
        "movsb": |a| a.movsb()?;
        "rep movsb, over the end": |a| { a.mov(rdi, NEXT - 33)?; a.mov(ecx, 100)?; a.rep().movsb()?; };
        "rep movsq, whole page": |a| { a.mov(rdi, PAGE)?; a.mov(ecx, 512)?; a.rep().movsq()?; };
        "rep movsq, backwards": |a| {
            a.mov(rdi, NEXT + 16)?; a.add(rsi, 0x100)?; a.mov(ecx, 9)?; a.std()?; a.rep().movsq()?; a.cld()?;
        };
        "rep movsb, overlapping": |a| { a.lea(rsi, ptr(rdi - 3))?; a.mov(ecx, 40)?; a.rep().movsb()?; };
        "rep movsb, within": |a| { a.lea(rsi, ptr(rdi - 0x80))?; a.mov(ecx, 40)?; a.rep().movsb()?; };
        "rep movsb, out of it": |a| { a.mov(rsi, rdi)?; a.mov(rdi, SOURCE + 0x800)?; a.mov(ecx, 40)?; a.rep().movsb()?; };
        "lodsq, cmpsb, scasb": |a| {
            a.mov(rsi, rdi)?; a.lodsq()?; a.lea(rsi, ptr(rdi + 8))?; a.mov(ecx, 6)?; a.repe().cmpsb()?; a.scasb()?;
        };
        "xlat": |a| { a.mov(rbx, rdi)?; a.mov(eax, 7)?; a.xlatb()?; };
        "movups, movaps": |a| { a.movups(xmmword_ptr(rdi + 1), xmm0)?; a.movaps(xmmword_ptr(rdi + 32), xmm1)?; };
        "movups over the end": |a| a.movups(xmmword_ptr(NEXT - 5), xmm0)?;
        "movdqa, movntdq": |a| { a.movdqa(xmmword_ptr(rdi), xmm1)?; a.movntdq(xmmword_ptr(rdi + 64), xmm0)?; };
        "movss, movq, movd": |a| {
            a.movss(dword_ptr(rdi), xmm0)?; a.movq(qword_ptr(rdi + 8), xmm1)?; a.movd(dword_ptr(rdi + 20), xmm0)?;
        };
        "maskmovdqu": |a| a.maskmovdqu(xmm0, xmm1)?;
        "fst, fnstcw": |a| { a.fld1()?; a.fst(qword_ptr(rdi))?; a.fnstcw(word_ptr(rdi + 12))?; a.fstp(tword_ptr(rdi + 16))?; };
        "fxsave": |a| a.fxsave(ptr(rdi + 0x200 - 0x100))?;
        "sgdt, sidt": |a| { a.sgdt(ptr(rdi))?; a.sidt(ptr(rdi + 16))?; };
        "push": |a| { a.push(rax)?; a.push(7)?; a.push(-9)?; a.push(0x1234_5678)?; };
        "push m": |a| a.push(qword_ptr(rsi + 8))?;
        "push what is watched": |a| a.push(qword_ptr(rdi))?;
        "pop m": |a| a.pop(qword_ptr(rdi))?;
        "pop m by rsp": |a| a.pop(qword_ptr(rsp + 8))?;
        "pushf": |a| { a.stc()?; a.pushfq()?; };
        "popf": |a| { a.mov(qword_ptr(rsp), 0x8d7 & !0x100_i32)?; a.popfq()?; };
        "call, ret": |a| {
            let (mut there, mut behind) = (a.create_label(), a.create_label());
            a.call(there)?; a.jmp(behind)?; a.set_label(&mut there)?; a.ret()?; a.set_label(&mut behind)?; a.nop()?;
        };
        "call r": |a| {
            let (mut there, mut behind) = (a.create_label(), a.create_label());
            a.lea(rax, ptr(there))?; a.call(rax)?; a.jmp(behind)?;
            a.set_label(&mut there)?; a.ret()?; a.set_label(&mut behind)?; a.xor(eax, eax)?;
        };
        "syscall": |a| { a.mov(eax, 0xc3_050f)?; a.mov(dword_ptr(rdi), eax)?; a.call(rdi)?; };
        "mov with RF": |a| {
            let mut there = a.create_label();
            a.mov(rbp, rsp)?; a.mov(eax, ss)?; a.push(rax)?; a.push(rbp)?; a.push(0x1_0002)?; a.mov(eax, cs)?; a.push(rax)?;
            a.lea(rax, ptr(there))?; a.push(rax)?; a.iretq()?; a.set_label(&mut there)?; a.mov(qword_ptr(rdi), rbx)?;
        };
        "enter, leave": |a| { a.enter(16, 0)?; a.leave()?; };
        "mov ds": |a| { a.mov(word_ptr(rdi), ds)?; a.mov(ds, word_ptr(rdi))?; };
        "prefetch, clflush": |a| { a.prefetcht0(byte_ptr(rdi))?; a.clflush(byte_ptr(rdi))?; };
    };
    cases.extend(device_cases());
    cases.extend(vector_cases());
    cases
}

/// Those that leave for a device in the middle.
#[rustfmt::skip]
fn device_cases() -> Vec<Case> {
    cases! {
        "movsq from a device": |a| { a.mov(esi, DEVICE)?; a.movsq()?; };
        "rep movsd from a device, over the end": |a| { a.mov(esi, DEVICE)?; a.mov(rdi, NEXT - 10)?; a.rep().movsd()?; };
        "movsq to a device": |a| { a.mov(rsi, rdi)?; a.mov(edi, DEVICE)?; a.movsq()?; };
        "rep movsb to a device, over the end": |a| { a.mov(rsi, NEXT - 2)?; a.mov(edi, DEVICE)?; a.rep().movsb()?; };
        "push and pop of a device": |a| { a.mov(esi, DEVICE)?; a.push(qword_ptr(rsi))?; a.pop(qword_ptr(rsi))?; };
        "cmpsq with a device": |a| { a.mov(rsi, rdi)?; a.mov(edi, DEVICE)?; a.cmpsq()?; };
        "insb": |a| { a.mov(edx, PORT)?; a.insb()?; };
        "rep insb, over the end": |a| { a.mov(edx, PORT)?; a.mov(rdi, NEXT - 3)?; a.rep().insb()?; };
        "insd, over the end": |a| { a.mov(edx, PORT)?; a.mov(rdi, NEXT - 3)?; a.insd()?; };
        "outsb, rep outsd": |a| { a.mov(edx, PORT + 8)?; a.mov(rsi, rdi)?; a.outsb()?; a.rep().outsd()?; };
    }
}

/// Those that not every processor has.
#[rustfmt::skip]
fn vector_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    if std::arch::is_x86_feature_detected!("xsave") {
        cases.extend(cases! {
            "xsave": |a| { a.mov(eax, 3)?; a.xor(edx, edx)?; a.xsave(ptr(rdi))?; };
        });
    }
    if std::arch::is_x86_feature_detected!("avx") {
        cases.extend(cases! {
            "vmovdqu, vmovaps": |a| {
                a.vmovdqu(ymm0, ymmword_ptr(rsi))?; a.vmovdqu(ymmword_ptr(rdi + 1), ymm0)?; a.vmovaps(ymmword_ptr(rdi + 64), ymm0)?;
            };
            "vmovups, vextractf128": |a| {
                a.vmovups(ymm0, ymmword_ptr(rsi))?; a.vmovups(xmmword_ptr(rdi + 3), xmm0)?; a.vextractf128(xmmword_ptr(rdi + 48), ymm0, 1)?;
            };
            "vmovdqu over the end": |a| { a.vmovdqu(ymm0, ymmword_ptr(rsi))?; a.vmovdqu(ymmword_ptr(NEXT - 7), ymm0)?; };
            "vmaskmovps over the end": |a| {
                a.vmovdqu(ymm0, ymmword_ptr(rsi + 3))?; a.vmovdqu(ymm1, ymmword_ptr(rsi + 0x61))?;
                a.vmaskmovps(ymmword_ptr(NEXT - 12), ymm1, ymm0)?;
            };
        });
    }
    if std::arch::is_x86_feature_detected!("avx2") {
        cases.extend(cases! {
            "vpmaskmovq": |a| {
                a.vmovdqu(ymm0, ymmword_ptr(rsi + 3))?; a.vmovdqu(ymm1, ymmword_ptr(rsi + 0x61))?;
                a.vpmaskmovq(ymmword_ptr(rdi), ymm1, ymm0)?;
            };
        });
    }
    if std::arch::is_x86_feature_detected!("avx512f") {
        cases.extend(cases! {
            "vmovdqu32, masked, over the end": |a| {
                a.mov(eax, 0xa5c3)?; a.kmovw(k1, eax)?; a.vmovdqu32(zmm0, zmmword_ptr(rsi))?;
                a.vmovdqu32(zmmword_ptr(NEXT - 24).k1(), zmm0)?;
            };
            "vpcompressd": |a| {
                a.mov(eax, 0x5a3c)?; a.kmovw(k1, eax)?; a.vmovdqu32(zmm0, zmmword_ptr(rsi))?;
                a.vpcompressd(zmmword_ptr(rdi).k1(), zmm0)?;
            };
            "vpscatterdd, over both pages": |a| {
                a.mov(eax, 0xffff)?; a.kmovw(k1, eax)?; a.vmovdqu32(zmm0, zmmword_ptr(rsi))?;
                a.vpternlogd(zmm1, zmm1, zmm1, 0xff)?; a.vpslld(zmm1, zmm1, 6)?; a.vpaddd(zmm1, zmm1, zmmword_ptr(SCATTER))?;
                a.mov(rdi, NEXT)?; a.vpscatterdd(dword_ptr(rdi + zmm1 * 4).k1(), zmm0)?;
            };
        });
    }
    cases
}

/// One after the other, as the host says.
fn program(cases: &[Case]) -> Program {
    uniprocessor(|a| {
        // SSE, and XSAVE with x87 and SSE where it is: CR4.OSFXSR, OSXMMEXCPT, OSXSAVE (Intel SDM vol. 3A, 2.5).
        a.mov(rax, cr4)?;
        a.or(eax, 0x600)?;
        let xsave = std::arch::is_x86_feature_detected!("xsave");
        if xsave {
            a.or(eax, 1 << 18)?;
        }
        a.mov(cr4, rax)?;
        if xsave {
            // XCR0: what the host has switched on itself.
            let avx = if std::arch::is_x86_feature_detected!("avx") { 4 } else { 0 };
            let avx512 = if std::arch::is_x86_feature_detected!("avx512f") { 0xe0 } else { 0 };
            a.xor(ecx, ecx)?;
            a.xor(edx, edx)?;
            a.mov(eax, 3 | avx | avx512)?;
            a.xsetbv()?;
        }
        // SYSCALL comes back by where it left: EFER.SCE, STAR, LSTAR, FMASK (Intel SDM vol. 3A, 6.8.8).
        let (mut kernel, mut behind) = (a.create_label(), a.create_label());
        a.jmp(behind)?;
        a.set_label(&mut kernel)?;
        a.inc(r10)?;
        a.jmp(rcx)?;
        a.set_label(&mut behind)?;
        a.mov(ecx, 0xc000_0080_u32)?;
        a.rdmsr()?;
        a.or(eax, 1)?;
        a.wrmsr()?;
        a.mov(ecx, 0xc000_0081_u32)?;
        a.xor(eax, eax)?;
        a.mov(edx, u32::from(CODE_SELECTOR))?;
        a.wrmsr()?;
        a.mov(ecx, 0xc000_0082_u32)?;
        a.lea(rax, ptr(kernel))?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 32)?;
        a.wrmsr()?;
        a.mov(ecx, 0xc000_0084_u32)?;
        a.mov(eax, 0x300)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        for (index, case) in (1..).zip(cases) {
            let (mut again, mut now) = (a.create_label(), a.create_label());
            a.set_label(&mut again)?;
            a.cmp(dword_ptr(GO), index)?;
            a.je(now)?;
            a.pause()?;
            a.jmp(again)?;
            a.set_label(&mut now)?;
            for (register, value) in [
                (rax, 0x1122_3344_5566_7788_u64),
                (rbx, 0x0102_0304_0506_0708),
                (rcx, 5),
                (rdx, 0xfedc_ba98_7654_3210),
                (rbp, 0x5a5a_0001),
                (rsi, SOURCE),
                (rdi, PAGE + 0x100),
                (r8, 8),
                (r9, 0x9999_8888_7777_6666),
                (r10, 10),
                (r11, 11),
                (r12, 12),
                (r13, 13),
                (r14, 14),
                (r15, 15),
            ] {
                a.mov(register, value)?;
            }
            a.movups(xmm0, xmmword_ptr(SOURCE + 0x21))?;
            a.movups(xmm1, xmmword_ptr(SOURCE + 0x43))?;
            a.fninit()?;
            // Flags that are the same each time, in a way that an emulator keeps.
            a.mov(rsp, CALM)?;
            a.push(2)?;
            a.popfq()?;
            a.mov(rsp, STACK)?;
            (case.code)(a)?;
            for (place, register) in
                (0..).zip([rax, rbx, rcx, rdx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, rsp])
            {
                a.mov(qword_ptr(RESULT + place * 8), register)?;
            }
            a.mov(rsp, CALM)?;
            a.pushfq()?;
            a.pop(qword_ptr(RESULT + 128))?;
            a.mov(dword_ptr(DONE), index)?;
        }
        let mut end = a.create_label();
        a.set_label(&mut end)?;
        a.pause()?;
        a.jmp(end)
    })
}

/// What a case leaves: registers, and the watched pages with their neighbours.
#[derive(PartialEq, Eq)]
struct Left {
    registers: Vec<u8>,
    memory: Vec<u8>,
}

fn pattern(at: u64) -> u8 {
    (at ^ at >> 8 ^ at >> 5).to_le_bytes()[0]
}

/// Runs all cases, `before` and `after` each of them something else.
fn run(
    vcpus: &Vcpus,
    cases: &[Case],
    mut before: impl FnMut(),
    mut after: impl FnMut(&Case, &Left),
) -> Vec<Left> {
    let memory = vcpus.vm.ram().memory();
    for (at, index) in (0..16).zip([3_u32, 9, 70, 71, 100, 140, 200, 31, 5, 66, 80, 95, 128, 150, 210, 63]) {
        memory.write_obj(index, GuestAddress(SCATTER + at * 4)).unwrap();
    }
    (1_u64..)
        .zip(cases)
        .map(|(index, case)| {
            for (from, len) in [(SOURCE, 0x1000), (AROUND, AROUND_LEN as u64)] {
                let bytes: Vec<u8> = (from..from + len).map(pattern).collect();
                memory.write_slice(&bytes, GuestAddress(from)).unwrap();
            }
            before();
            vcpus.set_word(GO, index);
            wait_until(PATIENCE, case.name, || {
                let stops = vcpus.stops();
                assert!(stops.is_empty(), "{}: {stops:?}", case.name);
                vcpus.word(DONE) == index
            });
            let left = Left {
                registers: bytes(vcpus, RESULT, RESULTS * 8),
                memory: [bytes(vcpus, AROUND, AROUND_LEN), bytes(vcpus, SOURCE, 0x1000)].concat(),
            };
            after(case, &left);
            left
        })
        .collect()
}

/// What must be told of some cases: where, how many bytes, and how, in this order.
fn accesses(name: &str) -> Option<Vec<(u64, usize, Kind)>> {
    const AT: u64 = PAGE + 0x100;
    let [read, write] = [Kind::Read, Kind::Write].map(|kind| move |at, len| (at, len, kind));
    Some(match name {
        "mov m64, r64" => vec![write(AT, 8)],
        "the same value" => vec![write(AT, 8), write(AT, 8)],
        "mov over the end" => vec![write(NEXT - 3, 3), write(NEXT, 5)],
        "inc" => vec![read(AT, 2), write(AT, 2)],
        "lock add" => vec![read(AT, 4), write(AT, 4)],
        "xlat" => vec![read(AT + 7, 1)],
        "push what is watched" => vec![read(AT, 8), write(STACK - 8, 8)],
        "rep movsb, out of it" => vec![read(AT, 40)],
        "rep movsb, within" => vec![read(AT - 0x80, 40), write(AT, 40)],
        "lodsq, cmpsb, scasb" => {
            let mut all = vec![read(AT, 8)];
            // The bytes differ at once.
            all.extend([read(AT + 8, 1), read(AT, 1), read(AT + 1, 1)]);
            all
        }
        "rep movsb to a device, over the end" => {
            vec![read(NEXT - 2, 1), read(NEXT - 1, 1), read(NEXT, 1), read(NEXT + 1, 1), read(NEXT + 2, 1)]
        }
        _ => return None,
    })
}

fn compare(access: Access, trapping: Trapping) {
    let cases = cases();
    let program = program(&cases);
    let untrapped = run(&Vcpus::start(&program, 1), &cases, || {}, |_, _| {});
    let vcpus = Vcpus::start_as(&program, 1, &[], trapping);
    let heard = Heard::of(&vcpus);
    let pages = [PAGE, NEXT];
    let mut expected = untrapped.iter();
    let after = |case: &Case, left: &Left| {
        heard.end(&vcpus, &pages);
        let told = heard.take();
        let expected = expected.next().unwrap();
        let name = case.name;
        let words = |bytes: &[u8]| -> Vec<u64> {
            bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
        };
        assert!(
            left.registers == expected.registers,
            "{name}, {access:?}, {trapping}: registers {:x?}, untrapped {:x?}",
            words(&left.registers),
            words(&expected.registers)
        );
        let differs = (0..left.memory.len()).find(|&at| left.memory[at] != expected.memory[at]);
        assert_eq!(differs, None, "{name}, {access:?}, {trapping}: memory; told {told:x?}");
        for page in pages {
            assert!(
                heard.image(page) == bytes(&vcpus, page, 4096),
                "{name}: what was told is not what is there"
            );
        }
        let changed = (PAGE..NEXT + 0x1000)
            .any(|at| expected.memory[usize::try_from(at - AROUND).unwrap()] != pattern(at));
        let writes = told.iter().filter(|told| told.kind == Kind::Write).count();
        assert!(writes > 0 || !changed, "{name}: nothing was told");
        assert!(told.iter().all(|told| matches!(told.by, By::Vcpu { id: 0, .. })), "{name}: {told:x?}");
        if let Some(accesses) = accesses(name) {
            let expected =
                accesses.iter().filter(|(_, _, kind)| access == Access::All || *kind == Kind::Write);
            let told = told.iter().map(|told| (told.at, told.after.len(), told.kind));
            assert_eq!(told.collect::<Vec<_>>(), expected.copied().collect::<Vec<_>>(), "{name}, {trapping}");
        }
    };
    run(&vcpus, &cases, || heard.watch(&vcpus, &pages, access), after);
    let tally = vcpus.threads.traps().tally();
    assert!(tally.in_place > 0 && tally.stepped > 0 && tally.unseen == 0 && tally.lost == 0, "{tally:?}");
    assert_eq!(tally.again, 0, "{tally:?}");
    // Each step left the guest at least once behind its instruction.
    let left = vcpus.threads.counters()[0].get(ExitKind::Stepped);
    assert!(left >= tally.stepped, "{left} exits of steps: {tally:?}");
}

#[test]
fn writes_are_exact() {
    for way in WAYS {
        compare(Access::Writes, way);
    }
}

#[test]
fn all_accesses_are_exact() {
    for way in WAYS {
        compare(Access::All, way);
    }
}
