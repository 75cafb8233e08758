//! How long it takes to watch pages, and to watch them no longer, beside a pause of the same guest.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::api::{Lucos, Stop};
use crate::figure::Figure;
use crate::groups::{Setting, programmed};
use crate::guest::insist;
use crate::programs::{Passes, passes, spin};
use crate::samples::Samples;

/// Of each.
const ROUNDS: usize = 9;
/// Between two of them, so that every vCPU is back at its work.
const RUN_TIME: Duration = Duration::from_millis(20);
/// How many pages are watched at once.
const COUNTS: [usize; 3] = [1, 64, 4096];

pub(super) fn measure(setting: &Setting) -> Result<()> {
    let times = insist(|| Times::of(setting))?;
    let pause = Samples::micros(&times.pause);
    Figure::median("arm.pause", &pause, "us").print()?;
    for case in &times.cases {
        for (verb, took) in [("arm", &case.arm), ("disarm", &case.disarm)] {
            Figure::median(format!("arm.{verb}_{}", case.name), &Samples::micros(took), "us")
                .against("arm.pause", pause.median())
                .print()?;
        }
        Figure::median(format!("arm.report_{}", case.name), &Samples::micros(&case.report), "us")
            .against("arm.pause", pause.median())
            .print()?;
    }
    Ok(())
}

/// As a client sees them.
struct Times {
    pause: Vec<Duration>,
    cases: Vec<Case>,
}

struct Case {
    name: String,
    pages: Vec<u64>,
    arm: Vec<Duration>,
    disarm: Vec<Duration>,
    /// Being told which pages are watched, and nothing else: what of the others is talk.
    report: Vec<Duration>,
}

impl Times {
    fn of(setting: &Setting) -> Result<Self> {
        let script = "taskset 2 /tmp/1 & taskset 1 /tmp/0 & wait";
        let mut machine = programmed::machine(setting, &[passes()?, spin()?], Passes::HUGE_PAGES, script)?;
        machine.cpus = 2;
        let (_guest, mut lucos, pages) = programmed::start(&machine, Passes::HUGE_PAGES)?;
        let memory = Passes::at(pages);
        let mut cases = Vec::new();
        for count in COUNTS {
            cases.push(Case::new(format!("{count}_scattered"), memory.among(count)));
            if count > 1 {
                cases.push(Case::new(format!("{count}_in_a_row"), memory.next_to_each_other(count)));
            }
        }
        let mut pause = Vec::new();
        for _ in 0..ROUNDS {
            pause.push(timed(|| lucos.stop().map(drop))?);
            lucos.go_on()?;
            for case in &mut cases {
                case.measure(&lucos)?;
            }
        }
        Ok(Self { pause, cases })
    }
}

impl Case {
    fn new(name: String, pages: Vec<u64>) -> Self {
        Self { name, pages, arm: Vec::new(), disarm: Vec::new(), report: Vec::new() }
    }

    fn measure(&mut self, lucos: &Lucos) -> Result<()> {
        self.arm.push(timed(|| lucos.arm(&self.pages))?);
        self.report.push(timed(|| lucos.trap_counts().map(drop))?);
        self.disarm.push(timed(|| lucos.disarm())?);
        Ok(())
    }
}

fn timed(act: impl FnOnce() -> Result<()>) -> Result<Duration> {
    thread::sleep(RUN_TIME);
    let begin = Instant::now();
    act()?;
    Ok(begin.elapsed())
}
