//! `cargo xtask test`: every test of the workspace, each where it can run, counted by what the runners say.
//!
//! | where | what |
//! |---|---|
//! | here | formatting, lints, [`crate::tidy`]; unit and integration tests that need no KVM |
//! | here, with Debian's kernels at hand | tests that read kernel images (`images_*.rs`) |
//! | AMD host, one session | tests of the VMM on tiny guests (`vmm/tests/kvm_*.rs`), then the system tests |
//! | another one beside it, in the gate, where it is emulated | half of the system tests |
//! | Intel host, beside all that | the system tests that an interpreter gets through; in the full run, what it can of the tests of traps |
//! | AMD hosts with another kernel or five-level paging, behind the Intel host (`--full`) | the same as on the first one; what needs five levels |
//!
//! A test that has to skip itself here, for want of a right or a device, is given a second try on the AMD host.

mod bochs;
mod counts;
mod deadline;
mod fuzzing;
mod inputs;
mod only;
mod process;
mod programs;
mod report;
mod results;
mod session;
mod style;
mod suite;

use std::path::Path;
use std::process::ExitCode;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::bed::{self, Cpu, HostSpec, Image};
use crate::cargo::cargo;
use crate::kernels::Series;
use crate::progress;
use deadline::Deadline;
pub use only::Only;
use process::Errors;
use programs::TestProgram;
use report::{Report, seconds};
use session::{Session, Show, Step};
use suite::Suite;

/// What of it to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What needs no KVM host: for a quick look before the gate, which it does not replace.
    Here,
    /// What every change must pass.
    Gate,
    /// Every host kernel, and the tests that take long.
    Full,
}

/// How long the gate may take on 2 cores, the first download and build included. A machine that is busy with other
/// work is no reason to refuse a change, so this is remarked upon, and the limit lies further out.
const GATE_AIM: Duration = Duration::from_mins(45);

impl Extent {
    /// When it is ended, whatever is still missing.
    pub fn limit(self) -> Duration {
        match self {
            Self::Here | Self::Gate => Duration::from_mins(75),
            Self::Full => Duration::from_hours(6),
        }
    }

    fn tier(self) -> &'static str {
        match self {
            Self::Here | Self::Gate => "gate",
            Self::Full => "full",
        }
    }

    /// `None` is the machine's own KVM where it has one.
    fn host_kernels(self) -> &'static [Option<Series>] {
        match self {
            Self::Here => &[],
            Self::Gate => &[None],
            Self::Full => &[Some(Series::V6_1), Some(Series::V6_12)],
        }
    }
}

/// Runs it and prints the report; the exit code tells whether everything passed.
pub fn run(extent: Extent, only: &Only, limit: Duration) -> Result<ExitCode> {
    bed::interrupt::watch()?;
    let deadline = Deadline::after(limit);
    let report = match extent {
        Extent::Here => only_here(only, deadline)?,
        Extent::Gate | Extent::Full => everything(extent, only, deadline)?,
    };
    let took = seconds(deadline.elapsed());
    println!("\n{}", report.text());
    if !only.suites.is_empty() {
        println!("Not run: suites without {} in their names.", only.suites.join(" or "));
    }
    if !only.places.is_empty() {
        println!("Not run: what runs elsewhere than on {}.", only.places.join(" or "));
    }
    match extent {
        Extent::Here => println!("Not run: everything that needs a KVM host or kernel images."),
        Extent::Gate => {
            println!(
                "Not run: host kernels other than the default, and tests of tier full; {}.",
                results::age()
            );
            if deadline.elapsed() > GATE_AIM {
                println!("The gate should take {} at most.", seconds(GATE_AIM));
            }
        }
        Extent::Full => println!("In the files: {}.", results::age()),
    }
    println!("Took {took}.\n\n{}", report.counts());
    let asked = [&only.suites[..], &only.places].concat().join(" or ");
    anyhow::ensure!(report.counts().total() > 0, "no suite and no place has {asked} in its name");
    Ok(if report.counts().failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn only_here(only: &Only, deadline: Deadline) -> Result<Report> {
    let mut report = Report::default();
    let programs = programs::build(deadline)?;
    here(&programs, only, deadline, &mut report, None)?;
    Ok(report)
}

fn everything(extent: Extent, only: &Only, deadline: Deadline) -> Result<Report> {
    let mut report = Report::default();
    thread::scope(|scope| {
        // Downloads wait for the network, builds for the processor: side by side.
        let small = scope.spawn(inputs::small);
        let programs = programs::build(deadline)?;
        let small = join(small)?;
        deadline.check("any test")?;

        // Bochs is slow and uses one processor: it starts first, and everything else runs beside it.
        let more = if extent == Extent::Full { inputs::holes()? } else { Vec::new() };
        let for_intel = [small.clone(), more].concat();
        let sessions: Vec<Session> = extent
            .host_kernels()
            .iter()
            .map(|&kernel| intel(&for_intel, kernel, &programs, extent, only, deadline))
            .collect::<Result<_>>()?;
        let intel = scope.spawn(move || -> Result<Vec<Suite>> {
            let suites = sessions.into_iter().map(|session| attend(&session, Show::Never, extent, deadline));
            Ok(suites.collect::<Result<Vec<_>>>()?.concat())
        });
        let large = scope.spawn(move || inputs::large(extent == Extent::Full));
        let mut again = Vec::new();
        // Wherever the rest goes: what skips itself here is run there.
        here(&programs, only, deadline, &mut report, Some(&mut again))?;
        let images = [small, join(large)?].concat();
        if only.goes_to(HERE) {
            with_images(&programs, &images, only, deadline, &mut report)?;
            keep(report.suites(), extent);
        }
        let hosts = extent.host_kernels().iter();
        let mut sessions: Vec<Session> = hosts
            .flat_map(|&kernel| amd(&images, kernel, &programs, &again, extent, only))
            .chain((extent == Extent::Full).then(|| five_levels(&images, only)))
            .collect();
        // An emulated host takes one processor, and a machine is said to have two.
        let others = sessions.split_off(1);
        let beside = scope.spawn(move || -> Result<Vec<Suite>> {
            let mut suites = join(intel)?;
            for session in others {
                suites.extend(attend(&session, Show::Live, extent, deadline)?);
            }
            Ok(suites)
        });
        for session in sessions {
            attend(&session, Show::Live, extent, deadline)?.into_iter().for_each(|suite| report.add(suite));
        }
        progress::note("waiting for the hosts beside this one");
        join(beside)?.into_iter().for_each(|suite| report.add(suite));
        Ok(report)
    })
}

/// Runs a session to its end and keeps what came of it.
fn attend(session: &Session, show: Show, extent: Extent, deadline: Deadline) -> Result<Vec<Suite>> {
    let suites = session.run(show, deadline)?;
    keep(&suites, extent);
    Ok(suites)
}

/// Keeps what a full run found in one place, as soon as it is known: the places behind it take hours.
fn keep(suites: &[Suite], extent: Extent) {
    if extent != Extent::Full || suites.is_empty() {
        return;
    }
    match results::write(suites) {
        Ok(file) => progress::note(format!("written to {}", file.display())),
        Err(error) => progress::note(format!("not written to a file: {error:#}")),
    }
}

/// Runs what needs no KVM host, and puts what has to be tried again on one into `again`.
fn here(
    programs: &[TestProgram],
    only: &Only,
    deadline: Deadline,
    report: &mut Report,
    mut again: Option<&mut Vec<Step>>,
) -> Result<()> {
    if only.takes(style::NAME) {
        report.add(style::check(deadline)?);
    }
    let of_here = |program: &&TestProgram| !program.needs_kvm() && !program.needs_images();
    for program in programs.iter().filter(of_here).filter(|program| only.takes(&program.name)) {
        let mut suite = as_cargo_would(program, None, deadline)?;
        if let Some(again) = &mut again {
            again.extend(second_try(program, &mut suite));
        }
        report.add(suite);
    }
    if only.takes(DOC_TESTS) {
        report.add(doc_tests(deadline)?);
    }
    Ok(())
}

/// The place of what needs no KVM host.
const HERE: &str = "here";

/// Runs what reads kernel images and needs no KVM host.
fn with_images(
    programs: &[TestProgram],
    images: &[Image],
    only: &Only,
    deadline: Deadline,
    report: &mut Report,
) -> Result<()> {
    let folder = tempfile::tempdir().context("cannot make a folder for links to kernel images")?;
    for image in images {
        image.link_in(folder.path())?;
    }
    for program in programs.iter().filter(|program| program.needs_images() && only.takes(&program.name)) {
        report.add(as_cargo_would(program, Some(folder.path()), deadline)?.must_test_something());
    }
    if only.takes(fuzzing::NAME) {
        report.add(fuzzing::check(folder.path(), deadline)?.must_test_something());
    }
    Ok(())
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the test runner panicked; it says why above"))?
}

fn as_cargo_would(program: &TestProgram, images: Option<&Path>, deadline: Deadline) -> Result<Suite> {
    let mut command = std::process::Command::new(&program.executable);
    command.current_dir(&program.package).env("CARGO_MANIFEST_DIR", &program.package);
    if let Some(images) = images {
        command.env("LUCOS_IMAGES", images);
    }
    let finished = process::run(&mut command, Errors::Kept, deadline, &program.name)?;
    let status = finished.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX);
    Ok(Suite::judge(&program.name, HERE, finished.lines, Some(status), finished.took))
}

const DOC_TESTS: &str = "examples in the documentation";

fn doc_tests(deadline: Deadline) -> Result<Suite> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--locked", "--doc"]);
    let finished = process::run(&mut command, Errors::Kept, deadline, "the examples in the documentation")?;
    let status = u8::from(!finished.status.success());
    Ok(Suite::judge(DOC_TESTS, HERE, finished.lines, Some(status), finished.took))
}

/// Takes from `suite` what skipped itself; the AMD host has root, taps and a KVM.
fn second_try(program: &TestProgram, suite: &mut Suite) -> Option<Step> {
    let skipped = std::mem::take(&mut suite.skipped);
    if skipped.is_empty() {
        return None;
    }
    suite.counts.skipped -= skipped.len();
    let names: Vec<&str> = skipped.iter().map(|each| each.test.as_str()).collect();
    progress::note(format!("{}: {} tests cannot run here and go to the KVM host", program.name, names.len()));
    let name = format!("{}, second try", program.name);
    Some(step(&name, TESTS, program, &format!("--exact {}", names.join(" "))))
}

/// Where a host has cargo's test programs, unless it has only what it is given.
const TESTS: &str = "LUCOS_BIN/deps";

/// Runs a test program from a folder below one that a variable names.
fn step(name: &str, folder: &str, program: &TestProgram, arguments: &str) -> Step {
    let file = program.executable.file_name().unwrap_or_default().to_string_lossy();
    Step { name: name.to_owned(), command: format!("\"${folder}/{file}\" {arguments}") }
}

/// On the AMD host: what needs KVM, and the system tests. The gate has one such host, and where that is emulated, it has two to
/// share the system tests.
fn amd(
    images: &[Image],
    kernel: Option<Series>,
    programs: &[TestProgram],
    again: &[Step],
    extent: Extent,
    only: &Only,
) -> Vec<Session> {
    let spec =
        HostSpec { cpu: kernel.map(|_| Cpu::Amd), kernel, images: images.to_vec(), ..HostSpec::default() };
    let is_shared = extent == Extent::Gate && matches!(spec.host().0, bed::Host::Emulated(_));
    let parts: &[Option<&str>] = if is_shared { &[Some("1/2"), Some("2/2")] } else { &[None] };
    let mut sessions = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let mut steps = Vec::new();
        if index == 0 {
            steps.extend(again.iter().cloned());
            // One test at a time: they measure pauses, and a host has few processors.
            let kvm = programs.iter().filter(|program| program.needs_kvm());
            steps.extend(kvm.map(|program| step(&program.name, TESTS, program, "--test-threads=1")));
        }
        steps.push(system_tests(extent.tier(), *part));
        sessions.push(only.of(Session { place: name(&spec), spec: spec.clone(), steps }));
    }
    sessions
}

/// A host whose guests use five levels of page tables.
fn five_levels(images: &[Image], only: &Only) -> Session {
    let spec = HostSpec {
        cpu: Some(Cpu::Amd),
        kernel: Some(Series::V6_1),
        five_levels: true,
        images: images.to_vec(),
        ..HostSpec::default()
    };
    let steps = vec![system_tests("five-levels", None)];
    only.of(Session { place: "AMD host, five-level paging".to_owned(), spec, steps })
}

fn intel(
    images: &[Image],
    kernel: Option<Series>,
    programs: &[TestProgram],
    extent: Extent,
    only: &Only,
    deadline: Deadline,
) -> Result<Session> {
    let traps = if extent == Extent::Full { bochs::program(programs) } else { None };
    let with = traps.iter().map(|program| program.executable.clone()).collect();
    let images = images.to_vec();
    let spec = HostSpec { cpu: Some(Cpu::Intel), kernel, images, with, ..HostSpec::default() };
    let tier = if extent == Extent::Full { "intel-full" } else { "intel" };
    let mut steps = vec![system_tests(tier, None)];
    if let Some(traps) = traps {
        steps.extend(bochs::traps(traps, deadline)?);
    }
    Ok(only.of(Session { place: name(&spec), spec, steps }))
}

fn system_tests(tier: &str, part: Option<&str>) -> Step {
    let (of, option) = match part {
        Some(part) => (format!(", part {part}"), format!(" --part {part}")),
        None => (String::new(), String::new()),
    };
    Step {
        name: format!("system tests, tier {tier}{of}"),
        command: format!("lucos-tests --tier {tier}{option}"),
    }
}

fn name(spec: &HostSpec) -> String {
    let host = match spec.host().0 {
        bed::Host::Local => return "this machine's KVM".to_owned(),
        bed::Host::Emulated(Cpu::Amd) => "AMD host",
        bed::Host::Emulated(Cpu::Intel) => "Intel host",
    };
    spec.kernel.map_or_else(|| host.to_owned(), |kernel| format!("{host} {kernel}"))
}
