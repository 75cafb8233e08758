//! What a VMM takes beside guest memory, and by what pages guest memory is mapped.

use std::time::Duration;

use anyhow::Result;

use super::{MEMORY_MIB, Setting};
use crate::figure::{Aim, Figure};
use crate::guest::{Guest, insist};
use crate::kvm_stats::KvmStats;
use crate::residency::{Residency, share};
use crate::samples::Samples;
use crate::vmm::Vmm;

/// After boot: huge pages are made in the background, and what was only needed to boot is given back.
const SETTLE: Duration = Duration::from_secs(5);
const ROUNDS: u16 = 2;

/// One VMM's samples.
#[derive(Debug, Default)]
struct Findings {
    beyond_mib: Vec<f64>,
    huge_share: Vec<f64>,
    kvm_huge_share: Vec<f64>,
}

impl Findings {
    fn add(&mut self, &(residency, kvm_huge_share): &(Residency, f64)) {
        self.beyond_mib.push(f64::from(residency.beyond_guest) / 1024.0);
        let small = residency.guest.saturating_sub(residency.guest_huge);
        self.huge_share.push(share(residency.guest_huge, small));
        self.kvm_huge_share.push(kvm_huge_share);
    }
}

pub(super) fn measure(setting: &Setting) -> Result<()> {
    let mut lucos = Findings::default();
    let mut qemu = Findings::default();
    for _ in 0..ROUNDS {
        lucos.add(&insist(|| look(setting, Vmm::Lucos))?);
        qemu.add(&insist(|| look(setting, Vmm::Q35))?);
    }
    let compare = |name: &str, ours: Vec<f64>, theirs: Vec<f64>, unit| {
        let theirs = Samples::of(theirs).median();
        Figure::median(name, &Samples::of(ours), unit).against(Vmm::Q35.name(), theirs)
    };
    compare("memory.beyond_guest", lucos.beyond_mib, qemu.beyond_mib, "MiB")
        .aiming(Aim::ValueAtMost(5.0))
        .print()?;
    compare("memory.huge_share_host", lucos.huge_share, qemu.huge_share, "of resident").print()?;
    compare("memory.huge_share_kvm", lucos.kvm_huge_share, qemu.kvm_huge_share, "of mapped").print()
}

fn look(setting: &Setting, vmm: Vmm) -> Result<(Residency, f64)> {
    let mut guest = Guest::start(vmm, &setting.tiny("sleep 1000"))?;
    guest.until_init()?;
    std::thread::sleep(SETTLE);
    Ok((Residency::of(guest.pid(), MEMORY_MIB)?, KvmStats::of(guest.pid())?.huge_share()?))
}
