//! Looking at every kernel stack from outside: how long it takes, and how much of that the guest stands still.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Setting, fresh_socket, sleepers};
use crate::api::{Lucos, Stop};
use crate::figure::{Aim, Figure};
use crate::guest::{Guest, insist};
use crate::samples::Samples;
use crate::vmm::{Machine, Vmm};

const CPUS: u8 = 4;
/// Processes that sleep.
const SLEEPERS: [u32; 3] = [10, 500, 5000];
/// Enough for the most of them.
const MEMORY_MIB: u32 = 2048;
/// Censuses after the first, and pauses of the same guest.
const LOOKS: usize = 21;
/// Between two, so that something has run.
const RUN_TIME: Duration = Duration::from_millis(50);

/// What runs while the guest is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// What a guest does that has nothing to do.
    Quiet,
    /// Processes that are made and end all the time, and others that wake each other.
    Busy,
}

impl Load {
    fn name(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Busy => "busy",
        }
    }

    fn script(self) -> &'static str {
        match self {
            Self::Quiet => "",
            Self::Busy => "(while :; do (true); done) & (yes | tr y z | cat > /dev/null) &",
        }
    }
}

/// What was seen of one guest.
#[derive(Debug)]
struct Seen {
    image: Duration,
    parking: Samples,
    first: Look,
    next: Vec<Look>,
}

/// One census.
#[derive(Debug, Clone, Copy)]
struct Look {
    took: Duration,
    paused: Duration,
    tasks: u32,
    checked: u32,
    walked: u32,
    proven: bool,
}

pub(super) fn measure(setting: &Setting) -> Result<()> {
    for load in [Load::Quiet, Load::Busy] {
        let mut few = None;
        for sleepers in SLEEPERS {
            let seen = insist(|| look(setting, sleepers, load))?;
            let median = print(load, sleepers, &seen, few)?;
            few = few.or(Some(median));
        }
    }
    Ok(())
}

fn look(setting: &Setting, sleepers: u32, load: Load) -> Result<Seen> {
    let socket = Path::new("control.sock");
    fresh_socket(socket);
    let script = sleepers::script(sleepers, load.script());
    let machine = Machine {
        cpus: CPUS,
        memory_mib: MEMORY_MIB,
        control: Some(socket.to_owned()),
        ..setting.tiny(&script)
    };
    let mut guest = Guest::start(Vmm::Lucos, &machine)?;
    sleepers::wait(&mut guest, sleepers)?;
    let mut lucos = Lucos::new(socket);
    let symbol = |lucos: &Lucos| -> Result<Duration> {
        let begin = Instant::now();
        lucos.get("vm.symbols?filter=schedule")?;
        Ok(begin.elapsed())
    };
    // The first question has the image read; the rest of the time both have in common.
    let image = symbol(&lucos)?.saturating_sub(symbol(&lucos)?);
    let first = census(&lucos)?;
    let (mut next, mut parking) = (Vec::new(), Vec::new());
    for _ in 0..LOOKS {
        std::thread::sleep(RUN_TIME);
        next.push(census(&lucos)?);
        std::thread::sleep(RUN_TIME);
        parking.extend(lucos.stop()?.took);
        lucos.go_on()?;
    }
    Ok(Seen { image, parking: Samples::micros(&parking), first, next })
}

fn census(lucos: &Lucos) -> Result<Look> {
    let begin = Instant::now();
    let report = lucos.get("vm.stacks")?;
    let took = begin.elapsed();
    let number = |value: &Value| {
        value.as_u64().and_then(|number| u32::try_from(number).ok()).context("the report lacks a number")
    };
    let effort = &report["effort"];
    Ok(Look {
        took,
        paused: Duration::from_micros(number(&report["paused_us"])?.into()),
        tasks: u32::try_from(report["stacks"].as_array().context("no stacks")?.len())?,
        checked: number(&effort["checked"])?,
        walked: number(&effort["walked"])?,
        proven: effort["proven"] == true,
    })
}

/// Prints the figures of one guest; returns the median pause. `few` is that of the guest with the fewest sleepers.
fn print(load: Load, sleepers: u32, seen: &Seen, few: Option<f64>) -> Result<f64> {
    let name = |what: &str| format!("census.{what}_{}_{sleepers}", load.name());
    let parking = seen.parking.median();
    let against = |figure: Figure| figure.against("parking 4 vCPUs", parking);
    let times = |of: fn(&Look) -> Duration| Samples::micros(&seen.next.iter().map(of).collect::<Vec<_>>());
    let counts =
        |of: fn(&Look) -> u32| Samples::of(seen.next.iter().map(|look| f64::from(of(look))).collect());

    if load == Load::Quiet && few.is_none() {
        against(Figure::median("census.image_read", &Samples::micros(&[seen.image]), "us")).print()?;
    }
    Figure::median(name("tasks"), &counts(|look| look.tasks), "tasks").print()?;
    against(Figure::median(name("first_took"), &Samples::micros(&[seen.first.took]), "us")).print()?;
    against(Figure::median(name("first_paused"), &Samples::micros(&[seen.first.paused]), "us")).print()?;
    against(Figure::median(name("next_took"), &times(|look| look.took), "us")).print()?;
    let paused = times(|look| look.paused);
    against(Figure::median(name("next_paused"), &paused, "us")).print()?;
    if let Some(few) = few {
        let growth = Figure::median(name("next_paused_growth"), &paused, "us");
        growth.against(format!("with {}", SLEEPERS[0]), few).aiming(Aim::RatioAtMost(1.5)).print()?;
    }
    Figure::median(name("next_checked"), &counts(|look| look.checked), "tasks").print()?;
    Figure::median(name("next_walked"), &counts(|look| look.walked), "stacks").print()?;
    let proven = counts(|look| u32::from(look.proven));
    Figure::of(name("next_proven"), proven.mean(), &proven, "of 1").print()?;
    Ok(paused.median())
}
