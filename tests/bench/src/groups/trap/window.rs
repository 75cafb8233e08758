//! A guest in which one vCPU touches pages that can be watched, all others work, and what is counted of them for some time.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::api::Lucos;
use crate::exit_trace::ExitTrace;
use crate::groups::{Setting, programmed};
use crate::guest::Guest;
use crate::kvm_stats::KvmStats;
use crate::programs::{PAGE, spin, touches};
use crate::threads::VcpuThread;

/// For how long everything is counted, each time.
const LENGTH: Duration = Duration::from_millis(700);
/// After a change, so that what it brings about once is over.
const SETTLE: Duration = Duration::from_millis(200);
/// Those of KVM's counters that would show a vCPU that is called out of the guest, or has to forget its translations.
const KVM: [&str; 8] = [
    "exits",
    "irq_exits",
    "request_irq_exits",
    "pf_taken",
    "tlb_flush",
    "remote_tlb_flush_requests",
    "remote_tlb_flush",
    "host_state_reload",
];

/// The guest.
pub(super) struct Subject {
    lucos: Lucos,
    stats: KvmStats,
    threads: Vec<VcpuThread>,
    page: u64,
    _guest: Guest,
}

/// What there was within [`LENGTH`], or a bit more.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) took: Duration,
    /// By `vmm_`, `kvm_` or `trap_`, and the name of the counter.
    pub(super) counts: BTreeMap<String, u64>,
    /// Processor time of the vCPU that touches the pages.
    pub(super) processor_time: Duration,
}

impl Subject {
    /// Starts it.
    pub(super) fn start(setting: &Setting, cpus: u8, traps: Option<&'static str>) -> Result<Self> {
        // taskset takes a mask of processors.
        let others: Vec<String> =
            (1..cpus).map(|cpu| format!("taskset {:x} /tmp/1 & ", 1_u32 << cpu)).collect();
        let script = format!("{} taskset 1 /tmp/0 & wait", others.concat());
        let mut machine = programmed::machine(setting, &[touches()?, spin()?], 1, &script)?;
        machine.cpus = cpus;
        machine.traps = traps;
        let (guest, lucos, pages) = programmed::start(&machine, 1)?;
        let stats = KvmStats::of(guest.pid())?;
        let threads = VcpuThread::all(guest.pid(), cpus)?;
        // Until the kernel has nothing else to do any more.
        thread::sleep(Duration::from_secs(1));
        Ok(Self { lucos, stats, threads, page: pages[0], _guest: guest })
    }

    /// Watches the page that is touched in the way of this number, or none.
    pub(super) fn watch(&self, touched: Option<usize>) -> Result<()> {
        self.lucos.disarm()?;
        if let Some(number) = touched {
            self.lucos.arm(&[self.page + number as u64 * u64::from(PAGE)])?;
        }
        thread::sleep(SETTLE);
        Ok(())
    }

    /// Counts.
    pub(super) fn window(&self) -> Result<Window> {
        let (begin, before, time_before) = (Instant::now(), self.counts()?, self.processor_time()?);
        thread::sleep(LENGTH);
        let (took, mut counts, time) = (begin.elapsed(), self.counts()?, self.processor_time()?);
        for (name, count) in &mut counts {
            *count = count.saturating_sub(before.get(name).copied().unwrap_or(0));
        }
        Ok(Window { took, counts, processor_time: time.saturating_sub(time_before) })
    }

    /// How often the other vCPUs have left guest mode, in a second.
    pub(super) fn exits_of_others(&self) -> Result<f64> {
        let trace = ExitTrace::start()?;
        let begin = Instant::now();
        thread::sleep(LENGTH);
        let (took, exits) = (begin.elapsed(), trace.exits()?);
        let others = self.threads.iter().skip(1);
        let count = others.map(|thread| exits.get(&thread.id).copied().unwrap_or(0)).sum();
        Ok(float(count) / took.as_secs_f64())
    }

    fn counts(&self) -> Result<BTreeMap<String, u64>> {
        let mut all = BTreeMap::new();
        all.extend(self.lucos.exits()?.into_iter().map(|(name, count)| (format!("vmm_{name}"), count)));
        all.extend(
            self.lucos.trap_counts()?.into_iter().map(|(name, count)| (format!("trap_{name}"), count)),
        );
        for name in KVM {
            all.insert(format!("kvm_{name}"), self.stats.count(name)?);
        }
        Ok(all)
    }

    fn processor_time(&self) -> Result<Duration> {
        self.threads.first().context("there is no vCPU")?.processor_time()
    }
}

impl Window {
    /// One counter.
    pub(super) fn count(&self, name: &str) -> f64 {
        float(self.counts.get(name).copied().unwrap_or(0))
    }

    /// The same, for each second.
    pub(super) fn rate(&self, name: &str) -> f64 {
        self.count(name) / self.took.as_secs_f64()
    }
}

fn float(count: u64) -> f64 {
    // No counter comes near that within seconds.
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
