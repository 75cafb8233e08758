//! Pause and resume of guests that do something.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::devices::sha256;
use crate::deadlines::{BOOT, COMMAND, LONG_COMMAND};
use crate::harness::{Test, Tier};
use crate::images;
use crate::vm::Vm;

pub(super) const TESTS: &[Test] = &[
    Test::new("pause::a_guest_in_io_stands_still_and_loses_nothing", Tier::Gate, in_io),
    Test::new("pause::the_state_decides_what_is_allowed", Tier::Gate, states),
    Test::with_alarms("pause::an_unannounced_stop_does_wake_the_watchdog", Tier::Full, unannounced),
];

/// Pauses and resumes, as fast as the client goes.
const CYCLES: u32 = 30;
/// What the guest's watchdogs are set to. Soft lockups are reported after twice this (kernel/watchdog.c).
const WATCHDOG: Duration = Duration::from_secs(3);
/// When an RCU stall is reported. The kernel would take 3 s, but a guest that has half of a busy host's processor for two vCPUs
/// that never rest comes to that without any pause.
const STALL: Duration = Duration::from_secs(6);
/// Longer than the soft lockup detector's limit, and than an RCU stall's, both of which are lowered.
const LONG_PAUSE: Duration = Duration::from_secs(14);

/// Lowers the limits from which the guest's kernel reports that a vCPU did not run.
fn lower_limits(vm: &mut Vm) -> Result<()> {
    vm.run(&format!("echo {} > /proc/sys/kernel/watchdog_thresh", WATCHDOG.as_secs()))?;
    let stall = STALL.as_secs();
    vm.run(&format!("echo {stall} > /sys/module/rcupdate/parameters/rcu_cpu_stall_timeout"))?;
    Ok(())
}

fn start(folder: &Path) -> Result<Vm> {
    let root = images::copy("tiny.img", folder)?;
    let data = images::blank(folder, "data.img", 16)?;
    let mut vm = Vm::builder("vmlinuz-6.1-cloud")?.disk(&root).disk(&data).cpus(2).start()?;
    vm.shell(BOOT)?;
    Ok(vm)
}

/// Everything that can be seen to move from outside.
fn movement(vm: &Vm, folder: &Path) -> Result<(usize, String, String, serde_json::Value)> {
    let sum = |name| Ok::<_, std::io::Error>(sha256(&fs::read(folder.join(name))?));
    let mut counters = vm.lucos("counters")?;
    // Histograms of pauses are the VMM's, not the guest's.
    counters.as_object_mut().context("counters")?.remove("pauses");
    Ok((vm.console().len(), sum("tiny.img")?, sum("data.img")?, counters))
}

fn in_io() -> Result<()> {
    let folder = images::folder()?;
    let mut vm = start(folder.path())?;
    lower_limits(&mut vm)?;

    // Three loads: direct I/O that is read back and compared, a vCPU that spins, and a counter in the shell's
    // memory that is seen on the console.
    vm.type_line("while :; do :; done &")?;
    vm.type_line(
        "n=0; while :; do head -c 1048576 /dev/urandom > /tmp/a; \
         dd if=/tmp/a of=/dev/nvme1n1 bs=64k oflag=direct conv=fsync 2> /dev/null || echo io-\"failed\"; \
         dd if=/dev/nvme1n1 of=/tmp/b bs=64k count=16 iflag=direct 2> /dev/null || echo io-\"failed\"; \
         cmp /tmp/a /tmp/b || echo io-\"differs\"; n=$((n+1)); echo $n > /tmp/rounds; done &",
    )?;
    vm.type_line("t=0; while :; do t=$((t+1)); echo tick-$t.; usleep 100000; done &")?;
    vm.expect("tick-20.", LONG_COMMAND)?;

    for cycle in 0..CYCLES {
        vm.lucos("pause").with_context(|| format!("cycle {cycle}"))?;
        ensure!(vm.lucos("resume")?["paused_us"].as_u64().is_some());
    }

    // A long pause: nothing moves, and the guest's watchdogs do not notice.
    let report = vm.lucos("pause")?;
    ensure!(report["vcpus"] == 2, "the pause report is {report}");
    ensure!(vm.lucos("info")?["state"] == "paused");
    // What the guest had said already is on its way through the pipe.
    thread::sleep(Duration::from_millis(500));
    let first = movement(&vm, folder.path())?;
    thread::sleep(LONG_PAUSE);
    let second = movement(&vm, folder.path())?;
    ensure!(first == second, "something moved in the pause: {first:?} became {second:?}");
    vm.lucos("resume")?;

    // It goes on where it was, and does so for longer than the watchdogs take to speak up.
    let seen = vm.console().text();
    let last = seen.split("tick-").filter_map(|rest| rest.split_once('.')?.0.parse::<u64>().ok()).max();
    let last = last.context("no tick was seen")?;
    vm.expect(&format!("tick-{}.", last + 1), COMMAND).context("the tick after the pause")?;
    vm.expect(&format!("tick-{}.", last + 60), LONG_COMMAND)?;
    let ticks = vm.console().text();
    for tick in 1..last + 60 {
        ensure!(ticks.contains(&format!("tick-{tick}.")), "tick {tick} is lost");
    }

    vm.type_line("kill %1 %2 %3")?;
    let rounds: u64 = vm.run("cat /tmp/rounds")?.lines().last().unwrap_or_default().trim().parse()?;
    ensure!(rounds > 3, "the disk was written and compared only {rounds} times");
    let text = vm.console().text();
    ensure!(!text.contains("io-failed") && !text.contains("io-differs"), "the guest's I/O went wrong");

    // Now all vCPUs are halted.
    vm.run("wait; sleep 1")?;
    for cycle in 0..CYCLES {
        vm.lucos("pause").with_context(|| format!("halted, cycle {cycle}"))?;
        vm.lucos("resume")?;
    }
    let log = vm.run("dmesg")?;
    for alarm in ["soft lockup", "hard LOCKUP", "stall", "clocksource: timekeeping watchdog"] {
        ensure!(!log.contains(alarm), "the guest's kernel noticed: {alarm}");
    }
    let pauses = vm.lucos("counters")?["pauses"].clone();
    ensure!(pauses.to_string().contains(&(2 * CYCLES + 1).to_string()), "the histogram of pauses: {pauses}");
    vm.power_off()
}

fn states() -> Result<()> {
    let mut vm = Vm::builder("vmlinuz-6.1-cloud")?.initrd("tiny.cpio")?.start()?;
    vm.shell(BOOT)?;
    let refused = |vm: &Vm, verb: &str, words: &[&str]| -> Result<()> {
        let output = vm.try_lucos(verb)?;
        ensure!(output.code == 1, "`lucos {verb}` ended with {}: {}", output.code, output.out);
        let said = format!("{}{}", output.out, output.err);
        for word in words {
            ensure!(said.contains(word), "`lucos {verb}` does not say {word:?}: {said}");
        }
        Ok(())
    };
    refused(&vm, "resume", &["running"])?;
    vm.lucos("pause")?;
    refused(&vm, "pause", &["paused"])?;
    refused(&vm, "power-button", &["paused"])?;
    // The VMM ends in a pause too, by a request and by a signal alike.
    vm.lucos("shutdown")?;
    vm.expect_exit(0, crate::deadlines::EXIT)?;

    let mut vm = Vm::builder("vmlinuz-6.1-cloud")?.initrd("tiny.cpio")?.start()?;
    vm.expect("Linux version", BOOT)?;
    vm.lucos("pause")?;
    vm.signal(Signal::TERM)?;
    vm.expect_exit(143, crate::deadlines::EXIT)
}

/// Shows that the tests above could fail: a stop that the guest is not told of is reported by its watchdog.
fn unannounced() -> Result<()> {
    let folder = images::folder()?;
    let mut vm = start(folder.path())?;
    lower_limits(&mut vm)?;
    vm.type_line("while :; do :; done & while :; do :; done &")?;
    thread::sleep(Duration::from_secs(5));
    vm.signal(Signal::STOP)?;
    thread::sleep(LONG_PAUSE);
    vm.signal(Signal::CONT)?;
    vm.expect("soft lockup", LONG_COMMAND)?;
    Ok(())
}
