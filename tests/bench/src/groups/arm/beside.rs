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
/// After a change: KVM's tables fill again.
const SETTLE: Duration = Duration::from_millis(150);
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
    }
    Figure::median("arm.passes_afterwards", &Samples::of(seen.free), "/s")
        .against("before any page was watched", Samples::of(seen.before).median())
        .aiming(Aim::RatioAtLeast(0.99))
        .print()?;
    let [before, armed, after] = seen.huge_pages.map(Samples::of);
    let reference = "before any page was watched";
    Figure::median("arm.huge_pages_1024_among", &armed, "huge pages")
        .against(reference, before.median())
        .print()?;
    Figure::median("arm.huge_pages_afterwards", &after, "huge pages")
        .against(reference, before.median())
        .aiming(Aim::RatioAtLeast(1.0))
        .print()
}

struct Seen {
    /// Passes in a second before any page was watched, and when none was any more.
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
        };
        let apart = COUNTS.map(|count| case("apart", true, memory.apart(count)));
        let among = COUNTS.map(|count| case("among", false, memory.among(count)));
        let mut seen = Self {
            before: Vec::new(),
            free: Vec::new(),
            cases: apart.into_iter().chain(among).collect(),
            huge_pages: Default::default(),
        };
        // Until the kernel has nothing else to do any more, and huge pages are made.
        thread::sleep(Duration::from_secs(5));
        for _ in 0..ROUNDS {
            seen.before.push(passes_per_second(&lucos)?);
        }
        seen.huge_pages[0].push(huge_pages()?);
        for _ in 0..ROUNDS {
            for case in &mut seen.cases {
                lucos.arm(&case.pages)?;
                let watched = passes_per_second(&lucos)?;
                if case.name == "1024_among" {
                    seen.huge_pages[1].push(huge_pages()?);
                }
                let counts = lucos.trap_counts()?;
                ensure!(counts.get("accesses") == Some(&0), "these pages are touched: {counts:?}");
                lucos.disarm()?;
                let free = passes_per_second(&lucos)?;
                case.shares.push(watched / free);
                seen.free.push(free);
            }
            seen.huge_pages[2].push(huge_pages()?);
        }
        Ok(seen)
    }
}

fn passes_per_second(lucos: &Lucos) -> Result<f64> {
    thread::sleep(SETTLE);
    let count = || -> Result<u64> { Ok(lucos.exits()?.get("port_in").copied().unwrap_or(0)) };
    let (begin, before) = (Instant::now(), count()?);
    thread::sleep(LENGTH);
    let (took, after) = (begin.elapsed(), count()?);
    Ok(f64::from(u32::try_from(after.saturating_sub(before))?) / took.as_secs_f64())
}
