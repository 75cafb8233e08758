//! Debian's other kernels, each with the initramfs that Debian makes for it.

use anyhow::{Result, ensure};

use super::boot::check_file_system;
use crate::deadlines::INITRAMFS_BOOT;
use crate::harness::{Test, Tier};
use crate::images;
use crate::vm::Vm;

pub(super) const TESTS: &[Test] = &[
    Test::new("kernels::6_12_cloud_with_initramfs", Tier::Gate, || boots("6.12-cloud", 2)),
    Test::new("kernels::6_1_generic_with_initramfs", Tier::Gate, || boots("6.1-generic", 2)),
    Test::new("kernels::6_1_cloud_with_initramfs_and_4_vcpus", Tier::Full, || boots("6.1-cloud", 4)),
    Test::new("kernels::6_1_generic_with_4_vcpus", Tier::Full, || boots("6.1-generic", 4)),
    Test::new("kernels::6_1_rt_with_4_vcpus", Tier::Full, || boots("6.1-rt", 4)),
    Test::new("kernels::6_12_cloud_with_4_vcpus", Tier::Full, || boots("6.12-cloud", 4)),
    Test::new("kernels::6_12_generic_with_4_vcpus", Tier::Full, || boots("6.12-generic", 4)),
];

fn boots(kernel: &str, cpus: u32) -> Result<()> {
    let folder = images::folder()?;
    let disk = images::copy("tiny.img", folder.path())?;
    let builder = Vm::builder(&format!("vmlinuz-{kernel}"))?.initrd(&format!("initrd-{kernel}"))?;
    let mut vm = builder.disk(&disk).cpus(cpus).memory("1G").start()?;
    let online = vm.shell(INITRAMFS_BOOT)?;
    ensure!(online == cpus, "{online} of {cpus} vCPUs are online");
    ensure!(!vm.console().text().contains("KASLR disabled"), "KASLR is disabled");
    let root = vm.run("grep ' / ' /proc/mounts")?;
    ensure!(root.contains("/dev/nvme0n1"), "the root file system is {root}");
    vm.power_off()?;
    check_file_system(&disk)
}
