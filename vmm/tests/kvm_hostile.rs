//! Guests that do everything wrong. Whatever they do, the VMM does not panic or hang, answers its API, and
//! leaves the disk image alone. A guest may well destroy itself: those ends are told as what they are.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod tiny;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use tiny::{
    COM1, DATA, Ending, Machine, Program, Setup, multiprocessor, put_byte, random, reset, seed_random,
    uniprocessor, wait_until,
};

type Assembled = Result<(), IcedError>;

/// How long each test torments the VMM, and how long one of its machines lives at most.
const TIME: Duration = Duration::from_secs(8);
const LIFE: Duration = Duration::from_secs(2);
/// How long the API may take to answer meanwhile.
const ANSWER: Duration = Duration::from_secs(5);
/// Where the VMM puts the first BAR, and where several more follow.
const BARS: u32 = 0xc000_0000;
const BARS_MASK: i32 = 0x1_ffff;
const DISK_SIZE: usize = 4 << 20;

/// Runs machines with that program until the time is over, pausing and asking all along.
fn torment(test: &str, setup: &Setup<'_>, program: impl Fn(u64) -> Program) {
    let (seed, begin) = (tiny::seed(test), Instant::now());
    let (mut lives, mut pauses) = (0_u64, 0);
    let mut ends = std::collections::BTreeMap::<_, u32>::new();
    while begin.elapsed() < TIME {
        let machine = Machine::start(&program(seed.wrapping_add(lives)), setup);
        let born = Instant::now();
        let mut alive = true;
        while alive && born.elapsed() < LIFE {
            for (method, verb) in [("PUT", "vm.pause"), ("GET", "vm.counters"), ("PUT", "vm.resume")] {
                let asked = Instant::now();
                let answer = machine.ask(method, verb);
                assert!(asked.elapsed() < ANSWER, "{verb} took {:?}", asked.elapsed());
                match answer {
                    Some((200, _)) => pauses += u32::from(verb == "vm.pause"),
                    Some((409, _)) => {}
                    None => alive = false,
                    other => panic!("{other:?}: {}", machine.errors()),
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let ending = if alive { machine.shut_down_if_there() } else { machine.wait() };
        assert_sound(&ending);
        *ends.entry(ending.code).or_default() += 1;
        lives += 1;
    }
    eprintln!("{test}: {lives} machines, {pauses} pauses, ends {ends:?}");
}

/// An end that is the guest's own doing, or the operator's.
fn assert_sound(ending: &Ending) {
    let errors = &ending.errors;
    assert!(!errors.contains("panicked at") && !errors.contains("this is a bug"), "{errors}");
    let told = errors.contains("the guest cannot go on") || errors.contains("SMM");
    match ending.code {
        Some(0 | 3) => {}
        Some(1) => assert!(told, "{errors}"),
        other => panic!("ended with {other:?}: {errors}"),
    }
    assert!(errors.len() < 64 << 10, "the guest flooded the log with {} bytes", errors.len());
}

/// Sends configuration address `eax`; leaves `edx` at the data port.
fn select(a: &mut CodeAssembler) -> Assembled {
    a.mov(edx, 0xcf8)?;
    a.out(dx, eax)?;
    a.mov(edx, 0xcfc)
}

/// Switches on memory decoding and bus mastering of PCI device `number`.
fn enable(a: &mut CodeAssembler, number: u32) -> Assembled {
    a.mov(eax, 0x8000_0004 | (number << 11))?;
    select(a)?;
    a.mov(eax, 6)?;
    a.out(dx, ax)
}

/// Writes something to some register of one of the first four PCI devices.
fn write_config(a: &mut CodeAssembler) -> Assembled {
    // Where BARs do harm: RAM, each other, both ends of the address space, I/O APIC and local APIC.
    const PLACES: [u32; 8] =
        [0xc000_0000, 0xc000_4000, 0xc000_8000, 0, 0x0100_0000, 0xffff_ffff, 0xfec0_0000, 0xfee0_0000];
    let (mut raw, mut places, mut write) = (a.create_label(), a.create_label(), a.create_label());
    let (mut word, mut done) = (a.create_label(), a.create_label());
    random(a)?;
    a.and(eax, 0x18fc)?;
    a.or(eax, 0x8000_0000_u32)?;
    select(a)?;
    random(a)?;
    a.bt(rax, 40)?;
    a.jc(raw)?;
    a.and(eax, 7)?;
    a.lea(rsi, qword_ptr(places))?;
    a.mov(eax, dword_ptr(rsi + rax * 4))?;
    a.jmp(write)?;
    a.set_label(&mut places)?;
    a.dd(&PLACES)?;
    a.set_label(&mut raw)?;
    a.bt(rax, 41)?;
    a.jc(write)?;
    a.and(eax, 7)?; // the command register's bits
    a.set_label(&mut write)?;
    a.bt(r15, 50)?;
    a.jc(word)?;
    a.out(dx, eax)?;
    a.in_(eax, dx)?;
    a.jmp(done)?;
    a.set_label(&mut word)?;
    a.out(dx, ax)?;
    a.in_(al, dx)?;
    a.set_label(&mut done)?;
    a.nop()
}

/// Reads or writes something where the BARs are, 1 to 8 bytes at any address.
fn touch_bars(a: &mut CodeAssembler) -> Assembled {
    let mut widths: Vec<CodeLabel> = (0..8).map(|_| a.create_label()).collect();
    let mut done = a.create_label();
    random(a)?;
    a.mov(ebx, eax)?;
    a.and(ebx, BARS_MASK)?;
    a.add(ebx, i32::from_le_bytes(BARS.to_le_bytes()))?;
    a.mov(r8, rax)?;
    a.shr(r8, 40)?;
    a.and(r8d, 7)?;
    random(a)?;
    a.bt(rax, 60)?;
    let mut large = a.create_label();
    a.jc(large)?;
    a.and(eax, 0x1f)?;
    a.set_label(&mut large)?;
    for (index, label) in (0..).zip(&widths) {
        a.cmp(r8d, index)?;
        a.je(*label)?;
    }
    for (index, label) in widths.iter_mut().enumerate() {
        a.set_label(label)?;
        match index {
            0 => a.mov(byte_ptr(rbx), al)?,
            1 => a.mov(word_ptr(rbx), ax)?,
            2 => a.mov(dword_ptr(rbx), eax)?,
            3 => a.mov(qword_ptr(rbx), rax)?,
            4 => a.mov(al, byte_ptr(rbx))?,
            5 => a.mov(ax, word_ptr(rbx))?,
            6 => a.mov(eax, dword_ptr(rbx))?,
            _ => a.mov(rax, qword_ptr(rbx))?,
        }
        a.jmp(done)?;
    }
    a.set_label(&mut done)?;
    a.nop()
}

fn for_ever(a: &mut CodeAssembler, body: impl FnOnce(&mut CodeAssembler) -> Assembled) -> Assembled {
    let mut again = a.create_label();
    a.nop()?; // whoever jumps here has a label of its own
    a.set_label(&mut again)?;
    body(a)?;
    a.jmp(again)
}

fn disk(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("disk");
    let bytes: Vec<u8> = (0..DISK_SIZE).map(|at| (at / 512).to_le_bytes()[0] ^ 0x5a).collect();
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn bars_are_moved_everywhere_while_others_use_them() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path());
    let setup = Setup { cpus: 4, disks: &[&disk] };
    torment("bars", &setup, |seed| {
        multiprocessor(|a| {
            let mut user = a.create_label();
            seed_random(a, seed)?;
            a.test(edi, 1)?;
            a.jnz(user)?;
            for_ever(a, write_config)?;
            a.set_label(&mut user)?;
            for_ever(a, touch_bars)
        })
    });
}

#[test]
fn registers_of_all_devices_get_nonsense_from_all_sides() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk(folder.path());
    let setup = Setup { cpus: 4, disks: &[&disk] };
    torment("registers", &setup, |seed| {
        multiprocessor(|a| {
            seed_random(a, seed)?;
            enable(a, 1)?;
            enable(a, 2)?;
            for_ever(a, touch_bars)
        })
    });
}

/// Sets up the admin queues of the controller at `BARS`: submission at `DATA`, completion 64 KiB further.
fn start_controller(a: &mut CodeAssembler) -> Assembled {
    const CC: i32 = 0x14;
    const CSTS: i32 = 0x1c;
    let data = u32::try_from(DATA).unwrap_or(0);
    a.mov(ebx, BARS)?;
    for (enable, ready) in [(0_u32, 0_i32), (0x0046_0001, 1)] {
        for (register, value) in [(0x24, 0x001f_001f), (0x28, data), (0x30, data + 0x1_0000)] {
            a.mov(dword_ptr(rbx + register), value)?;
        }
        a.mov(dword_ptr(rbx + CC), enable)?;
        let (mut wait, mut done) = (a.create_label(), a.create_label());
        a.mov(ecx, 100_000)?;
        a.set_label(&mut wait)?;
        a.mov(eax, dword_ptr(rbx + CSTS))?;
        a.and(eax, 1)?;
        a.cmp(eax, ready)?;
        a.je(done)?;
        a.loop_(wait)?;
        a.set_label(&mut done)?;
        a.nop()?;
    }
    Ok(())
}

#[test]
fn admin_queues_hold_nonsense_that_changes_under_way() {
    /// Mostly commands that exist.
    const OPCODES: [u8; 16] = [0, 1, 1, 2, 4, 5, 5, 6, 8, 9, 0xa, 0xc, 0x7c, 1, 5, 0xff];
    let folder = tempfile::tempdir().unwrap();
    let path = disk(folder.path());
    let before = fs::read(&path).unwrap();
    let read_only = std::path::PathBuf::from(format!("{},readonly=on", path.display()));
    let setup = Setup { cpus: 3, disks: &[&read_only] };
    torment("admin", &setup, |seed| {
        multiprocessor(|a| {
            let (mut others, mut opcodes) = (a.create_label(), a.create_label());
            seed_random(a, seed)?;
            a.test(edi, edi)?;
            a.jnz(others)?;
            enable(a, 1)?;
            for_ever(a, |a| {
                let (mut entry, mut sane) = (a.create_label(), a.create_label());
                start_controller(a)?;
                a.mov(r9d, 32 * 20)?;
                a.mov(rsi, DATA)?;
                a.set_label(&mut entry)?;
                // One entry of the ring: opcode, namespace, a buffer in RAM (mostly), queue numbers and sizes.
                random(a)?;
                a.lea(r10, qword_ptr(opcodes))?;
                a.mov(ecx, eax)?;
                a.and(ecx, 15)?;
                a.movzx(ecx, byte_ptr(r10 + rcx))?;
                a.mov(dword_ptr(rsi), ecx)?;
                a.shr(rax, 8)?;
                a.and(eax, 1)?;
                a.mov(dword_ptr(rsi + 4), eax)?;
                for field in [24, 32] {
                    random(a)?;
                    a.bt(rax, 63)?;
                    let mut wild = a.create_label();
                    a.jc(wild)?;
                    a.and(eax, 0x3f_f000)?;
                    a.add(rax, i32::try_from(DATA + 0x2_0000).unwrap_or(0))?;
                    a.set_label(&mut wild)?;
                    a.mov(qword_ptr(rsi + field), rax)?;
                }
                random(a)?;
                a.and(eax, 0x003f_0003)?;
                a.mov(dword_ptr(rsi + 40), eax)?;
                random(a)?;
                a.and(eax, 0x0003_0003)?;
                a.or(eax, 1)?;
                a.mov(dword_ptr(rsi + 44), eax)?;
                a.add(rsi, 64)?;
                // Round the ring, ringing after each entry.
                a.mov(rcx, rsi)?;
                a.sub(rcx, i32::try_from(DATA).unwrap_or(0))?;
                a.shr(ecx, 6)?;
                a.cmp(ecx, 32)?;
                a.jb(sane)?;
                a.xor(ecx, ecx)?;
                a.mov(rsi, DATA)?;
                a.set_label(&mut sane)?;
                a.mov(dword_ptr(rbx + 0x1000), ecx)?; // tail
                a.mov(eax, dword_ptr(rsi + 0x1_0008))?;
                a.and(eax, 31)?;
                a.mov(dword_ptr(rbx + 0x1004), ecx)?; // head
                a.dec(r9d)?;
                a.jnz(entry)
            })?;
            a.set_label(&mut opcodes)?;
            a.db(&OPCODES)?;
            a.set_label(&mut others)?;
            a.mov(ebx, BARS)?;
            for_ever(a, |a| {
                // Doorbells of all queues, and the rings themselves.
                random(a)?;
                a.mov(ecx, eax)?;
                a.and(ecx, 0x3c)?;
                a.shr(rax, 32)?;
                a.mov(edx, eax)?;
                a.and(edx, 0x3f)?;
                a.mov(dword_ptr(rbx + rcx + 0x1000), edx)?;
                random(a)?;
                a.mov(ecx, eax)?;
                a.and(ecx, 0x3_ffff)?;
                a.shr(rax, 24)?;
                a.mov(byte_ptr(rcx + i32::try_from(DATA).unwrap_or(0)), al)
            })
        })
    });
    assert!(fs::read(&path).unwrap() == before, "a read-only image changed");
}

#[test]
fn ports_get_nonsense() {
    /// UARTs, keyboard controller, ACPI, PCI configuration, and what nobody has.
    const BASES: [u32; 8] = [0x3f8, 0x2f8, 0x60, 0x600, 0xcf8, 0x608, 0x1000, 0xffff];
    torment("ports", &Setup { cpus: 2, ..Setup::default() }, |seed| {
        multiprocessor(|a| {
            let mut bases = a.create_label();
            seed_random(a, seed)?;
            for_ever(a, |a| {
                let mut ways: Vec<CodeLabel> = (0..8).map(|_| a.create_label()).collect();
                let mut done = a.create_label();
                random(a)?;
                a.lea(rsi, qword_ptr(bases))?;
                a.mov(ecx, eax)?;
                a.and(ecx, 7)?;
                a.mov(edx, dword_ptr(rsi + rcx * 4))?;
                a.shr(rax, 8)?;
                a.mov(ecx, eax)?;
                a.and(ecx, 7)?;
                a.add(edx, ecx)?;
                a.shr(rax, 8)?;
                a.mov(r8d, eax)?;
                a.and(r8d, 7)?;
                a.shr(rax, 8)?;
                a.mov(ecx, eax)?;
                a.and(ecx, 0x3f)?;
                a.mov(rsi, DATA)?;
                a.mov(rdi, DATA + 0x1000)?;
                for (index, label) in (0..).zip(&ways) {
                    a.cmp(r8d, index)?;
                    a.je(*label)?;
                }
                for (index, label) in ways.iter_mut().enumerate() {
                    a.set_label(label)?;
                    match index {
                        0 => a.out(dx, al)?,
                        1 => a.out(dx, ax)?,
                        2 => a.out(dx, eax)?,
                        3 => a.in_(al, dx)?,
                        4 => a.in_(ax, dx)?,
                        5 => a.in_(eax, dx)?,
                        6 => a.rep().outsb()?,
                        _ => a.rep().insd()?,
                    }
                    a.jmp(done)?;
                }
                a.set_label(&mut done)?;
                a.nop()
            })?;
            a.set_label(&mut bases)?;
            a.dd(&BASES)
        })
    });
}

/// Fields of an NVMe command that is not all zeroes.
struct Entry {
    at: u64,
    opcode: u32,
    namespace: u32,
    buffer: u64,
    dwords: [u32; 3],
}

impl Entry {
    fn put(&self, a: &mut CodeAssembler) -> Assembled {
        a.mov(rsi, self.at)?;
        a.mov(dword_ptr(rsi), self.opcode)?;
        a.mov(dword_ptr(rsi + 4), self.namespace)?;
        a.mov(rax, self.buffer)?;
        a.mov(qword_ptr(rsi + 24), rax)?;
        for (field, value) in [40, 44, 48].into_iter().zip(self.dwords) {
            a.mov(dword_ptr(rsi + field), value)?;
        }
        Ok(())
    }
}

#[test]
fn fifty_resets_with_writes_under_way_damage_nothing_else() {
    const QUEUES: u32 = 2;
    const FIRST_BLOCK: u32 = 64;
    const WRITES: u32 = 31;
    const BLOCKS: u32 = 8;
    let (rings, payload) = (DATA + 0x10_0000, DATA + 0x20_0000);
    let program = multiprocessor(|a| {
        let mut others = a.create_label();
        a.test(edi, edi)?;
        a.jnz(others)?;
        enable(a, 1)?;
        start_controller(a)?;
        // A completion and a submission queue for each processor: of 32 entries, without interrupts.
        for queue in 1..=QUEUES {
            let ring = rings + u64::from(queue) * 0x1_0000;
            let shape = queue | (31 << 16);
            let at = |number: u32| DATA + u64::from((queue - 1) * 2 + number) * 64;
            let dwords = [shape, 1, 0];
            Entry { at: at(0), opcode: 5, namespace: 0, buffer: ring + 0x8000, dwords }.put(a)?;
            let dwords = [shape, 1 | (queue << 16), 0];
            Entry { at: at(1), opcode: 1, namespace: 0, buffer: ring, dwords }.put(a)?;
        }
        a.mov(dword_ptr(rbx + 0x1000), QUEUES * 2)?;
        let mut made = a.create_label();
        a.mov(rsi, DATA + 0x1_0000 + u64::from(QUEUES * 2 - 1) * 16)?;
        a.set_label(&mut made)?;
        a.test(dword_ptr(rsi + 12), 0x1_0000)?; // the phase of the last completion
        a.jz(made)?;
        a.mov(rdi, payload)?;
        a.mov(eax, 0xa5)?;
        a.mov(ecx, BLOCKS * 512)?;
        a.rep().stosb()?;
        for queue in 1..=QUEUES {
            for number in 0..WRITES {
                let block = FIRST_BLOCK + ((queue - 1) * WRITES + number) * BLOCKS;
                Entry {
                    at: rings + u64::from(queue) * 0x1_0000 + u64::from(number) * 64,
                    opcode: 1 | (number << 16),
                    namespace: 1,
                    buffer: payload,
                    dwords: [block, 0, BLOCKS - 1],
                }
                .put(a)?;
            }
        }
        a.mov(al, u32::from(b'L'))?;
        put_byte(a, COM1)?;
        for queue in 1..=QUEUES {
            a.mov(dword_ptr(rbx + i32::try_from(0x1000 + queue * 8).unwrap_or(0)), WRITES)?;
        }
        reset(a)?;
        // The others write to the payload and the rings until the end.
        a.set_label(&mut others)?;
        a.mov(rbx, payload)?;
        for_ever(a, |a| a.mov(byte_ptr(rbx), 0xa5))
    });
    let folder = tempfile::tempdir().unwrap();
    let path = disk(folder.path());
    let before = fs::read(&path).unwrap();
    let cpus = u8::try_from(QUEUES).unwrap();
    let machine = Machine::start(&program, &Setup { cpus, disks: &[&path] });
    wait_until(Duration::from_secs(30), "fifty lives", || machine.console().len() >= 50);
    let ending = machine.shut_down_if_there();
    assert_sound(&ending);
    assert_eq!(ending.code, Some(0), "{ending:?}");
    let after = fs::read(&path).unwrap();
    assert_eq!(after.len(), before.len());
    let start = FIRST_BLOCK as usize * 512;
    let end = start + (QUEUES * WRITES * BLOCKS) as usize * 512;
    assert!(after[..start] == before[..start] && after[end..] == before[end..], "blocks that nobody wrote");
    assert!(after[start..end].contains(&0xa5), "no write got through in fifty lives");
    for (block, (now, then)) in after[start..end].chunks(512).zip(before[start..end].chunks(512)).enumerate()
    {
        assert!(now == then || now == [0xa5; 512], "block {block} is half written");
    }
}

/// `ebx` = local APIC; waits until all `cpus` are there, and leaves the others spinning.
fn all_spin(a: &mut CodeAssembler, cpus: i32) -> Assembled {
    let (mut first, mut wait) = (a.create_label(), a.create_label());
    a.mov(ebx, u32::try_from(DATA).unwrap_or(0))?;
    a.lock().inc(dword_ptr(rbx))?;
    a.test(edi, edi)?;
    a.jz(first)?;
    for_ever(a, CodeAssembler::nop)?;
    a.set_label(&mut first)?;
    a.nop()?;
    a.set_label(&mut wait)?;
    a.cmp(dword_ptr(rbx), cpus)?;
    a.jne(wait)?;
    a.mov(ebx, 0xfee0_0000_u32)
}

type Send = fn(&mut CodeAssembler) -> Assembled;

/// Interrupt commands that bring an SMI: to itself, to another processor, and by x2APIC.
#[test]
fn an_smi_ends_the_guest_and_says_so() {
    const SMI: u32 = 0x4200;
    const SELF: u32 = 1 << 18;
    tiny::need_kvm();
    let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
    assert!(
        vm.check_extension_raw(117) > 0,
        "this KVM has no system management mode (KVM_CAP_X86_SMM), as with a software KVM; run on a KVM host: \
         cargo xtask kvm-host"
    );
    let ways: [(&str, Send); 4] = [
        ("to itself", |a| a.mov(dword_ptr(rbx + 0x300), SMI | SELF)),
        ("to another processor", |a| {
            a.mov(dword_ptr(rbx + 0x310), 1 << 24)?;
            a.mov(dword_ptr(rbx + 0x300), SMI)
        }),
        ("to all others", |a| a.mov(dword_ptr(rbx + 0x300), SMI | (3 << 18))),
        ("by x2APIC", |a| {
            a.mov(ecx, 0x1b)?;
            a.rdmsr()?;
            a.or(eax, 0xc00)?;
            a.wrmsr()?;
            a.mov(ecx, 0x830)?;
            a.mov(edx, 1)?;
            a.mov(eax, SMI)?;
            a.wrmsr()
        }),
    ];
    for (name, send) in ways {
        eprintln!("SMI {name}");
        let program = multiprocessor(|a| {
            // What a processor would run if it found its SMI handler in RAM: an endless loop.
            a.mov(ecx, 0x3_8000)?;
            a.mov(dword_ptr(rcx), 0xfeeb)?;
            all_spin(a, 3)?;
            send(a)?;
            for_ever(a, CodeAssembler::nop)
        });
        let ending = Machine::start(&program, &Setup { cpus: 3, ..Setup::default() }).wait();
        assert_eq!(ending.code, Some(1), "{name}: {ending:?}");
        assert!(ending.errors.contains("system management mode (SMM)"), "{name}: {ending:?}");
    }
}

#[test]
fn an_nmi_without_handler_is_a_crash() {
    let program = uniprocessor(|a| {
        a.mov(ebx, 0xfee0_0000_u32)?;
        a.mov(dword_ptr(rbx + 0x300), 0x4_4400)?;
        for_ever(a, CodeAssembler::nop)
    });
    let ending = Machine::start(&program, &Setup::default()).wait();
    assert_eq!(ending.code, Some(3), "{ending:?}");
}

#[test]
fn an_init_to_the_boot_processor_is_told() {
    // It starts at the reset vector, where a PC has its firmware and this machine has nothing.
    let program = multiprocessor(|a| {
        let mut second = a.create_label();
        a.test(edi, edi)?;
        a.jnz(second)?;
        for_ever(a, CodeAssembler::nop)?;
        a.set_label(&mut second)?;
        a.mov(ebx, 0xfee0_0000_u32)?;
        a.mov(dword_ptr(rbx + 0x310), 0)?;
        a.mov(dword_ptr(rbx + 0x300), 0x4500)?;
        for_ever(a, CodeAssembler::nop)
    });
    let ending = Machine::start(&program, &Setup { cpus: 2, ..Setup::default() }).wait();
    assert_eq!(ending.code, Some(1), "{ending:?}");
    assert!(ending.errors.contains("the guest cannot go on: vCPU 0"), "{ending:?}");
}
