//! From the start of the VMM's process to the first line of the guest's init.

use std::time::Duration;

use anyhow::Result;

use super::Setting;
use crate::figure::{Aim, Figure};
use crate::guest::{Guest, insist};
use crate::samples::Samples;
use crate::vmm::{Machine, Vmm};

const VMMS: [Vmm; 3] = [Vmm::Lucos, Vmm::Q35, Vmm::Microvm];

/// Boots with the packed kernel, as everybody does, and with the kernel proper: what remains without unpacking it.
pub(super) fn measure(setting: &Setting) -> Result<()> {
    let packed = setting.tiny("poweroff");
    compare("boot.init", &packed, setting.rounds)?;
    let unpacked = Machine { kernel: setting.image("vmlinux-6.1-cloud"), ..packed };
    compare("boot.init_unpacked", &unpacked, setting.rounds.div_ceil(2))
}

fn compare(name: &str, machine: &Machine, rounds: u16) -> Result<()> {
    let [lucos, q35, microvm] = times(machine, rounds)?.map(|times| Samples::seconds(&times));
    let figure = |other: &str| Figure::median(format!("{name}_vs_{other}"), &lucos, "s");
    figure("q35").against(Vmm::Q35.name(), q35.median()).aiming(Aim::RatioAtMost(0.6)).print()?;
    figure("microvm").against(Vmm::Microvm.name(), microvm.median()).aiming(Aim::RatioAtMost(1.0)).print()
}

/// One round more than asked for: the first finds files that are not in memory yet, and is not counted.
fn times(machine: &Machine, rounds: u16) -> Result<[Vec<Duration>; 3]> {
    let mut times = [const { Vec::new() }; 3];
    for round in 0..=rounds {
        // Each round begins with another VMM, so that none always follows the same one.
        for place in 0..VMMS.len() {
            let which = (place + usize::from(round)) % VMMS.len();
            let time = insist(|| boot(VMMS[which], machine))?;
            if round > 0 {
                times[which].push(time);
            }
        }
    }
    Ok(times)
}

fn boot(vmm: Vmm, machine: &Machine) -> Result<Duration> {
    let mut guest = Guest::start(vmm, machine)?;
    let time = guest.until_init()?;
    guest.off()?;
    Ok(time)
}
