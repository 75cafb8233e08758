//! Exits of every kind: what the guest asks for is what it gets.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod tiny;

use iced_x86::code_asm::*;
use lucos_vmm::memory::GuestRam;
use lucos_vmm::sys::kvm::{GuestVm, Views};
use lucos_vmm::vcpu::VmExit;
use tiny::{COM1, DATA, Machine, Program, Setup, multiprocessor, power_off, put_byte, report, uniprocessor};
use vm_memory::{Bytes, GuestAddress};

/// Address and data ports of PCI configuration.
const CONFIG_ADDRESS: u32 = 0xcf8;
const CONFIG_DATA: u32 = 0xcfc;
/// Where nothing answers, in the MMIO hole.
const HOLE: u32 = 0xd000_0000;
/// Where the VMM puts the first BAR.
const FIRST_BAR: u32 = 0xc000_0000;

/// What the program puts out until it switches off.
fn output(program: &Program, cpus: u8) -> Vec<u8> {
    let ending = Machine::start(program, &Setup { cpus, ..Setup::default() }).wait();
    assert_eq!(ending.code, Some(0), "{ending:?}");
    ending.console
}

#[test]
fn ports_take_and_give_bytes_words_and_double_words() {
    let program = uniprocessor(|a| {
        a.mov(rdi, DATA)?;
        a.mov(edx, 0x1234)?;
        a.xor(eax, eax)?;
        a.in_(al, dx)?;
        a.stosb()?;
        a.in_(ax, dx)?;
        a.stosw()?;
        a.in_(eax, dx)?;
        a.stosd()?;
        a.out(dx, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)?;
        a.mov(edx, CONFIG_ADDRESS)?;
        a.mov(eax, 0x8000_0000_u32)?;
        a.out(dx, eax)?;
        a.mov(edx, CONFIG_DATA)?;
        a.in_(eax, dx)?;
        a.stosd()?;
        a.in_(ax, dx)?;
        a.stosw()?;
        a.mov(edx, CONFIG_DATA + 3)?;
        a.in_(al, dx)?;
        a.stosb()?;
        report(a, DATA, 14)?;
        power_off(a)
    });
    let bridge = [0x86, 0x80, 0x57, 0x0d];
    let expected = [&[0xff; 7][..], &bridge, &bridge[..2], &bridge[3..]].concat();
    assert_eq!(output(&program, 1), expected);
}

#[test]
fn a_long_output_string_arrives_whole() {
    const LEN: u32 = 50_000;
    let program = uniprocessor(|a| {
        a.mov(rdi, DATA)?;
        a.xor(eax, eax)?;
        a.mov(ecx, LEN)?;
        let mut fill = a.create_label();
        a.set_label(&mut fill)?;
        a.stosb()?;
        a.add(al, 7)?;
        a.loop_(fill)?;
        report(a, DATA, LEN)?;
        power_off(a)
    });
    let expected: Vec<u8> = (0..LEN).map(|index| (index * 7).to_le_bytes()[0]).collect();
    assert!(output(&program, 1) == expected);
}

#[test]
fn a_long_input_string_fills_its_buffer_and_no_more() {
    const COUNT: u32 = 5000;
    let program = uniprocessor(|a| {
        a.mov(edx, CONFIG_ADDRESS)?;
        a.mov(eax, 0x8000_0000_u32)?;
        a.out(dx, eax)?;
        a.mov(rdi, DATA + 2)?; // over page boundaries, not aligned
        a.mov(edx, CONFIG_DATA)?;
        a.mov(ecx, COUNT)?;
        a.rep().insd()?;
        a.mov(rdi, DATA + 2)?;
        a.mov(eax, 0x0d57_8086)?;
        a.mov(ecx, COUNT)?;
        a.repe().scasd()?;
        a.sete(bl)?;
        a.cmp(qword_ptr(rdi), 0)?; // behind the end
        a.sete(al)?;
        a.and(al, bl)?;
        put_byte(a, COM1)?;
        power_off(a)
    });
    assert_eq!(output(&program, 1), [1]);
}

#[test]
fn memory_where_nothing_answers_reads_as_ones() {
    let program = uniprocessor(|a| {
        a.mov(rdi, DATA)?;
        a.mov(ebx, HOLE)?;
        a.mov(rax, 0x0123_4567_89ab_cdef_u64)?;
        a.mov(byte_ptr(rbx), al)?;
        a.mov(word_ptr(rbx), ax)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.mov(al, byte_ptr(rbx))?;
        a.stosb()?;
        a.mov(ax, word_ptr(rbx))?;
        a.stosw()?;
        a.mov(eax, dword_ptr(rbx))?;
        a.stosd()?;
        a.mov(rax, qword_ptr(rbx))?;
        a.stosq()?;
        report(a, DATA, 15)?;
        power_off(a)
    });
    assert_eq!(output(&program, 1), [0xff; 15]);
}

#[test]
fn a_bar_answers_accesses_of_every_width() {
    let program = uniprocessor(|a| {
        // Device 1, the entropy device: memory decode on. Its common configuration is at its BAR's start.
        a.mov(edx, CONFIG_ADDRESS)?;
        a.mov(eax, 0x8000_0804_u32)?;
        a.out(dx, eax)?;
        a.mov(edx, CONFIG_DATA)?;
        a.mov(eax, 2)?;
        a.out(dx, ax)?;
        a.mov(rdi, DATA)?;
        a.mov(ebx, FIRST_BAR)?;
        a.mov(dword_ptr(rbx), 1)?; // device_feature_select
        a.mov(rax, qword_ptr(rbx))?; // with device_feature: VIRTIO_F_VERSION_1
        a.stosq()?;
        a.mov(eax, dword_ptr(rbx + 4))?;
        a.stosd()?;
        a.mov(ax, word_ptr(rbx + 0x12))?; // num_queues
        a.stosw()?;
        a.mov(byte_ptr(rbx + 0x14), 3)?; // device_status
        a.mov(al, byte_ptr(rbx + 0x14))?;
        a.stosb()?;
        report(a, DATA, 15)?;
        power_off(a)
    });
    assert_eq!(output(&program, 1), [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 3]);
}

#[test]
fn processors_start_by_init_and_sipi() {
    for cpus in [2_u8, 5, 8] {
        let program = multiprocessor(|a| {
            a.mov(ebx, u32::try_from(DATA).unwrap_or(0))?;
            a.lock().inc(dword_ptr(rbx))?;
            a.lock().bts(dword_ptr(rbx + 4), edi)?;
            a.test(edi, edi)?;
            let (mut all, mut park) = (a.create_label(), a.create_label());
            a.jnz(park)?;
            a.set_label(&mut all)?;
            a.pause()?;
            a.cmp(dword_ptr(rbx), i32::from(cpus))?;
            a.jne(all)?;
            a.mov(al, byte_ptr(rbx + 4))?;
            put_byte(a, COM1)?;
            power_off(a)?;
            a.set_label(&mut park)?;
            a.nop()
        });
        assert_eq!(u16::from(output(&program, cpus)[0]), (1 << cpus) - 1, "{cpus} processors");
    }
}

#[test]
fn registers_are_those_after_the_instruction_once_its_io_is_drained() {
    /// ```text
    /// 1000: in   al, dx
    /// 1001: out  dx, al
    /// 1002: mov  eax, [0xd0000000]
    /// 1009: mov  [0xd0000000], eax
    /// 1010: rep insb
    /// ```
    const CODE: [u8; 18] =
        [0xec, 0xee, 0x67, 0x66, 0xa1, 0, 0, 0, 0xd0, 0x67, 0x66, 0xa3, 0, 0, 0, 0xd0, 0xf3, 0x6c];
    tiny::need_kvm();
    let vm = GuestVm::new(&kvm_ioctls::Kvm::new().unwrap(), GuestRam::new(2 << 20).unwrap(), Views::First)
        .unwrap();
    let mut vcpu = tiny::real_mode(&vm, &CODE, 0x900);
    let mut sregs = vcpu.fd().get_sregs().unwrap();
    sregs.ds.limit = 0xffff_ffff;
    sregs.ds.g = 1;
    vcpu.fd().set_sregs(&sregs).unwrap();
    let mut regs = vcpu.fd().get_regs().unwrap();
    (regs.rcx, regs.rdi) = (5000, 0x4000);
    vcpu.fd().set_regs(&regs).unwrap();
    let mut vcpu = vcpu.attach();

    let exit = vcpu.run().unwrap();
    let VmExit::PortIn { port: 0x900, size: 1, data } = exit else { panic!("{exit:?}") };
    data.copy_from_slice(&[0x5a]);
    assert!(matches!(vcpu.drain().unwrap(), VmExit::Interrupted));
    let regs = vcpu.fd().get_regs().unwrap();
    assert_eq!((regs.rip, regs.rax & 0xff), (0x1001, 0x5a));

    let exit = vcpu.run().unwrap();
    assert!(matches!(exit, VmExit::PortOut { port: 0x900, size: 1, data: [0x5a] }), "{exit:?}");
    assert!(matches!(vcpu.drain().unwrap(), VmExit::Interrupted));
    assert_eq!(vcpu.fd().get_regs().unwrap().rip, 0x1002);

    let exit = vcpu.run().unwrap();
    let VmExit::MmioRead { address: 0xd000_0000, data } = exit else { panic!("{exit:?}") };
    data.copy_from_slice(&[1, 2, 3, 4]);
    assert!(matches!(vcpu.drain().unwrap(), VmExit::Interrupted));
    let regs = vcpu.fd().get_regs().unwrap();
    assert_eq!((regs.rip, regs.rax), (0x1009, 0x0403_0201));

    let exit = vcpu.run().unwrap();
    assert!(matches!(exit, VmExit::MmioWrite { address: 0xd000_0000, data: [1, 2, 3, 4] }), "{exit:?}");
    assert!(matches!(vcpu.drain().unwrap(), VmExit::Interrupted));
    assert_eq!(vcpu.fd().get_regs().unwrap().rip, 0x1010);

    // A string is in the middle: what came in so far is in memory, and the counters say how much that is.
    let mut given = 0_u64;
    while given < 3000 {
        let VmExit::PortIn { data, .. } = vcpu.run().unwrap() else { continue };
        data.fill(0x77);
        given += data.len() as u64;
    }
    while let VmExit::PortIn { data, .. } = vcpu.drain().unwrap() {
        data.fill(0x77);
        given += data.len() as u64;
    }
    let regs = vcpu.fd().get_regs().unwrap();
    assert_eq!((regs.rcx, regs.rdi), (5000 - given, 0x4000 + given));
    let mut bytes = vec![0; 5000];
    vm.ram().memory().read_slice(&mut bytes, GuestAddress(0x4000)).unwrap();
    let given = usize::try_from(given).unwrap();
    assert!(bytes[..given] == vec![0x77; given] && bytes[given..] == vec![0; 5000 - given]);
}
