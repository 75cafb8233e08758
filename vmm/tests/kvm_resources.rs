//! Machines that come and go leave nothing behind. One test, because it counts what the whole process holds.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod tiny;

use std::fs;
use std::time::Duration;

use iced_x86::code_asm::*;
use lucos_vmm::config::{MachineSpec, SerialSpec};
use lucos_vmm::machine::{self, GuestExit};
use tiny::{multiprocessor, power_off};

/// Descriptors, threads and mappings of this process.
fn held() -> [usize; 3] {
    let count = |path: &str| fs::read_dir(path).expect("/proc is mounted").count();
    let maps = fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    [
        count("/proc/self/fd"),
        count("/proc/self/task"),
        maps.lines().filter(|line| !line.contains("[heap]")).count(),
    ]
}

#[test]
fn fifty_machines_leave_no_descriptor_thread_or_mapping() {
    tiny::need_kvm();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let program = multiprocessor(|a| {
        // The others spin until the end.
        let mut spin = a.create_label();
        a.test(edi, edi)?;
        a.jnz(spin)?;
        power_off(a)?;
        a.set_label(&mut spin)?;
        a.jmp(spin)
    });
    fs::write(path("vmlinux"), &program.vmlinux).unwrap();
    fs::write(path("disk"), vec![0; 1 << 20]).unwrap();
    let mut spec = MachineSpec::new(path("vmlinux"));
    spec.memory = "64M".parse().unwrap();
    spec.cpus = "2".parse().unwrap();
    spec.serial = SerialSpec::File(path("console"));
    spec.disks.push(path("disk").to_str().unwrap().parse().unwrap());
    spec.api_socket = Some(path("api"));
    spec.agent = Some(path("agent"));
    let run = || assert_eq!(machine::run(&spec).unwrap(), GuestExit::PowerOff);
    // What is made once: signal handlers, the allocator's arenas.
    (0..5).for_each(|_| run());
    let before = held();
    (0..50).for_each(|_| run());
    // Threads that nobody waits for, such as the one that forwards signals, end a moment later. The allocator
    // and the C library may keep a few mappings; a leak would be fifty.
    let mut after = held();
    for _ in 0..500 {
        if after[..2] == before[..2] {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        after = held();
    }
    assert_eq!(after[..2], before[..2], "descriptors and threads");
    assert!(after[2] < before[2] + 25, "mappings: {} before, {} after", before[2], after[2]);
}
