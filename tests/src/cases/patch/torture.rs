//! Hot code, patched by what it is already, under full load and beside a workload that checks its own results.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{Bench, patch};
use crate::cases::kernel::every_stack_is_complete;
use crate::deadlines::LONG_COMMAND;
use crate::images;

const CPUS: u32 = 4;
/// Patches: the scheduler's own switch, the same once more on top of it or below, and the way of read(2) and write(2).
const SWITCH: &str = "same-schedule";
const AGAIN: &str = "same-schedule-again";
const READ: &str = "same-read";

/// What is done to a patch.
#[derive(Debug, Clone, Copy)]
enum Do {
    Apply(&'static str),
    RollBack(&'static str),
    /// Nothing; each stack must be complete, and somebody has to sleep in the new code of this one.
    Look(&'static str),
}

use Do::{Apply, Look, RollBack};

/// One round: each patch above and below each other that it can meet, and rolled back in either order.
const ROUND: [Do; 24] = [
    Apply(SWITCH),
    Apply(READ),
    RollBack(SWITCH),
    RollBack(READ),
    Apply(READ),
    Apply(SWITCH),
    RollBack(SWITCH),
    RollBack(READ),
    Apply(SWITCH),
    Apply(AGAIN),
    RollBack(SWITCH),
    RollBack(AGAIN),
    Apply(AGAIN),
    Apply(SWITCH),
    RollBack(SWITCH),
    RollBack(AGAIN),
    Apply(AGAIN),
    Apply(READ),
    Look(AGAIN),
    Apply(SWITCH),
    Look(SWITCH),
    RollBack(AGAIN),
    RollBack(SWITCH),
    RollBack(READ),
];
/// Functions that jump elsewhere at each look: one of the scheduler's, and those of [`READ`].
const REPLACED: u64 = 5;
/// Patches that are applied and rolled back in a round.
const CYCLES: usize = (ROUND.len() - 2) / 2;

/// What the workload has done so far.
#[derive(Debug, Clone, Copy)]
struct Progress {
    rounds: u64,
    /// Of the slowest worker.
    least: u64,
}

/// What was done to the guest.
#[derive(Debug, Default)]
struct Totals {
    switches: u64,
    /// Attempts that changed nothing.
    given_back: u64,
    /// The most for one switch.
    most: u64,
    /// By the time that the guest stood still for each, in microseconds.
    paused: Vec<u64>,
}

struct Torture {
    bench: Bench,
    ids: BTreeMap<&'static str, u64>,
    attempts: BTreeMap<u64, u64>,
    totals: Totals,
}

/// Applies and rolls back at least `cycles` patches.
pub(super) fn tortured(kind: &'static str, cycles: usize) -> Result<()> {
    let bench = Bench::start(kind, CPUS)?;
    let mut torture =
        Torture { bench, ids: BTreeMap::new(), attempts: BTreeMap::new(), totals: Totals::default() };
    let begin = Instant::now();
    // Warnings are to be on the console, where the harness finds them.
    torture.guest("dmesg -n 5; cat /proc/sys/kernel/tainted > /tainted")?;
    torture.guest("workload /count > /workload.log 2>&1 & echo $! > /workload.pid; sleep 1")?;
    let mut progress = torture.progress()?;
    for round in 0..cycles.div_ceil(CYCLES) {
        for step in ROUND {
            torture.step(step).with_context(|| format!("in round {round}, {step:?}"))?;
        }
        torture.bench.text_is_the_images()?;
        let now = torture.progress()?;
        ensure!(
            now.rounds > progress.rounds && now.least > progress.least,
            "the workload stands still: {progress:?}, then {now:?}"
        );
        progress = now;
        println!(
            "round {round}, {} s: {} switches, {} given back, {progress:?}",
            begin.elapsed().as_secs(),
            torture.totals.switches,
            torture.totals.given_back
        );
    }
    let said =
        torture.guest("kill -TERM $(cat /workload.pid); wait $(cat /workload.pid); cat /workload.log")?;
    ensure!(said.contains(", 0 wrong"), "{said}");
    println!("{said}");
    torture.show_totals();
    // A module from outside of the kernel's tree is all that may have changed (Documentation/admin-guide/tainted-kernels.rst).
    let taint = torture.guest("echo $(cat /tainted /proc/sys/kernel/tainted)")?;
    let taint: Vec<u64> = taint.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let [before, after] = taint[..] else { anyhow::bail!("taint {taint:?}") };
    ensure!((after & !before) & !OUTSIDE == 0, "tainted {before:#x}, then {after:#x}");
    torture.bench.vm.power_off()
}

/// `TAINT_OOT_MODULE` and `TAINT_UNSIGNED_MODULE` (include/linux/panic.h).
const OUTSIDE: u64 = 1 << 12 | 1 << 13;

impl Torture {
    fn guest(&mut self, command: &str) -> Result<String> {
        self.bench.vm.run_within(command, LONG_COMMAND)
    }

    fn progress(&mut self) -> Result<Progress> {
        let said = self.guest("cat /count")?;
        let numbers: Vec<u64> =
            said.split_whitespace().map(str::parse).collect::<Result<_, _>>().context("no count")?;
        let [rounds, least, wrong] = numbers[..] else { anyhow::bail!("the workload says {said:?}") };
        if wrong > 0 {
            let why = self.guest("cat /workload.log")?;
            anyhow::bail!("{wrong} results of the workload are wrong: {why}");
        }
        Ok(Progress { rounds, least })
    }

    fn step(&mut self, step: Do) -> Result<()> {
        let output = match step {
            Look(name) => return self.look(name),
            Apply(name) => {
                let lup = images::image(&format!("{name}-{}.lup", self.bench.kind))?;
                self.bench.vm.try_lucos_with("apply", &lup, &["--unsigned"])?
            }
            RollBack(name) => {
                let id = self.ids.get(name).with_context(|| format!("{name} has no number"))?;
                self.bench.vm.try_lucos(&format!("rollback {id}"))?
            }
        };
        let info = patch(&output, 0)?;
        let number = |field: &str| info[field].as_u64().with_context(|| format!("no {field} in {info}"));
        let (id, attempts, paused) = (number("id")?, number("attempts")?, number("paused_us")?);
        if let Apply(name) = step {
            self.ids.insert(name, id);
        }
        let before = self.attempts.insert(id, attempts).unwrap_or(0);
        let given_back = attempts - before - 1;
        self.totals.switches += 1;
        self.totals.given_back += given_back;
        self.totals.most = self.totals.most.max(given_back);
        self.totals.paused.push(paused);
        Ok(())
    }

    fn look(&self, name: &str) -> Result<()> {
        let frames = every_stack_is_complete(&self.bench.vm, 1)?;
        let module = format!("[lucos_{}]", name.replace('-', "_"));
        let is_there = |frame: &String| frame.starts_with("lucos___schedule+") && frame.ends_with(&module);
        ensure!(frames.iter().any(is_there), "nobody was switched by {name}: {frames:?}");
        // The jumps are as they were written, and nothing else differs.
        let report = self.bench.vm.lucos("text-check")?;
        let written = report["explained"]["patches"]["sites"].as_u64().unwrap_or(0);
        let unexplained = report["unexplained"].as_array().map_or(1, Vec::len);
        ensure!(written >= REPLACED && unexplained == 0, "{written} jumps: {report}");
        Ok(())
    }

    fn show_totals(&mut self) {
        let Totals { switches, given_back, most, paused } = &mut self.totals;
        paused.sort_unstable();
        println!(
            "{switches} switches, {given_back} attempts given back, {most} at most for one; pauses of {} us, {} us at most",
            paused[paused.len() / 2],
            paused[paused.len() - 1]
        );
        let mut why: BTreeMap<String, usize> = BTreeMap::new();
        let said = self.bench.vm.messages().text();
        for line in said.lines().filter_map(|line| line.split_once("not now: ")).map(|(_, why)| why) {
            *why.entry(line.chars().filter(|c| !c.is_ascii_digit()).collect()).or_default() += 1;
        }
        for (why, count) in why {
            println!("{count} times given back: {why}");
        }
    }
}
