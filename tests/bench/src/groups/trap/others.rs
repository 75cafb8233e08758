//! What a vCPU that is trapped all the time costs the others, and what they cost it.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::window::{Subject, Window};
use crate::figure::{Aim, Figure};
use crate::groups::Setting;
use crate::guest::insist;
use crate::programs::TOUCHED;
use crate::samples::Samples;

/// Each of: nothing watched, and every way in which a page is touched.
const ROUNDS: usize = 6;
/// Counters that are shown: of the VMM's, of what it has done about traps, and of KVM's.
const SHOWN: [&str; 12] = [
    "trap_in_place",
    "trap_stepped",
    "vmm_trapped",
    "vmm_interrupted",
    "kvm_exits",
    "kvm_irq_exits",
    "kvm_request_irq_exits",
    "kvm_pf_taken",
    "kvm_tlb_flush",
    "kvm_remote_tlb_flush_requests",
    "kvm_remote_tlb_flush",
    "kvm_host_state_reload",
];

pub(super) fn measure(setting: &Setting) -> Result<()> {
    let mut alone = None;
    for cpus in [1, 2, 4] {
        let seen = insist(|| Seen::of(setting, cpus, None))?;
        seen.print_traps(&format!("{cpus}cpu"), alone.as_ref())?;
        if cpus > 1 {
            seen.print_others(&format!("{cpus}cpu"), true)?;
        }
        if cpus != 2 {
            seen.print_counts(&format!("{cpus}cpu"))?;
        }
        alone = alone.or(Some(seen));
    }
    let held = insist(|| Seen::of(setting, 2, Some("hold-all")))?;
    held.print_traps("2cpu_hold_all", alone.as_ref())?;
    held.print_others("2cpu_hold_all", false)
}

/// What was seen of one guest.
struct Seen {
    free: Vec<Window>,
    /// For each way in which a page is touched.
    touched: Vec<Vec<Window>>,
    /// Exits of the other vCPUs in a second: with nothing watched, and for each way.
    exits_of_others: Vec<Vec<f64>>,
}

impl Seen {
    fn of(setting: &Setting, cpus: u8, traps: Option<&'static str>) -> Result<Self> {
        let subject = Subject::start(setting, cpus, traps)?;
        let states: Vec<Option<usize>> = [None].into_iter().chain((0..TOUCHED.len()).map(Some)).collect();
        let mut windows: Vec<Vec<Window>> = states.iter().map(|_| Vec::new()).collect();
        let mut exits_of_others: Vec<Vec<f64>> = states.iter().map(|_| Vec::new()).collect();
        for round in 0..ROUNDS {
            for (number, &state) in states.iter().enumerate() {
                subject.watch(state)?;
                let window = subject.window()?;
                let trapped = window.count("trap_accesses") > 0.0;
                ensure!(trapped == state.is_some(), "accesses of {state:?}: {:?}", window.counts);
                windows[number].push(window);
                // Counting them makes exits slower: not in a window, and not as often.
                if cpus > 1 && round % 2 == 0 {
                    exits_of_others[number].push(subject.exits_of_others()?);
                }
            }
        }
        let touched = windows.split_off(1);
        Ok(Self { free: windows.remove(0), touched, exits_of_others })
    }

    /// The time of a trap; `alone` is a guest of one vCPU.
    fn print_traps(&self, name: &str, alone: Option<&Self>) -> Result<()> {
        for (number, kind) in TOUCHED.iter().enumerate() {
            for (what, time) in
                [("processor", processor_time as fn(&Window) -> Duration), ("elapsed", |window| window.took)]
            {
                let each = |seen: &Self| {
                    let windows = seen.touched[number].iter();
                    Samples::of(
                        windows
                            .map(|window| time(window).as_secs_f64() * 1e6 / window.count("trap_accesses"))
                            .collect(),
                    )
                };
                let figure = Figure::median(format!("trap.{kind}_{what}_{name}"), &each(self), "us");
                match alone {
                    Some(alone) => figure.against("with 1 vCPU", each(alone).median()).print()?,
                    None => figure.print()?,
                }
            }
        }
        Ok(())
    }

    /// How far the others come meanwhile, and how often they leave the guest; each time beside the same right before it.
    fn print_others(&self, name: &str, aims: bool) -> Result<()> {
        let print = |what: &str, shares: Vec<f64>, aim| {
            let figure = Figure::median(format!("trap.others_{what}_{name}"), &Samples::of(shares), "of it")
                .against("with no page watched", 1.0);
            if aims { figure.aiming(aim) } else { figure }.print()
        };
        let work = |window: &Window| window.rate("vmm_port_in");
        for (number, kind) in TOUCHED.iter().enumerate() {
            let pairs = self.touched[number].iter().zip(&self.free);
            let shares = pairs.map(|(watched, free)| work(watched) / work(free)).collect();
            print(&format!("work_{kind}"), shares, Aim::RatioAtLeast(0.95))?;
            let pairs = self.exits_of_others[number + 1].iter().zip(&self.exits_of_others[0]);
            let shares = pairs.map(|(watched, free)| watched / free).collect();
            print(&format!("exits_{kind}"), shares, Aim::RatioAtMost(1.05))?;
        }
        Ok(())
    }

    /// What there is for each 1,000 traps more than without them.
    fn print_counts(&self, name: &str) -> Result<()> {
        for (windows, kind) in self.touched.iter().zip(TOUCHED) {
            for counter in SHOWN {
                let extra = |(window, free): (&Window, &Window)| {
                    let usual = free.rate(counter) * window.took.as_secs_f64();
                    (window.count(counter) - usual) * 1000.0 / window.count("trap_accesses")
                };
                let samples = Samples::of(windows.iter().zip(&self.free).map(extra).collect());
                Figure::median(format!("trap.{kind}_{name}_{counter}"), &samples, "/1000 traps").print()?;
            }
        }
        Ok(())
    }
}

fn processor_time(window: &Window) -> Duration {
    window.processor_time
}
