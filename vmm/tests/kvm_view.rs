//! The two views of guest memory.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod tiny;

use std::time::Duration;

use iced_x86::code_asm::*;
use kvm_bindings::KVM_VCPUEVENT_VALID_SMM;
use lucos_vmm::memory::GuestRam;
use lucos_vmm::sys::kvm::{GuestVm, Views};
use lucos_vmm::vcpu::VmExit;
use tiny::{DATA, Vcpus, uniprocessor, wait_until};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn the_guest_sees_what_the_vmm_writes_and_the_vmm_what_the_guest_does() {
    let program = uniprocessor(|a| {
        a.mov(ebx, u32::try_from(DATA).unwrap_or(0))?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(rax, qword_ptr(rbx))?;
        a.not(rax)?;
        a.mov(qword_ptr(rbx + 64), rax)?;
        a.jmp(again)
    });
    let vcpus = Vcpus::start(&program, 1);
    for value in (1..=1000_u64).map(|value| value << 20) {
        vcpus.set_word(DATA, value);
        wait_until(Duration::from_secs(5), "the guest's answer", || vcpus.word(DATA + 64) == !value);
    }
}

#[test]
fn the_second_view_is_there_and_holds_the_same_memory() {
    /// ```text
    /// 1000: inc byte [0x2000]
    /// 1004: out dx, al
    /// 1005: jmp 0x1000
    /// ```
    const CODE: [u8; 7] = [0xfe, 0x06, 0x00, 0x20, 0xee, 0xeb, 0xf9];
    tiny::need_kvm();
    let vm =
        GuestVm::new(&kvm_ioctls::Kvm::new().unwrap(), GuestRam::new(2 << 20).unwrap(), Views::Both).unwrap();
    assert!(
        vm.has_second_view(),
        "this KVM has one memslot address space: no KVM_CAP_MULTI_ADDRESS_SPACE, as with a software KVM; run on \
         a KVM host: cargo xtask kvm-host"
    );
    let mut vcpu = tiny::real_mode(&vm, &CODE, 0x900);
    let mut vcpu = vcpu.attach();
    for step in 1..=100_u8 {
        // Every other step in system management mode, where KVM uses the second address space.
        let second = step % 2 == 0;
        let mut events = vcpu.fd().get_vcpu_events().unwrap();
        events.flags = KVM_VCPUEVENT_VALID_SMM;
        events.smi.smm = u8::from(second);
        vcpu.fd().set_vcpu_events(&events).unwrap();
        let exit = vcpu.run().unwrap();
        assert_eq!(matches!(exit, VmExit::SystemManagement), second, "{exit:?}");
        assert_eq!(matches!(exit, VmExit::PortOut { .. }), !second, "{exit:?}");
        let seen: u8 = vm.ram().memory().read_obj(GuestAddress(0x2000)).unwrap();
        assert_eq!(seen, step);
    }
}
