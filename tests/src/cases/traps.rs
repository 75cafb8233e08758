//! A stock kernel under load whose busiest pages are watched.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::deadlines::{BOOT, EXIT, LONG_COMMAND, TRAPS};
use crate::harness::{Test, Tier};
use crate::images;
use crate::initramfs::Initramfs;
use crate::traps::Report;
use crate::vm::{Builder, Vm};

pub(super) const TESTS: &[Test] = &[
    Test::new("traps::the_busiest_page_on_4_vcpus", Tier::Gate, || watched("6.1-cloud", 4, 1)),
    Test::new("traps::pages_that_cannot_be_watched", Tier::Gate, refused),
    Test::new("traps::the_64_busiest_pages_on_4_vcpus", Tier::Full, || watched("6.1-cloud", 4, 64)),
    Test::new("traps::the_256_busiest_pages", Tier::Full, || watched("6.1-cloud", 1, 256)),
    Test::new("traps::the_64_busiest_pages_of_6_12", Tier::Full, || watched("6.12-cloud", 1, 64)),
    Test::new("traps::cpus_go_and_come_back", Tier::Full, cpus_go_and_come_back),
    Test::new("traps::a_guest_that_restarts_and_ends_meanwhile", Tier::Full, restarts),
    Test::new("traps::the_8_busiest_pages_on_intel", Tier::IntelFull, on_intel),
];

/// For how long pages are watched.
const TIME: Duration = Duration::from_secs(20);
/// The same on the Intel host, by whose own clock a second takes ten or more.
const SHORT: Duration = Duration::from_secs(3);

/// A guest with the workload, and where its files are.
fn planted(kind: &str, cpus: u32) -> Result<(Builder, tempfile::TempDir)> {
    let folder = images::folder()?;
    let initramfs =
        Initramfs::planted(folder.path().join("initramfs"), kind)?.archive(&images::image("agent.cpio")?)?;
    let builder = Vm::builder(&format!("vmlinuz-{kind}"))?.initrd_file(initramfs.path()).cpus(cpus);
    Ok((builder.verbose(), folder))
}

fn start(builder: Builder) -> Result<Vm> {
    let mut vm = builder.start()?;
    vm.shell(BOOT)?;
    // Warnings are to be on the console, where the harness finds them.
    vm.run("dmesg -n 5")?;
    Ok(vm)
}

/// What the workload has done: rounds of all.
fn rounds(vm: &mut Vm) -> Result<u64> {
    let text = vm.run_within("cat /count", LONG_COMMAND)?;
    let first = text.split_whitespace().next().with_context(|| format!("/count is {text:?}"))?;
    Ok(first.parse()?)
}

fn watched(kind: &str, cpus: u32, pages: usize) -> Result<()> {
    let (builder, _folder) = planted(kind, cpus)?;
    let mut vm = start(builder)?;
    workload_goes_on(&mut vm, pages)?;
    vm.power_off()
}

/// The Intel host interprets each instruction of the guest and of the host below it: few pages for a short time, and a load that
/// such a guest gets through. It is processes that write files and pass them on, whose sums must be right.
fn on_intel() -> Result<()> {
    const PAGES: usize = 8;
    const LOAD: &str = "(until test -e /end; do seq 300 > /a && cat /a /a | md5sum | cmp -s - /sum || echo wrong >> /wrong; \
                        echo >> /rounds; done) & true";
    let (builder, _folder) = planted("6.1-cloud", 1)?;
    let mut vm = builder.on_a_slow_host().start()?;
    vm.shell(BOOT)?;
    vm.run("dmesg -n 5; seq 300 > /a; cat /a /a | md5sum > /sum")?;
    vm.run(LOAD)?;
    println!("under load");
    let report = Report::of_arming(&vm, PAGES, 0)?;
    println!("{PAGES} pages are watched: {}", report.counts());
    let begin = Instant::now();
    let mut report = Report::of_now(&vm)?;
    while begin.elapsed() < SHORT || report.count("accesses")? < 100 {
        ensure!(begin.elapsed() < TRAPS, "too little was told of: {}", report.counts());
        thread::sleep(Duration::from_millis(500));
        report = Report::of_now(&vm)?;
    }
    let report = Report::of_disarming(&vm)?;
    println!("{PAGES} pages, {} s: {}", begin.elapsed().as_secs(), report.counts());
    // So few may all but one become page tables of processes.
    report.ensure_right(PAGES - 1)?;
    let said = vm.run_within("touch /end; wait; test ! -e /wrong && wc -l < /rounds", LONG_COMMAND)?;
    // The shell also says that a job of its own has ended.
    let rounds = said.lines().last().unwrap_or_default().trim().parse::<u32>();
    ensure!(rounds.is_ok_and(|rounds| rounds > 0), "no round was done: {said}");
    println!("rounds done right: {said}");
    vm.power_off()
}

fn begin_workload(vm: &mut Vm) -> Result<()> {
    vm.run("workload /count > /workload.log 2>&1 & echo $! > /workload.pid; sleep 2").map(drop)
}

/// Everything that it did was right.
fn end_workload(vm: &mut Vm) -> Result<()> {
    let said = vm.run_within(
        "kill -TERM $(cat /workload.pid); wait $(cat /workload.pid); cat /workload.log",
        LONG_COMMAND,
    )?;
    ensure!(said.contains(", 0 wrong"), "{said}");
    println!("{}", said.trim());
    Ok(())
}

/// Has the workload run while pages are watched.
fn workload_goes_on(vm: &mut Vm, pages: usize) -> Result<()> {
    begin_workload(vm)?;
    let begin = Instant::now();
    Report::of_arming(vm, pages, 0)?;
    thread::sleep(TIME);
    let report = Report::of_now(vm)?;
    println!("{pages} pages, {} s: {}", begin.elapsed().as_secs(), report.counts());
    ensure!(report.count("accesses")? > 100, "{}", report.counts());
    // Of those that are written to most, many are freed and become tables of processes.
    Report::of_disarming(vm)?.ensure_right(pages.div_ceil(2))?;
    // It goes on, and everything that it did was right. Whoever writes the count may have to wait for its turn.
    let (first, begin) = (rounds(vm)?, Instant::now());
    while rounds(vm)? <= first {
        ensure!(
            begin.elapsed() < LONG_COMMAND * vm.patience(),
            "the workload stands still after {first} rounds"
        );
        vm.run_within("sleep 2", LONG_COMMAND)?;
    }
    end_workload(vm)
}

/// The guest restarts while its busiest pages are watched: what comes up has none that is watched, and can have. It is switched off
/// while it has; and another one ends by a triple fault, which may come in a step.
fn restarts() -> Result<()> {
    const PAGES: usize = 16;
    let under_watch = |vm: &mut Vm| -> Result<()> {
        begin_workload(vm)?;
        Report::of_arming(vm, PAGES, 0)?;
        thread::sleep(Duration::from_secs(2));
        println!("before the end: {}", Report::of_now(vm)?.counts());
        Ok(())
    };
    let (builder, folder) = planted("6.1-cloud", 2)?;
    let mut vm = start(builder)?;
    under_watch(&mut vm)?;
    vm.type_line("reboot -f")?;
    vm.shell(BOOT).context("the boot after a restart")?;
    let report = Report::of_now(&vm)?;
    ensure!(report.pages()? == 0 && report.count("accesses")? == 0, "{}", report.counts());
    let ended = report.lost_because("the guest was reset or switched off")?;
    // Some may have become page tables before.
    ensure!(ended >= PAGES / 2, "{ended} of {PAGES} pages are said to have ended with the guest");
    under_watch(&mut vm)?;
    vm.power_off()?;
    drop(folder);

    let (builder, _folder) = planted("6.1-cloud", 2)?;
    let mut vm = start(builder.cmdline("reboot=t"))?;
    under_watch(&mut vm)?;
    vm.type_line("reboot -f")?;
    vm.expect_exit(3, EXIT)?;
    let said = vm.messages().text();
    ensure!(said.contains("triple fault"), "lucos-vmm says of a triple fault: {said:?}");
    Ok(())
}

/// Processors are switched off and on again while pages that all of them write to are watched.
fn cpus_go_and_come_back() -> Result<()> {
    const CPUS: u32 = 4;
    const TIMES: u32 = 3;
    // Where four processors share one of the host's and a trap takes a good part of a millisecond, a tick of the guest's timer must
    // not make many: whoever waits for all others would see nothing but ticks.
    const PAGES: usize = 2;
    let (builder, _folder) = planted("6.1-cloud", CPUS)?;
    let mut vm = start(builder)?;
    begin_workload(&mut vm)?;
    Report::of_arming(&vm, PAGES, 0)?;
    for _ in 0..TIMES {
        for online in [0, 1] {
            for cpu in 1..CPUS {
                let file = format!("/sys/devices/system/cpu/cpu{cpu}/online");
                vm.run_within(&format!("echo {online} > {file} && grep -qx {online} {file}"), LONG_COMMAND)?;
            }
        }
    }
    let report = Report::of_disarming(&vm)?;
    println!("{PAGES} pages, {} processors off and on {TIMES} times: {}", CPUS - 1, report.counts());
    ensure!(report.count("accesses")? > 1000, "{}", report.counts());
    report.ensure_right(2)?;
    end_workload(&mut vm)?;
    vm.power_off()
}

fn refused() -> Result<()> {
    let (builder, _folder) = planted("6.1-cloud", 1)?;
    let vm = start(builder)?;
    for (verb, said) in [
        ("arm 0x1001", "0x1001 is in the middle of the page at 0x1000"),
        ("arm 0xfee00000", "there is no RAM at 0xfee00000"),
    ] {
        let output = vm.try_lucos(verb)?;
        ensure!(output.code == 1 && output.out.contains(said), "`lucos {verb}` said {output:?}");
    }
    ensure!(vm.lucos("traps")?["pages"].as_array().is_some_and(Vec::is_empty));
    some_are_given_up(&vm)
}

/// Of several pages that are watched, one is no longer, and then none.
fn some_are_given_up(vm: &Vm) -> Result<()> {
    const PAGES: usize = 4;
    let before = Report::of_arming(vm, PAGES, 0)?.addresses()?;
    let (first, others) = before.split_first().context("no page is watched")?;
    let report = Report::of_disarming_one(vm, first)?;
    // In the meantime, the guest may have made page tables of some.
    let after = report.addresses()?;
    ensure!(
        !after.contains(first) && after.iter().all(|page| others.contains(page)),
        "{before:?}, {after:?}"
    );
    ensure!(after.len() + report.lost()? >= others.len() && !after.is_empty(), "{before:?}, {after:?}");
    let output = vm.try_lucos("disarm 0x1001")?;
    ensure!(output.code == 1 && output.out.contains("0x1001 is in the middle"), "{output:?}");
    Report::of_disarming(vm)?.ensure_right(PAGES - 1)
}
