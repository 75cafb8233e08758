//! Tiers, filters and the report.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::kernel_log;
use crate::transcript::Transcript;

/// When a test is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Tier {
    /// Before every merge, in the emulated AMD host.
    Gate,
    /// In the long run that covers every kernel, with all tests of the gate.
    Full,
    /// In the emulated Intel host, which interprets every instruction.
    Intel,
    /// The same in the long run, with all tests of the short one.
    IntelFull,
    /// In an emulated AMD host whose processor has five-level paging.
    FiveLevels,
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Full => "full",
            Self::Intel => "intel",
            Self::IntelFull => "intel-full",
            Self::FiveLevels => "five-levels",
        }
    }

    /// Whether a run of this tier includes the tests of `other`.
    fn includes(self, other: Self) -> bool {
        self == other || matches!((self, other), (Self::Full, Self::Gate) | (Self::IntelFull, Self::Intel))
    }
}

/// What the guests' kernels may say in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alarms {
    /// Every warning is a failure.
    Fail,
    /// The test brings them about.
    Wanted,
}

/// One test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Test {
    /// `group::what_holds`.
    pub(crate) name: &'static str,
    /// When it is run.
    pub(crate) tier: Tier,
    /// What its guests' kernels may say.
    pub(crate) alarms: Alarms,
    /// Does it.
    pub(crate) run: fn() -> Result<()>,
}

impl Test {
    /// A test in which no guest's kernel may complain.
    pub(crate) const fn new(name: &'static str, tier: Tier, run: fn() -> Result<()>) -> Self {
        Self { name, tier, alarms: Alarms::Fail, run }
    }

    /// A test that makes a guest's kernel complain.
    pub(crate) const fn with_alarms(name: &'static str, tier: Tier, run: fn() -> Result<()>) -> Self {
        Self { name, tier, alarms: Alarms::Wanted, run }
    }
}

/// Run the system tests on this KVM host
#[derive(Debug, Parser)]
#[command(name = "lucos-tests", version)]
#[command(after_help = "The gate runs it. By hand: cargo xtask kvm-host -- lucos-tests pause::")]
struct Line {
    /// Which tests to run; `full` includes those of `gate`
    #[arg(long, default_value = "gate")]
    tier: Tier,
    /// Run only this part of them, as in `1/2`: so that several hosts share them
    #[arg(long, value_name = "N/OF", value_parser = Part::parse)]
    part: Option<Part>,
    /// Only list them
    #[arg(long)]
    list: bool,
    /// Run tests of any tier whose name contains one of these
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

/// One of several parts of the tests. Those that take long are not far from each other, so each part has every so many-th.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    number: usize,
    of: usize,
}

impl Part {
    fn parse(text: &str) -> Result<Self, String> {
        let parts =
            text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match parts {
            Some((number, of)) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err("write which part, from 1 on, and of how many: 1/2".to_owned()),
        }
    }

    fn take<T>(self, all: Vec<T>) -> Vec<T> {
        all.into_iter().skip(self.number - 1).step_by(self.of).collect()
    }
}

impl Line {
    fn takes(&self, test: &Test) -> bool {
        if self.filters.is_empty() {
            self.tier.includes(test.tier)
        } else {
            self.filters.iter().any(|filter| test.name.contains(filter.as_str()))
        }
    }
}

/// Runs what the command line asks for.
pub(crate) fn main(tests: &[Test]) -> ExitCode {
    let line = Line::parse();
    let (taken, left): (Vec<&Test>, Vec<&Test>) = tests.iter().partition(|test| line.takes(test));
    let taken = line.part.map_or(taken.clone(), |part| part.take(taken));
    let trials = taken
        .iter()
        .map(|&&test| Trial::test(test.name, move || supervise(&test)).with_kind(test.tier.name()));
    // One after the other: the hosts that an emulator makes are slow enough with one guest at a time.
    let arguments = Arguments { list: line.list, test_threads: Some(1), ..Arguments::default() };
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    if line.list {
        return ExitCode::SUCCESS;
    }
    report_second_tries();
    report_times();
    report_left_out(&left);
    conclusion.exit_code()
}

/// The gate looks for these lines, so that no second try passes unnoticed.
fn report_second_tries() {
    for (name, why) in &report().second_tries {
        println!("SECOND TRY: {name}: {why}");
    }
}

fn report_times() {
    println!("seconds each took:");
    let report = report();
    for (name, took) in &report.times {
        println!("  {:7.1}  {name}", took.as_secs_f64());
    }
    let total: Duration = report.times.iter().map(|(_, took)| *took).sum();
    println!("  {:7.1}  in all", total.as_secs_f64());
}

fn report_left_out(left: &[&Test]) {
    if left.is_empty() {
        println!("nothing was left out");
        return;
    }
    println!("left out, {} tests:", left.len());
    for test in left {
        println!("  [{}] {}", test.tier.name(), test.name);
    }
}

/// What is known across tests.
#[derive(Debug, Default)]
struct Report {
    /// The transcripts of the test that runs.
    watched: Vec<Arc<Transcript>>,
    times: Vec<(&'static str, Duration)>,
    /// Tests that failed once, and why.
    second_tries: Vec<(&'static str, String)>,
}

static REPORT: Mutex<Report> =
    Mutex::new(Report { watched: Vec::new(), times: Vec::new(), second_tries: Vec::new() });

/// How many tests of a run may be tried a second time, on an emulated host.
///
/// Emulators have faults of their own: about one guest in a hundred stands still or falls over for no reason that is
/// to be found in it, under any VMM. A real host gives no second try, and a fault of ours that shows now and then
/// soon needs more of them than this.
const SECOND_TRIES: usize = 2;

fn report() -> MutexGuard<'static, Report> {
    REPORT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has these transcripts shown if the test that runs fails, and looked through if it does not.
pub(crate) fn watch(console: &Arc<Transcript>, messages: &Arc<Transcript>) {
    report().watched.extend([Arc::clone(console), Arc::clone(messages)]);
}

fn supervise(test: &Test) -> Result<(), Failed> {
    let result = attempt(test);
    let Err(failure) = &result else { return result };
    let spent = report().second_tries.len();
    if std::env::var_os("LUCOS_EMULATED").is_none() || spent >= SECOND_TRIES {
        return result;
    }
    let said = failure.message().unwrap_or_default();
    println!("\n---- {}, first try ----\n{said}\n---- {}, second try ----", test.name, test.name);
    let why = said.lines().next().unwrap_or_default().to_owned();
    report().second_tries.push((test.name, why));
    attempt(test)
}

fn attempt(test: &Test) -> Result<(), Failed> {
    report().watched.clear();
    let begin = Instant::now();
    let result = usable_kvm().and_then(|()| (test.run)());
    report().times.push((test.name, begin.elapsed()));
    let watched = std::mem::take(&mut report().watched);
    keep(test.name, &watched);
    let result = result.and_then(|()| look_through(test, &watched));
    result.map_err(|error| {
        let mut failure = format!("{error:#}");
        for transcript in &watched {
            failure = format!("{failure}\n--- the end of {} ---\n{}", transcript.name(), transcript.tail());
        }
        Failed::from(failure)
    })
}

/// These tests are of no use without KVM, so they fail there; skipping would look like success.
fn usable_kvm() -> Result<()> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    kvm.map(drop).context("there is no usable /dev/kvm here; `lucos-vmm doctor` says why")
}

/// Finds what no assertion looks for: complaints of a guest's kernel, and panics of the VMM.
fn look_through(test: &Test, watched: &[Arc<Transcript>]) -> Result<()> {
    for transcript in watched {
        let said = transcript.text();
        for bug in ["panicked at", "this is a bug"] {
            ensure!(!said.contains(bug) || !transcript.name().contains("lucos-vmm"), "lucos-vmm says: {bug}");
        }
        if test.alarms == Alarms::Fail {
            let alarms = kernel_log::alarms(&said);
            ensure!(alarms.is_empty(), "{} has alarms:\n{}", transcript.name(), alarms.join("\n"));
        }
    }
    Ok(())
}

/// Keeps the transcripts of a test in the folder for results, if there is one.
fn keep(test: &str, watched: &[Arc<Transcript>]) {
    let Some(out) = std::env::var_os("LUCOS_OUT") else { return };
    let folder = Path::new(&out).join("consoles");
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for transcript in watched {
        let number = seen.entry(transcript.name()).or_default();
        *number += 1;
        let what = if transcript.name().contains("console") { "console" } else { "vmm" };
        let name = format!("{}.{what}{number}.log", test.replace("::", "."));
        let kept = fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(name), transcript.text()));
        if let Err(error) = kept {
            eprintln!("cannot keep a console in {}: {error}", folder.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_include_what_they_say() {
        assert!(Tier::Full.includes(Tier::Gate) && !Tier::Gate.includes(Tier::Full));
        assert!(Tier::IntelFull.includes(Tier::Intel) && !Tier::Intel.includes(Tier::IntelFull));
        assert!(!Tier::Full.includes(Tier::Intel) && !Tier::Intel.includes(Tier::Gate));
    }

    #[test]
    fn a_filter_takes_tests_of_any_tier() {
        let line = Line::parse_from(["lucos-tests", "boot", "pause"]);
        assert!(line.takes(&Test::new("boot::x", Tier::Full, || Ok(()))));
        assert!(!line.takes(&Test::new("disk::x", Tier::Gate, || Ok(()))));
    }

    #[test]
    fn all_parts_together_are_all_tests() {
        let part = |text| Part::parse(text).unwrap().take((0..7).collect::<Vec<_>>());
        assert_eq!(part("1/1"), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!((part("1/3"), part("2/3"), part("3/3")), (vec![0, 3, 6], vec![1, 4], vec![2, 5]));
        for wrong in ["", "1", "0/2", "3/2", "1/0", "a/b"] {
            assert!(Part::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_unique_and_grouped() {
        let tests = crate::cases::all();
        let mut names: Vec<&str> = tests.iter().map(|test| test.name).collect();
        assert!(names.iter().all(|name| name.contains("::")));
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
