//! The VMM on a terminal: raw while it runs, as it was on every way out.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::deadlines::{BOOT, EXIT, REFUSAL};
use crate::harness::{Test, Tier};
use crate::vm::Vm;

pub(super) const TESTS: &[Test] = &[
    Test::new("console::interactive_until_power_off", Tier::Gate, power_off),
    Test::new("console::ctrl_a_x_ends_the_vmm", Tier::Gate, || ends(|vm| vm.type_keys(b"\x01x"), 0)),
    Test::new("console::sigterm_ends_the_vmm", Tier::Gate, || ends(|vm| vm.signal(Signal::TERM), 143)),
    Test::new("console::sighup_ends_the_vmm", Tier::Gate, || ends(|vm| vm.signal(Signal::HUP), 129)),
    Test::new("console::ctrl_c_goes_to_the_guest", Tier::Gate, ctrl_c),
    Test::with_alarms("console::restored_after_a_panic", Tier::Gate, panic),
];

/// What a terminal is set to that no program has touched.
pub(super) fn untouched() -> Result<String> {
    crate::pty::Pty::new()?.settings()
}

/// Waits until the VMM has made the terminal raw.
pub(super) fn wait_raw(vm: &Vm) -> Result<()> {
    let begin = Instant::now();
    while !vm.pty()?.is_raw()? {
        ensure!(begin.elapsed() < REFUSAL, "the terminal does not become raw: {}", vm.messages().text());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The terminal is as it was.
pub(super) fn ensure_restored(vm: &Vm) -> Result<()> {
    let (before, after) = (untouched()?, vm.pty()?.settings()?);
    ensure!(before == after, "the terminal was {before} and is {after}");
    Ok(())
}

fn start(cmdline: &str) -> Result<Vm> {
    let builder = Vm::builder("vmlinuz-6.1-cloud")?.initrd("tiny.cpio")?.cmdline(cmdline);
    builder.on_a_terminal().start()
}

fn ends(end: fn(&mut Vm) -> Result<()>, code: i32) -> Result<()> {
    let mut vm = start("")?;
    wait_raw(&vm)?;
    // The guest has to run: what comes before is another moment, which the first second covers well enough.
    vm.expect("Linux version", BOOT)?;
    end(&mut vm)?;
    vm.expect_exit(code, EXIT)?;
    ensure_restored(&vm)
}

fn power_off() -> Result<()> {
    let mut vm = start("")?;
    vm.shell(BOOT)?;
    ensure!(vm.pty()?.is_raw()?, "the terminal is not raw while the guest runs");
    // Ctrl-A a is one Ctrl-A for the guest: the shell goes to the line's begin, and runs `echo one two`.
    vm.type_keys(b"wo\x01aecho one\" t\x05\"\r")?;
    vm.expect("\none two", EXIT)?;
    // Ctrl-A h explains itself to the user, and not to the guest.
    vm.type_keys(b"\x01h")?;
    vm.messages().expect("Ctrl-A", EXIT)?;
    vm.run("true")?;
    vm.type_line("poweroff -f")?;
    vm.expect_exit(0, EXIT)?;
    ensure_restored(&vm)
}

fn ctrl_c() -> Result<()> {
    let mut vm = start("")?;
    vm.shell(BOOT)?;
    vm.type_line("sleep 1000; echo sleep-\"ended\"")?;
    thread::sleep(Duration::from_secs(1));
    vm.type_keys(b"\x03")?;
    vm.run("true")?;
    ensure!(vm.lucos("info")?["state"] == "running");
    vm.lucos("shutdown")?;
    vm.expect_exit(0, EXIT)?;
    ensure_restored(&vm)
}

fn panic() -> Result<()> {
    let mut vm = start("LUCOS_RUN=panic")?;
    wait_raw(&vm)?;
    vm.init(BOOT)?;
    vm.expect_exit(3, EXIT)?;
    let said = vm.messages().text();
    ensure!(said.contains("panicked"), "lucos-vmm says of a panic: {said:?}");
    let console = vm.console().text();
    ensure!(console.contains("Kernel panic - not syncing: sysrq triggered crash"), "the reason is not shown");
    ensure_restored(&vm)
}
