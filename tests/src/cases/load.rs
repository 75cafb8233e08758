//! The full Debian under a load that checks itself (`scripts/guest/load`), while its busiest pages are watched.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{boot, debian};
use crate::deadlines::{DEBIAN_BOOT, LOAD_ROUND, LONG_COMMAND, SHUTDOWN, TRAPS};
use crate::harness::{Test, Tier};
use crate::traps::Report;
use crate::vm::Vm;

pub(super) const TESTS: &[Test] = &[
    Test::new("load::busiest_pages_of_debian", Tier::Full, || watched("6.1-cloud", 1)),
    Test::new("load::busiest_pages_of_debian_on_4_vcpus", Tier::Full, || watched("6.1-cloud", 4)),
    Test::new("load::busiest_pages_of_debian_with_6_12", Tier::Full, || watched("6.12-cloud", 1)),
];

/// The kinds of work.
const KINDS: [&str; 4] = ["memory", "fsx", "stress", "compile"];
/// How many pages are watched, one time after the other, and how many accesses are to be told of them at least: a single page has
/// some fifty a second here.
const WATCHED: [(usize, u64); 3] = [(1024, 5_000), (64, 5_000), (1, 500)];
/// They are watched for so long at least, and until so much was told. What the guest gets done meanwhile is no measure:
/// where each trap takes an emulated host a tenth of a millisecond or more, and each tick of the guest's timer makes a hundred of
/// them, there is little time between one tick and the next. All that was begun is done to its end before more is watched.
const TIME: Duration = Duration::from_secs(20);

/// How often it is tried to watch so many: a host that is busy with something else may let the guest write to fewer in the half
/// second in which the busiest are looked for.
const ARMED: usize = 5;

/// A guest that crawls is no broken one. Its kernel complains of processors and tasks that get nothing done: after twice this
/// threshold, of which 60 seconds is the most (`kernel/watchdog.c`); after 21 seconds for RCU
/// (`CONFIG_RCU_CPU_STALL_TIMEOUT`), of which 300 is the most; after 120 for a task that waits. Half of the first is over within
/// the time in which pages are watched here.
const PATIENT: &str =
    "watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=300 sysctl.kernel.hung_task_timeout_secs=0";

fn watched(kind: &str, cpus: u32) -> Result<()> {
    let (disk, begin) = (debian::copied("debian-load.img")?, Instant::now());
    let builder = Vm::builder(&format!("vmlinuz-{kind}"))?.disk(&disk).cpus(cpus).cmdline(PATIENT);
    let mut vm = builder.verbose().start()?;
    vm.log_in(DEBIAN_BOOT)?;
    // Warnings are to be on the console, where the harness finds them.
    vm.run("dmesg -n 5")?;
    vm.run_within("load prepare", LONG_COMMAND)?;
    vm.run(&format!("load start {}; sleep 5", KINDS.join(" ")))?;
    println!("{kind}, {cpus} vCPUs, under load after {} s", begin.elapsed().as_secs());
    let mut told = 0;
    for (pages, least) in WATCHED {
        told = accesses_while_watched(&vm, pages, told + least)?;
        right_so_far(&mut vm, "check")?;
    }
    right_so_far(&mut vm, "end")?;
    vm.lucos("power-button")?;
    vm.expect_exit(0, SHUTDOWN)?;
    boot::check_file_system(&disk)
}

/// Watches so many pages for a while, and until so many accesses were told `at_least`, all those before among them. Returns how
/// many there were in the end.
fn accesses_while_watched(vm: &Vm, pages: usize, at_least: u64) -> Result<u64> {
    let mut lost = Report::of_now(vm)?.lost()?;
    let begin = Instant::now();
    let mut armed = Report::of_arming(vm, pages, lost);
    for _ in 1..ARMED {
        if armed.is_ok() {
            break;
        }
        // Of those that were watched meanwhile some may have been given up.
        lost = Report::of_disarming(vm)?.lost()?;
        thread::sleep(Duration::from_secs(1));
        armed = Report::of_arming(vm, pages, lost);
    }
    armed?;
    let mut report = Report::of_now(vm)?;
    while begin.elapsed() < TIME || report.count("accesses")? < at_least {
        ensure!(begin.elapsed() < TRAPS, "too little was told of {pages} pages: {}", report.counts());
        thread::sleep(Duration::from_secs(2));
        report = Report::of_now(vm)?;
    }
    let report = Report::of_disarming(vm)?;
    println!("{pages} pages, {} s, in all: {}", begin.elapsed().as_secs(), report.counts());
    // What the load allocates becomes page tables now and then.
    report.ensure_right(lost + pages.div_ceil(2))?;
    report.count("accesses")
}

/// Waits for the work that is under way: at least one round of each kind was done, and none of them was wrong.
fn right_so_far(vm: &mut Vm, verb: &str) -> Result<()> {
    let begin = Instant::now();
    let said = vm.run_within(&format!("load {verb}"), LOAD_ROUND)?;
    println!("rounds ended after {} s: {said}", begin.elapsed().as_secs());
    for kind in KINDS {
        let begin = format!("load: {kind}: ");
        let line = said.lines().find_map(|line| line.trim().strip_prefix(&begin));
        let line = line.with_context(|| format!("nothing is said of {kind}: {said}"))?;
        let (rounds, wrong) = line
            .split_once(" rounds, ")
            .and_then(|(rounds, wrong)| Some((rounds.parse::<u32>().ok()?, wrong)))
            .with_context(|| format!("{kind} came to {line:?}"))?;
        ensure!(rounds > 0 && wrong == "0 wrong", "{kind}: {line}:\n{said}");
    }
    Ok(())
}
