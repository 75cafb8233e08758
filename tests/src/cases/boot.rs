//! Stock kernels from NVMe, and the ways in which a guest ends.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::deadlines::{BOOT, EXIT};
use crate::harness::{Test, Tier};
use crate::vm::Vm;
use crate::{images, process};

pub(super) const TESTS: &[Test] = &[
    Test::new("boot::doctor_says_that_this_host_can", Tier::Gate, doctor),
    Test::new("boot::cloud_kernel_from_disk_reboots_and_powers_off", Tier::Gate, from_disk),
    Test::new("boot::vmlinux_boots", Tier::Gate, vmlinux),
    Test::new("boot::reboot_by_the_keyboard_controller", Tier::Gate, keyboard_reset),
    Test::new("boot::config_file_and_console_in_a_file", Tier::Gate, config_file),
    Test::new("boot::console_nowhere", Tier::Gate, null_console),
    Test::with_alarms("boot::triple_fault_ends_with_3", Tier::Gate, triple_fault),
];

fn doctor() -> Result<()> {
    let mut doctor = std::process::Command::new(images::program("lucos-vmm")?);
    let output = process::run(doctor.arg("doctor"), EXIT)?;
    ensure!(output.code == 0, "doctor ended with {}: {}{}", output.code, output.out, output.err);
    ensure!(
        output.out.contains("with SVM") || output.out.contains("with VMX"),
        "doctor does not name the processor's extension: {}",
        output.out
    );
    Ok(())
}

/// Where the kernel's code begins in the guest's address space: KASLR draws it anew at every boot.
fn text_base(vm: &mut Vm) -> Result<u64> {
    let line = vm.run("grep ' _stext$' /proc/kallsyms")?;
    let address = line.lines().find_map(|line| line.strip_suffix(" T _stext")).context(line.clone())?;
    u64::from_str_radix(address.trim(), 16).with_context(|| format!("no address: {line}"))
}

fn from_disk() -> Result<()> {
    let folder = images::folder()?;
    let disk = images::copy("tiny.img", folder.path())?;
    let mut vm = Vm::builder("vmlinuz-6.1-cloud")?.disk(&disk).cpus(2).start()?;

    let online = vm.shell(BOOT)?;
    ensure!(online == 2, "{online} of 2 vCPUs are online");
    let cmdline = vm.run("cat /proc/cmdline")?;
    ensure!(!cmdline.contains("nokaslr"), "KASLR is switched off: {cmdline}");
    let first = text_base(&mut vm)?;
    let modules = vm.run("cat /proc/modules")?;
    ensure!(modules.is_empty(), "a boot without an initramfs needed modules: {modules}");
    let before = vm.run("cat /proc/sys/kernel/random/boot_id")?;
    vm.run("head -c 300000 /dev/urandom > /kept; sync")?;
    let sum = vm.run("sha256sum < /kept")?;

    vm.type_line("sync; mount -o remount,ro /; reboot -f")?;
    let online = vm.shell(BOOT).context("the second boot of the same VMM")?;
    ensure!(online == 2, "{online} of 2 vCPUs are online after a reboot");
    ensure!(vm.run("cat /proc/sys/kernel/random/boot_id")? != before, "it was no reboot");
    let second = text_base(&mut vm)?;
    ensure!(first != second, "both boots have the kernel at {first:#x}, so there is no KASLR");
    ensure!(vm.run("sha256sum < /kept")? == sum, "what was written before the reboot has changed");
    ensure!(!vm.console().text().contains("KASLR disabled"), "the kernel says that KASLR is disabled");
    ensure!(vm.lucos("info")?["state"] == "running");

    vm.power_off()?;
    check_file_system(&disk)
}

/// The image holds an ext4 file system without a fault.
pub(super) fn check_file_system(disk: &Path) -> Result<()> {
    process::host("e2fsck", ["-fn".as_ref(), disk.as_os_str()]).map(drop)
}

fn vmlinux() -> Result<()> {
    let folder = images::folder()?;
    let disk = images::copy("tiny.img", folder.path())?;
    let mut vm = Vm::builder("vmlinux-6.1-cloud")?.disk(&disk).cpus(2).start()?;
    let online = vm.shell(BOOT)?;
    ensure!(online == 2, "{online} of 2 vCPUs are online");
    vm.power_off()
}

fn keyboard_reset() -> Result<()> {
    let builder = Vm::builder("vmlinuz-6.1-cloud")?.initrd("tiny.cpio")?.cmdline("reboot=k");
    let mut vm = builder.start()?;
    vm.shell(BOOT)?;
    vm.type_line("reboot -f")?;
    vm.shell(BOOT).context("the boot after a reset by the keyboard controller")?;
    vm.type_line("poweroff -f")?;
    vm.expect_exit(0, EXIT)
}

fn config_file() -> Result<()> {
    let folder = images::folder()?;
    let (config, log) = (folder.path().join("vm.toml"), folder.path().join("console.log"));
    let text = format!(
        "kernel = \"{}\"\ninitrd = \"{}\"\ncpus = 2\nmemory = \"256M\"\ncmdline = \"LUCOS_RUN=poweroff\"\n\
         serial = \"file={}\"\n",
        images::image("vmlinuz-6.1-cloud")?.display(),
        images::image("tiny.cpio")?.display(),
        log.display()
    );
    fs::write(&config, text)?;
    let mut vm = crate::vm::Builder::from_config(&config).start()?;
    vm.wait_api()?;
    let shown = vm.lucos("config")?;
    ensure!(shown["cpus"] == 2, "the running machine's configuration is {shown}");
    vm.expect_exit(0, BOOT)?;
    ensure!(vm.console().text().is_empty(), "the console went to standard output as well");
    let log = fs::read_to_string(&log)?;
    ensure!(log.contains("init reached, 2 cpus online"), "the console's file holds: {log}");
    ensure!(log.contains("Power down"), "the end of the console is missing in its file: {log}");
    let alarms = crate::kernel_log::alarms(&log);
    ensure!(alarms.is_empty(), "alarms: {alarms:?}");
    Ok(())
}

fn null_console() -> Result<()> {
    let builder = Vm::builder("vmlinuz-6.1-cloud")?.initrd("tiny.cpio")?.serial("null");
    let mut vm = builder.cmdline("LUCOS_RUN=poweroff").start()?;
    vm.expect_exit(0, BOOT)?;
    ensure!(vm.console().text().is_empty(), "something is on standard output");
    Ok(())
}

fn triple_fault() -> Result<()> {
    // This way of restarting loads an empty interrupt table and traps (arch/x86/kernel/reboot.c, BOOT_TRIPLE).
    let builder = Vm::builder("vmlinuz-6.1-cloud")?.initrd("tiny.cpio")?;
    let mut vm = builder.cmdline("reboot=t LUCOS_RUN=reboot").start()?;
    vm.init(BOOT)?;
    vm.expect_exit(3, EXIT)?;
    let said = vm.messages().text();
    ensure!(said.contains("triple fault"), "lucos-vmm says of a triple fault: {said:?}");
    Ok(())
}
