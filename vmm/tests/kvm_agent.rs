//! Hypercalls from real vCPUs: every call, good and wrong, from both rings and from modes that cannot call; while page
//! tables change, and in a flood.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod tiny;

use std::thread;
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lucos_abi::{
    CALL_BYTES, Call, ErrorCode, Hello, PORT, Place, Report, Request, UPLOAD_BYTES, answer, padded,
};
use lucos_vmm::agent::{Answer, Order, Outcome};
use lucos_vmm::memory::GuestRam;
use lucos_vmm::sys::kvm::{GuestVm, Views};
use lucos_vmm::vcpu::{ExitKind, GuestStop, VmExit};
use tiny::{AP_AREA, DATA, Program, RESULT_PORT, Vcpus, halt, multiprocessor, uniprocessor, wait_until};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

/// What each processor is to do: how often, then `rbx`, `rcx`, `rsi`, `rdi`; and what came of it: `rax` of the last call,
/// how many calls were good, how many were to be tried again, and the four registers as they were afterwards.
const SLOTS: u64 = DATA;
const SLOT: u64 = 128;
/// Buffers that programs may use, the largest that there are.
const BUFFER: u64 = DATA + 0x4_0000;
/// Segments for all rings and modes.
const GDT: u64 = DATA + 0x8000;
const GDT_POINTER: u64 = DATA + 0x8100;
/// The boot protocol's tables of the first GiB (`vmm/src/boot/layout.rs`), and what they map 2 MiB of.
const BOOT_TABLES: [u64; 3] = [0x9000, 0xa000, 0xb000];
const LARGE_PAGE: u64 = 2 << 20;
/// Tables of our own, for 512 GiB from here on, and two pages that they map one after the other.
const WINDOW: u64 = 1 << 39;
const TABLES: [u64; 3] = [40 << 20, (40 << 20) + 0x1000, (40 << 20) + 0x2000];
const PLACES: [u64; 2] = [44 << 20, 48 << 20];
/// Rights of pages (Intel SDM vol. 3A, 5.5.4).
const KERNELS: u64 = 0b011;
const USERS: u64 = 0b111;

const LIMIT: Duration = Duration::from_mins(1);

type Assembled = Result<(), IcedError>;

/// Does what the slot of processor `edi` says, again and again.
fn obey(a: &mut CodeAssembler) -> Assembled {
    a.mov(r8d, edi)?;
    a.shl(r8d, 7)?;
    a.add(r8d, i32::try_from(SLOTS).unwrap_or(0))?;
    let (mut wait, mut call, mut bad, mut next) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut wait)?;
    a.pause()?;
    a.mov(r9, qword_ptr(r8))?;
    a.test(r9, r9)?;
    a.jz(wait)?;
    a.xor(r10d, r10d)?;
    a.xor(r11d, r11d)?;
    a.set_label(&mut call)?;
    a.mov(rbx, qword_ptr(r8 + 8))?;
    a.mov(rcx, qword_ptr(r8 + 16))?;
    a.mov(rsi, qword_ptr(r8 + 24))?;
    a.mov(rdi, qword_ptr(r8 + 32))?;
    a.mov(edx, u32::from(PORT))?;
    a.in_(eax, dx)?;
    a.test(eax, eax)?;
    a.js(bad)?;
    a.inc(r10)?;
    a.jmp(next)?;
    a.set_label(&mut bad)?;
    a.cmp(eax, -i32::try_from(ErrorCode::Again as u32).unwrap_or(0))?;
    a.sete(dl)?;
    a.movzx(edx, dl)?;
    a.add(r11, rdx)?;
    a.set_label(&mut next)?;
    a.dec(r9)?;
    a.jnz(call)?;
    for (offset, register) in [(40, rax), (48, r10), (56, r11), (64, rbx), (72, rcx), (80, rsi), (88, rdi)] {
        a.mov(qword_ptr(r8 + offset), register)?;
    }
    a.mov(qword_ptr(r8), 0)?;
    a.jmp(wait)
}

fn store(a: &mut CodeAssembler, at: u64, word: u64) -> Assembled {
    a.mov(rbx, at)?;
    a.mov(rax, word)?;
    a.mov(qword_ptr(rbx), rax)
}

/// Loads segments: 0x10 and 0x18 as they were, 0x20 and 0x28 for data and code of ring 3, 0x30 for 32-bit code.
fn load_segments(a: &mut CodeAssembler) -> Assembled {
    let segments = [
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_9b00_0000_ffff,
    ];
    for (index, segment) in (2..).zip(segments) {
        store(a, GDT + index * 8, segment)?;
    }
    store(a, GDT_POINTER, GDT << 16 | 0x37)?;
    store(a, GDT_POINTER + 8, 0)?;
    a.lgdt(ptr(rbx - 8))
}

/// What a processor found.
#[derive(Debug)]
struct Done {
    answer: Result<u32, ErrorCode>,
    good: u64,
    again: u64,
}

/// Has processor `id` make one call.
fn call(vcpus: &Vcpus, id: u64, registers: [u64; 4]) -> Result<u32, ErrorCode> {
    begin(vcpus, id, registers, 1);
    end(vcpus, id, registers).answer
}

fn begin(vcpus: &Vcpus, id: u64, registers: [u64; 4], times: u64) {
    let slot = SLOTS + id * SLOT;
    for (register, at) in registers.into_iter().zip((slot + 8..).step_by(8)) {
        vcpus.set_word(at, register);
    }
    vcpus.set_word(slot, times);
}

fn end(vcpus: &Vcpus, id: u64, registers: [u64; 4]) -> Done {
    let slot = SLOTS + id * SLOT;
    let begin = Instant::now();
    while vcpus.word(slot) != 0 {
        assert!(begin.elapsed() < LIMIT, "processor {id} does not answer");
        thread::sleep(Duration::from_micros(50));
    }
    vcpus.check();
    let after = [64, 72, 80, 88].map(|offset| vcpus.word(slot + offset));
    assert_eq!(after, registers, "a call changes no register but eax");
    let [value, good, again] = [40, 48, 56].map(|offset| vcpus.word(slot + offset));
    Done { answer: answer(u32::try_from(value).unwrap()), good, again }
}

/// Registers of a call with a good version.
fn registers(call: Call, at: u64, len: u64, rest: u64) -> [u64; 4] {
    [call.register(), at, len, rest]
}

fn put(vcpus: &Vcpus, at: u64, bytes: &[u8]) {
    vcpus.vm.ram().memory().write_slice(bytes, GuestAddress(at)).unwrap();
}

fn get(vcpus: &Vcpus, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    vcpus.vm.ram().memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn hello() -> Hello {
    Hello {
        pid: 1.into(),
        lockdown: 0.into(),
        sig_enforce: 0.into(),
        modules_disabled: 0.into(),
        taint: 0.into(),
        version: padded("0"),
        release: padded("none"),
    }
}

fn say_hello(vcpus: &Vcpus, id: u64) {
    put(vcpus, BUFFER, hello().as_bytes());
    assert_eq!(call(vcpus, id, registers(Call::Hello, BUFFER, 120, 0)), Ok(0));
}

fn place(number: u32, offset: u64) -> u64 {
    Place { number, offset }.register()
}

/// Everything that an agent does, as processor 0.
fn whole_conversation(vcpus: &Vcpus) {
    say_hello(vcpus, 0);
    assert_eq!(vcpus.link.hello(), Some(hello()));
    let module: Vec<u8> = (0..150_001_u32).map(|index| (index * 7).to_le_bytes()[1]).collect();
    let id = vcpus.link.ask(Order::Load { name: "fix".into(), module: module.clone().into() }).unwrap();
    assert_eq!(call(vcpus, 0, registers(Call::Next, BUFFER + 0xfff, 72, 0)), Ok(72));
    let request = Request::read_from_bytes(&get(vcpus, BUFFER + 0xfff, 72)).unwrap();
    assert_eq!((request.id.get(), request.bytes.get()), (id, 150_001));
    let mut copy = Vec::new();
    while copy.len() < module.len() {
        let from = place(id, copy.len() as u64);
        let count = call(vcpus, 0, registers(Call::Read, BUFFER, CALL_BYTES as u64, from)).unwrap();
        copy.extend(get(vcpus, BUFFER, count as usize));
    }
    assert!(copy == module);
    let report =
        Report { id: id.into(), errno: 16.into(), taint: 1.into(), text_bytes: 0.into(), reserved: 0.into() };
    put(vcpus, BUFFER, report.as_bytes());
    let changes = vcpus.changes.count();
    assert_eq!(call(vcpus, 0, registers(Call::Report, BUFFER, 24, 0)), Ok(0));
    assert_eq!(vcpus.changes.count(), changes + 1);
    assert_eq!(vcpus.link.take_answers(), [Answer { id, outcome: Outcome::Failed { errno: 16, taint: 1 } }]);
    let replayed = call(vcpus, 0, registers(Call::Report, BUFFER, 24, 0));
    assert_eq!(replayed, Err(ErrorCode::UnknownRequest));

    put(vcpus, BUFFER, b"lucosfix.lup");
    assert_eq!(call(vcpus, 0, registers(Call::Write, BUFFER, 5, place(3, 0))), Err(ErrorCode::Denied));
    vcpus.link.allow_submissions(true);
    assert_eq!(call(vcpus, 0, registers(Call::Write, BUFFER, 5, place(3, 0))), Ok(5));
    let submit = registers(Call::Submit, BUFFER + 5, 7, place(3, 5));
    assert_eq!(call(vcpus, 0, submit), Ok(1));
    assert_eq!(call(vcpus, 0, submit), Err(ErrorCode::BadOffset));
    let taken = vcpus.link.take_submission().unwrap();
    assert_eq!((&taken.bytes[..], &taken.name[..]), (&b"lucos"[..], "fix.lup"));
    vcpus.link.set_status("nothing applied");
    assert_eq!(call(vcpus, 0, registers(Call::Status, BUFFER, 4096, 0)), Ok(15));
    assert_eq!(get(vcpus, BUFFER, 15), b"nothing applied");
}

/// What is wrong in both rings, and what the answer is.
fn every_field_wrong(vcpus: &Vcpus) {
    say_hello(vcpus, 0);
    vcpus.link.allow_submissions(true);
    vcpus.link.ask(Order::Unload { name: "fix".into() }).unwrap();
    let next = registers(Call::Next, BUFFER, 72, 0);
    let with = |index: usize, value: u64| {
        let mut registers = next;
        registers[index] = value;
        registers
    };
    for (registers, code) in [
        (with(0, 0), ErrorCode::BadVersion),
        (with(0, u64::MAX), ErrorCode::BadVersion),
        (with(0, 1 << 32), ErrorCode::BadCall),
        (with(0, 1 << 32 | 0xffff_ffff), ErrorCode::BadCall),
        (with(1, u64::MAX), ErrorCode::BadAddress),
        (with(1, 1 << 47), ErrorCode::BadAddress),
        (with(1, 0xd000_0000), ErrorCode::BadAddress), // no RAM is there
        (with(1, WINDOW - 1), ErrorCode::Again),
        (with(2, 0), ErrorCode::BadLength),
        (with(2, u64::MAX), ErrorCode::BadLength),
        (with(3, u64::MAX), ErrorCode::BadArgument),
        (registers(Call::Hello, BUFFER, 119, 0), ErrorCode::BadLength),
        (registers(Call::Read, BUFFER, 8, u64::MAX), ErrorCode::UnknownRequest),
        (registers(Call::Report, BUFFER, 120, 0), ErrorCode::BadArgument),
        (registers(Call::Write, BUFFER, 8, u64::MAX), ErrorCode::BadOffset),
        (registers(Call::Submit, BUFFER, 8, u64::MAX), ErrorCode::BadArgument),
    ] {
        assert_eq!(call(vcpus, 0, registers), Err(code), "{registers:x?}");
    }
    assert_eq!(call(vcpus, 0, next), Ok(72), "the request that could not be told is still there");
}

#[test]
fn ring_0_makes_every_call() {
    let vcpus = Vcpus::start(&uniprocessor(obey), 1);
    whole_conversation(&vcpus);
    every_field_wrong(&vcpus);
}

/// Flags of a program that may use every port: IOPL 3; and of one that may use none.
const EVERY_PORT: i32 = 0x3002;
const NO_PORT: i32 = 2;

/// Enters ring 3 with these flags, which may use its code and its data, and obeys there.
fn ring_3(a: &mut CodeAssembler, flags: i32) -> Assembled {
    for (table, entries) in BOOT_TABLES.into_iter().zip([1, 1, 0]) {
        for entry in 0..entries {
            a.mov(rbx, table + entry * 8)?;
            a.or(qword_ptr(rbx), i32::try_from(USERS).unwrap_or(0))?;
        }
    }
    // The program, and its data; everything else stays the kernel's.
    for page in [16 << 20, DATA] {
        a.mov(rbx, BOOT_TABLES[2] + page / LARGE_PAGE * 8)?;
        a.or(qword_ptr(rbx), i32::try_from(USERS).unwrap_or(0))?;
    }
    a.mov(rax, cr3)?;
    a.mov(cr3, rax)?;
    load_segments(a)?;
    let mut user = a.create_label();
    a.lea(rax, qword_ptr(user))?;
    a.push(0x20 | 3)?;
    a.push(rsp)?;
    a.push(flags)?;
    a.push(0x28 | 3)?;
    a.push(rax)?;
    a.iretq()?;
    a.set_label(&mut user)?;
    obey(a)
}

#[test]
fn ring_3_may_name_its_own_memory_only() {
    let vcpus = Vcpus::start(&uniprocessor(|a| ring_3(a, EVERY_PORT)), 1);
    whole_conversation(&vcpus);
    every_field_wrong(&vcpus);
    for (at, code) in [
        (AP_AREA, ErrorCode::BadAddress),
        (DATA + LARGE_PAGE - 8, ErrorCode::BadAddress),
        (DATA - 8, ErrorCode::BadAddress),
        (0xffff_8000_0000_0000, ErrorCode::BadAddress),
        (0xffff_ffff_8000_0000, ErrorCode::BadAddress),
    ] {
        for call_number in [Call::Hello, Call::Report, Call::Submit] {
            let registers = registers(call_number, at, 120, 0);
            assert_eq!(call(&vcpus, 0, registers), Err(code), "{call_number:?} at {at:#x}");
        }
    }
}

#[test]
fn ring_3_without_permission_reaches_nobody() {
    let vcpus = Vcpus::start(&uniprocessor(|a| ring_3(a, NO_PORT)), 1);
    begin(&vcpus, 0, registers(Call::Hello, BUFFER, 120, 0), 1);
    // Its processor refuses, and there is nobody who would take that exception.
    wait_until(LIMIT, "the end of the program", || !vcpus.stops().is_empty());
    assert_eq!(vcpus.stops(), [(0, GuestStop::TripleFault)]);
    assert_eq!(vcpus.threads.counters()[0].get(ExitKind::Hypercall), 0);
    assert_eq!(vcpus.link.hello(), None);
}

#[test]
fn code_of_32_bits_cannot_call() {
    /// ```text
    /// mov edx, 0x4c54
    /// mov ebx, 2
    /// in  eax, dx
    /// mov edx, 0x8f0
    /// neg eax
    /// mov [DATA], eax
    /// jmp $
    /// ```
    const CODE: [u8; 25] = [
        0xba, 0x54, 0x4c, 0, 0, 0xbb, 2, 0, 0, 0, 0xed, 0xba, 0xf0, 0x08, 0, 0, 0xf7, 0xd8, 0xa3, 0, 0, 0x80,
        0x01, 0xeb, 0xfe,
    ];
    let program = uniprocessor(|a| {
        load_segments(a)?;
        let mut code = a.create_label();
        a.lea(rax, qword_ptr(code))?;
        a.push(0x30)?;
        a.push(rax)?;
        a.db(&[0x48, 0xcb])?; // retfq
        a.set_label(&mut code)?;
        a.db(&CODE)
    });
    assert_eq!(u32::from(RESULT_PORT), 0x8f0);
    assert_eq!(DATA, 0x0180_0000);
    let vcpus = Vcpus::start(&program, 1);
    wait_until(LIMIT, "an answer", || vcpus.word(DATA) & 0xffff_ffff != 0);
    assert_eq!(vcpus.word(DATA) & 0xffff_ffff, u64::from(ErrorCode::BadMode as u32));
    vcpus.check();
}

#[test]
fn only_a_read_of_four_bytes_is_a_call() {
    /// ```text
    /// 1000: in  al, dx
    /// 1001: in  ax, dx
    /// 1002: out dx, ax
    /// 1003: in  eax, dx
    /// ```
    const CODE: [u8; 5] = [0xec, 0xed, 0xef, 0x66, 0xed];
    tiny::need_kvm();
    let vm = GuestVm::new(&kvm_ioctls::Kvm::new().unwrap(), GuestRam::new(2 << 20).unwrap(), Views::First)
        .unwrap();
    let mut vcpu = tiny::real_mode(&vm, &CODE, PORT);
    let mut vcpu = vcpu.attach();
    assert!(matches!(vcpu.run().unwrap(), VmExit::PortIn { port: PORT, size: 1, .. }));
    assert!(matches!(vcpu.run().unwrap(), VmExit::PortIn { port: PORT, size: 2, .. }));
    assert!(matches!(vcpu.run().unwrap(), VmExit::PortOut { port: PORT, size: 2, .. }));
    assert!(matches!(vcpu.run().unwrap(), VmExit::Hypercall));
    vcpu.answer(0xffff_fffc);
    assert!(matches!(vcpu.drain().unwrap(), VmExit::Interrupted));
    assert_eq!(vcpu.fd().get_regs().unwrap().rax, 0xffff_fffc);
}

/// Two processors obey; the third moves the pages of [`WINDOW`], and takes them away for a moment.
fn moving_window() -> Program {
    multiprocessor(|a| {
        let (mut caller, mut mover, mut again) = (a.create_label(), a.create_label(), a.create_label());
        a.cmp(edi, 2)?;
        a.jb(caller)?;
        a.je(mover)?;
        halt(a)?;
        a.set_label(&mut mover)?;
        store(a, TABLES[0], TABLES[1] | KERNELS)?;
        store(a, TABLES[1], TABLES[2] | KERNELS)?;
        for page in 0..16 {
            store(a, TABLES[2] + page * 8, (PLACES[0] + page * 4096) | KERNELS)?;
        }
        // Last, so that the window is whole once it is there.
        store(a, BOOT_TABLES[0] + 8, TABLES[0] | KERNELS)?;
        a.mov(rbx, TABLES[2])?;
        a.set_label(&mut again)?;
        // Each state lasts, the one without a page for less long: a host with one processor stops at any of them, and the
        // callers have to find it.
        for page in [3, 7, 15] {
            let entry = |place: u64| (place + page * 4096) | KERNELS;
            for (entry, turns) in [(entry(PLACES[1]), 300), (0, 100), (entry(PLACES[0]), 300)] {
                a.mov(rax, entry)?;
                a.mov(qword_ptr(rbx + page * 8), rax)?;
                a.mov(ecx, turns)?;
                let mut rest = a.create_label();
                a.set_label(&mut rest)?;
                a.pause()?;
                a.loop_(rest)?;
            }
        }
        a.jmp(again)?;
        a.set_label(&mut caller)?;
        obey(a)
    })
}

#[test]
fn buffers_that_another_processor_moves_are_found_or_to_be_tried_again() {
    const TIMES: u64 = 4000;
    let vcpus = Vcpus::start(&moving_window(), 3);
    wait_until(LIMIT, "the window", || vcpus.word(BOOT_TABLES[0] + 8) != 0);
    // Around the two places nothing may change.
    let around: Vec<u64> = PLACES.iter().flat_map(|place| [place - 4096, place + (16 << 12)]).collect();
    for &at in &around {
        put(&vcpus, at, &[0x5a; 4096]);
    }
    say_hello(&vcpus, 0);
    let module: Vec<u8> = (0..CALL_BYTES).map(|index| index.to_le_bytes()[1] | 1).collect();
    let id = vcpus.link.ask(Order::Load { name: "fix".into(), module: module.clone().into() }).unwrap();
    assert_eq!(call(&vcpus, 0, registers(Call::Next, BUFFER, 72, 0)), Ok(72));
    vcpus.link.allow_submissions(true);
    let read = registers(Call::Read, WINDOW, CALL_BYTES as u64, place(id, 0));
    let write = registers(Call::Write, WINDOW, CALL_BYTES as u64, place(1, 0));
    let (mut good, mut again) = ([0; 2], [0; 2]);
    let begun = Instant::now();
    while begun.elapsed() < LIMIT && good.iter().chain(&again).any(|&count| count < 100) {
        begin(&vcpus, 0, read, TIMES);
        begin(&vcpus, 1, write, TIMES);
        for (id, registers) in [(0, read), (1, write)] {
            let done = end(&vcpus, id, registers);
            assert_eq!(done.good + done.again, TIMES, "{done:?}");
            let index = usize::try_from(id).unwrap();
            good[index] += done.good;
            again[index] += done.again;
        }
    }
    eprintln!("good {good:?}, again {again:?}");
    assert!(good.iter().chain(&again).all(|&count| count > 0), "good {good:?}, again {again:?}");
    for at in around {
        assert!(get(&vcpus, at, 4096).iter().all(|&byte| byte == 0x5a), "{at:#x} was written to");
    }
    // Whatever page it was, each holds its part of the module or what was there before.
    for place in PLACES {
        for (page, expected) in (0..).zip(module.chunks(4096)) {
            let found = get(&vcpus, place + (page << 12), 4096);
            assert!(found == expected || found.iter().all(|&byte| byte == 0), "page {page} of {place:#x}");
        }
    }
}

#[test]
fn a_flood_of_calls_holds_up_no_pause_and_fills_no_memory() {
    let vcpus = Vcpus::start(&multiprocessor(obey), 2);
    vcpus.link.allow_submissions(true);
    say_hello(&vcpus, 0);
    let flood = [
        registers(Call::Write, BUFFER, CALL_BYTES as u64, place(1, 0)),
        registers(Call::Hello, BUFFER + 0x2_0000, 120, 0),
    ];
    put(&vcpus, BUFFER + 0x2_0000, hello().as_bytes());
    for (id, registers) in (0..).zip(flood) {
        begin(&vcpus, id, registers, u64::MAX);
    }
    let mut longest = Duration::ZERO;
    for _ in 0..100 {
        let begin = Instant::now();
        vcpus.threads.pause().unwrap();
        longest = longest.max(begin.elapsed());
        let changes = vcpus.changes.count();
        thread::sleep(Duration::from_millis(1));
        assert_eq!(vcpus.changes.count(), changes, "a call was served in a pause");
        vcpus.threads.resume();
        thread::sleep(Duration::from_millis(5));
    }
    vcpus.check();
    assert!(vcpus.changes.count() > 100, "{} calls", vcpus.changes.count());
    eprintln!("{} hellos, longest pause {longest:?}", vcpus.changes.count());
}

#[test]
fn an_upload_ends_at_its_limit() {
    let vcpus = Vcpus::start(&uniprocessor(obey), 1);
    vcpus.link.allow_submissions(true);
    let mut offset = 0;
    let refused = loop {
        match call(&vcpus, 0, registers(Call::Write, BUFFER, CALL_BYTES as u64, place(1, offset))) {
            Ok(count) => offset += u64::from(count),
            Err(code) => break code,
        }
    };
    assert_eq!((offset, refused), (UPLOAD_BYTES, ErrorCode::TooLarge));
    put(&vcpus, BUFFER, b"large.lup");
    assert_eq!(call(&vcpus, 0, registers(Call::Submit, BUFFER, 9, place(1, offset))), Ok(1));
    let begun = registers(Call::Write, BUFFER, 1, place(2, 0));
    assert_eq!(call(&vcpus, 0, begun), Err(ErrorCode::Busy));
    assert_eq!(vcpus.link.take_submission().unwrap().bytes.len() as u64, UPLOAD_BYTES);
    assert_eq!(call(&vcpus, 0, begun), Ok(1));
}
