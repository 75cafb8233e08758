//! A guest that lies in everything it says. `LUCOS_IMAGES` names the folder with the kernel that it claims to run.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod lying_guest;

use std::time::{Duration, Instant};

use update_server::addr::Gpa;
use update_server::census::{self, Survey};
use update_server::guest::Paused;
use update_server::kernel::generation::Generation;
use update_server::kernel::locate::Place;
use update_server::kernel::module_sites::sites;
use update_server::kernel::modules::modules;
use update_server::kernel::paging::PageTables;
use update_server::kernel::running::Running;
use update_server::text_check;

use lying_guest::LyingGuest;

/// Longer than any of it takes here, by far; what has no bound of its own takes longer.
const LIMIT: Duration = Duration::from_mins(2);

/// What each lie is made of.
#[derive(Debug, Clone, Copy)]
enum Lie {
    /// Every word is a pointer to somewhere else in the kernel, at which there is another one.
    Pointers,
    /// Every word is a pointer to the place before it.
    Circles,
    /// Every bit is random.
    Noise,
}

fn liar(lie: Lie, seed: u64) -> LyingGuest {
    let mut state = seed;
    let mut random = move || {
        // xorshift64: Marsaglia, Xorshift RNGs, Journal of Statistical Software 8 (2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let word = |index: u64, random: u64| match lie {
        Lie::Pointers => 0xffff_8000_0000_0000 | random & 0x0000_7fff_ffff_fff8,
        Lie::Circles => 0xffff_8880_0000_0000 | (index.saturating_sub(2) * 8),
        Lie::Noise => random,
    };
    let bytes = (0..1 << 17).flat_map(|index| word(index, random()).to_le_bytes()).collect();
    LyingGuest::new(bytes, (0..4).map(|id| id * 0x3333))
}

#[test]
fn whatever_the_guest_says_every_look_ends() {
    for (name, model) in images::models("whatever_the_guest_says_every_look_ends") {
        let seeds = [(Lie::Pointers, 1), (Lie::Circles, 2), (Lie::Noise, 3), (Lie::Noise, 0x5eed)];
        for (lie, seed) in seeds {
            let liar = liar(lie, seed);
            let begin = Instant::now();
            // It is no kernel of anybody's.
            assert!(Running::find(&model, &liar, liar.vcpus()).is_err(), "{name}, {lie:?}");
            // Were it taken for one, by a mistake or because it has only just begun to lie, still nothing may hang or panic.
            for distance in [0, 0x1e00_0000] {
                let tables = PageTables { root: Gpa(0), levels: 4 };
                let kernel = Running::at(&model, &liar, Place { distance, tables });
                let stacks =
                    census::take(&kernel, &liar).map(|census| (census.stacks().count(), census.doubts.len()));
                // The same while another vCPU of it rewrites lists, tables and stacks under our eyes.
                if distance == 0 {
                    let mut survey = Survey::default();
                    liar.pace.set(7);
                    let prepared = survey.prepare(&kernel).is_ok();
                    liar.pace.set(0);
                    let settled = survey.settle(&kernel, &liar).is_ok();
                    let census = survey.census();
                    let (stacks, doubts) = (census.stacks().count(), census.doubts.len());
                    println!(
                        "rewritten: {prepared} {settled}, {stacks} stacks, {doubts} doubts, {:?}",
                        begin.elapsed()
                    );
                }
                // Its vCPUs have no table of interrupts, so that whatever canary it makes up, it has no generation.
                assert!(Generation::of(&kernel, liar.vcpus()).is_err(), "{name}, {lie:?}");
                let text = text_check::check(&kernel, &[]).map(|report| report.cut);
                let modules = modules(&kernel, &[]).found;
                let sites: usize = sites(&kernel, &modules).iter().map(|own| own.sites.iter().count()).sum();
                println!(
                    "{name}, {lie:?}, {seed}: {stacks:?}, {text:?}, {} modules, {sites} sites, {:?}",
                    modules.len(),
                    begin.elapsed()
                );
            }
            assert!(begin.elapsed() < LIMIT, "{name}, {lie:?}, {seed}: {:?}", begin.elapsed());
        }
    }
}
