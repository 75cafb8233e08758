//! A stock kernel under load whose busiest pages are watched.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::deadlines::{BOOT, LONG_COMMAND};
use crate::harness::{Test, Tier};
use crate::images;
use crate::initramfs::Initramfs;
use crate::vm::Vm;

pub(super) const TESTS: &[Test] = &[
    Test::new("traps::the_busiest_page_on_4_vcpus", Tier::Gate, || watched("6.1-cloud", 4, 1)),
    Test::new("traps::pages_that_cannot_be_watched", Tier::Gate, refused),
    Test::new("traps::the_64_busiest_pages_on_4_vcpus", Tier::Full, || watched("6.1-cloud", 4, 64)),
    Test::new("traps::the_256_busiest_pages", Tier::Full, || watched("6.1-cloud", 1, 256)),
    Test::new("traps::the_64_busiest_pages_of_6_12", Tier::Full, || watched("6.12-cloud", 1, 64)),
];

/// For how long pages are watched.
const TIME: Duration = Duration::from_secs(20);

fn start(kind: &str, cpus: u32) -> Result<(Vm, tempfile::TempDir)> {
    let folder = images::folder()?;
    let initramfs =
        Initramfs::planted(folder.path().join("initramfs"), kind)?.archive(&images::image("agent.cpio")?)?;
    let builder = Vm::builder(&format!("vmlinuz-{kind}"))?.initrd_file(initramfs.path()).cpus(cpus);
    let mut vm = builder.verbose().start()?;
    vm.shell(BOOT)?;
    // Warnings are to be on the console, where the harness finds them.
    vm.run("dmesg -n 5")?;
    Ok((vm, folder))
}

/// What the workload has done: rounds of all.
fn rounds(vm: &mut Vm) -> Result<u64> {
    let text = vm.run_within("cat /count", LONG_COMMAND)?;
    let first = text.split_whitespace().next().with_context(|| format!("/count is {text:?}"))?;
    Ok(first.parse()?)
}

fn watched(kind: &str, cpus: u32, pages: usize) -> Result<()> {
    let (mut vm, _folder) = start(kind, cpus)?;
    vm.run("workload /count > /workload.log 2>&1 & echo $! > /workload.pid; sleep 2")?;
    let begin = Instant::now();
    let report = vm.lucos(&format!("arm --busiest {pages}"))?;
    let armed = report["pages"].as_array().context("no pages")?.len();
    ensure!(armed == pages, "{armed} of {pages} pages are watched: {report}");
    thread::sleep(TIME);
    let report = vm.lucos("traps")?;
    let took = begin.elapsed();
    let counts =
        |name: &str| report["counts"][name].as_u64().with_context(|| format!("no {name} in {report}"));
    println!("{cpus} vCPUs, {pages} pages, {} s: {}", took.as_secs(), report["counts"]);
    let before = counts("accesses")?;
    let report = vm.lucos("disarm")?;
    ensure!(report["pages"].as_array().is_some_and(Vec::is_empty), "{report}");
    let counts =
        |name: &str| report["counts"][name].as_u64().with_context(|| format!("no {name} in {report}"));
    println!("lost: {}", report["lost"]);
    ensure!(counts("unseen")? == 0, "something was written that nobody saw: {report}");
    ensure!(before > 100, "{report}");
    // It goes on, and everything that it did was right. Whoever writes the count may have to wait for its turn.
    let (first, begin) = (rounds(&mut vm)?, Instant::now());
    while rounds(&mut vm)? <= first {
        ensure!(begin.elapsed() < LONG_COMMAND, "the workload stands still after {first} rounds");
        vm.run_within("sleep 2", LONG_COMMAND)?;
    }
    let said = vm.run_within(
        "kill -TERM $(cat /workload.pid); wait $(cat /workload.pid); cat /workload.log",
        LONG_COMMAND,
    )?;
    ensure!(said.contains(", 0 wrong"), "{said}");
    println!("{}", said.trim());
    vm.power_off()
}

fn refused() -> Result<()> {
    let (vm, _folder) = start("6.1-cloud", 1)?;
    for (verb, said) in [
        ("arm 0x1001", "there is no page of RAM at 0x1001"),
        ("arm 0xfee00000", "there is no page of RAM"),
        ("arm nonsense", "no address"),
        ("arm", "no page is named"),
    ] {
        let output = vm.try_lucos(verb)?;
        ensure!(output.code == 1 && output.out.contains(said), "`lucos {verb}` said {output:?}");
    }
    ensure!(vm.lucos("traps")?["pages"].as_array().is_some_and(Vec::is_empty));
    Ok(())
}
