//! How fast a guest gets on while pages are watched that it does not touch, and afterwards.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::api::Lucos;
use crate::figure::{Aim, Figure};
use crate::groups::{Setting, programmed};
use crate::guest::insist;
use crate::kvm_stats::KvmStats;
use crate::programs::{Passes, passes};
use crate::samples::Samples;

/// Windows of each.
const ROUNDS: usize = 7;
/// For how long passes are counted.
const LENGTH: Duration = Duration::from_millis(500);
/// After a change, KVM's tables have to fill again, by a fault for each page: so many passes are not counted.
const REFILLING: u64 = 3;
/// Between two looks, and how long one thing is waited for.
const LOOK: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(30);
/// The VMM makes huge pages in the background, at longer and longer intervals: it has made all when nothing has changed for so long.
const UNCHANGED: Duration = Duration::from_secs(8);
/// For no longer than that.
const UNCHANGED_LIMIT: Duration = Duration::from_secs(30);
/// How many pages are watched.
const COUNTS: [usize; 3] = [1, 64, 1024];

pub(super) fn measure(setting: &Setting) -> Result<()> {
    let seen = insist(|| Seen::of(setting))?;
    for case in &seen.cases {
        let figure =
            Figure::median(format!("arm.passes_{}", case.name), &Samples::of(case.shares.clone()), "of it")
                .against("with no page watched", 1.0);
        let figure = if case.aims { figure.aiming(Aim::RatioAtLeast(0.99)) } else { figure };
        figure.print()?;
        let [watched, free] = [&case.faults.0, &case.faults.1].map(|faults| Samples::of(faults.clone()));
        Figure::median(format!("arm.faults_{}", case.name), &watched, "/1000 passes")
            .against("with no page watched", free.median())
            .aiming(Aim::ValueAtMost(0.0))
            .print()?;
    }
    Figure::median("arm.passes_afterwards", &Samples::of(seen.free), "/s")
        .against("after the pages were watched once", Samples::of(seen.before).median())
        .aiming(Aim::RatioAtLeast(0.99))
        .print()?;
    let [before, armed, after] = seen.huge_pages.map(Samples::of);
    let reference = "after the pages were watched once";
    Figure::median("arm.huge_pages_1024_among", &armed, "huge pages")
        .against(reference, before.median())
        .print()?;
    Figure::median("arm.huge_pages_afterwards", &after, "huge pages")
        .against(reference, before.median())
        .aiming(Aim::RatioAtLeast(1.0))
        .print()
}

struct Seen {
    /// Passes in a second when the pages were watched once, for a moment, and when none was any more.
    before: Vec<f64>,
    free: Vec<f64>,
    cases: Vec<Case>,
    /// By how many huge pages KVM maps guest memory: before, with most pages watched that are among those in use, and afterwards.
    huge_pages: [Vec<f64>; 3],
}

struct Case {
    name: String,
    aims: bool,
    pages: Vec<u64>,
    /// Passes, beside those with none watched right afterwards.
    shares: Vec<f64>,
    /// Faults of nested paging for each 1,000 passes, in both.
    faults: (Vec<f64>, Vec<f64>),
}

impl Seen {
    fn of(setting: &Setting) -> Result<Self> {
        let machine = programmed::machine(setting, &[passes()?], Passes::HUGE_PAGES, "/tmp/0")?;
        let (guest, lucos, pages) = programmed::start(&machine, Passes::HUGE_PAGES)?;
        let (stats, memory) = (KvmStats::of(guest.pid())?, Passes::at(pages));
        let huge_pages = || -> Result<f64> { Ok(f64::from(u32::try_from(stats.count("pages_2m")?)?)) };
        let case = |name: &str, aims, pages: Vec<u64>| Case {
            name: format!("{}_{name}", pages.len()),
            aims,
            pages,
            shares: Vec::new(),
            faults: <(Vec<f64>, Vec<f64>)>::default(),
        };
        let apart = COUNTS.map(|count| case("apart", true, memory.apart(count)));
        let among = COUNTS.map(|count| case("among", false, memory.among(count)));
        let mut seen = Self {
            before: Vec::new(),
            free: Vec::new(),
            cases: apart.into_iter().chain(among).collect(),
            huge_pages: Default::default(),
        };
        // When a page is no longer watched its huge page is asked for, also where the VMM had not come to ask before: what there is
        // afterwards is held against what there is when that was done once.
        for case in &seen.cases {
            lucos.arm(&case.pages)?;
            lucos.disarm()?;
        }
        wait_for_huge_pages(&stats)?;
        for _ in 0..ROUNDS {
            seen.before.push(Pace::of(&lucos, &stats)?.passes);
        }
        seen.huge_pages[0].push(huge_pages()?);
        for _ in 0..ROUNDS {
            for case in &mut seen.cases {
                lucos.arm(&case.pages)?;
                let watched = Pace::of(&lucos, &stats)?;
                if case.name == "1024_among" {
                    seen.huge_pages[1].push(huge_pages()?);
                }
                let counts = lucos.trap_counts()?;
                ensure!(counts.get("accesses") == Some(&0), "these pages are touched: {counts:?}");
                lucos.disarm()?;
                let free = Pace::of(&lucos, &stats)?;
                case.shares.push(watched.passes / free.passes);
                case.faults.0.push(watched.faults);
                case.faults.1.push(free.faults);
                seen.free.push(free.passes);
            }
            seen.huge_pages[2].push(huge_pages()?);
        }
        Ok(seen)
    }
}

/// How the guest gets on.
struct Pace {
    /// In a second.
    passes: f64,
    /// Faults of nested paging, for each 1,000 passes.
    faults: f64,
}

impl Pace {
    fn of(lucos: &Lucos, stats: &KvmStats) -> Result<Self> {
        let counts = || -> Result<(u64, u64)> {
            let passes = lucos.exits()?.get("port_in").copied().unwrap_or(0);
            Ok((passes, stats.count("pf_taken")?))
        };
        let (changed, first) = (Instant::now(), counts()?.0);
        while counts()?.0 < first + REFILLING {
            ensure!(changed.elapsed() < LIMIT, "the guest stands still");
            thread::sleep(LOOK);
        }
        let (begin, before) = (Instant::now(), counts()?);
        thread::sleep(LENGTH);
        let (took, after) = (begin.elapsed(), counts()?);
        let more = |before: u64, after: u64| u32::try_from(after.saturating_sub(before)).map(f64::from);
        let (passes, faults) = (more(before.0, after.0)?, more(before.1, after.1)?);
        ensure!(passes > 0.0, "the guest stood still for {} ms", took.as_millis());
        Ok(Self { passes: passes / took.as_secs_f64(), faults: faults * 1000.0 / passes })
    }
}

fn wait_for_huge_pages(stats: &KvmStats) -> Result<()> {
    let begin = Instant::now();
    let (mut last, mut since) = (stats.count("pages_2m")?, begin);
    while since.elapsed() < UNCHANGED && begin.elapsed() < UNCHANGED_LIMIT {
        thread::sleep(LOOK);
        let now = stats.count("pages_2m")?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(())
}
