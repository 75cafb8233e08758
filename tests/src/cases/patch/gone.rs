//! Guests that start another kernel, and agents that end, at any point of a patch's journey.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{AGENT, Bench, patch};
use crate::cases::generations;
use crate::deadlines::{BOOT, COMMAND, EXIT, LONG_COMMAND};
use crate::images;
use crate::lup::Lup;
use crate::vm::{Builder, Vm};

/// Applied, and gone with the kernel after `end`; the next kernel is not touched, and can be patched, too.
fn gone(bench: &mut Bench, end: impl FnOnce(&mut Vm) -> Result<()>) -> Result<()> {
    let lup = bench.version()?;
    patch(&bench.apply(&lup, &["--unsigned", "--wait"])?, 0)?;
    ensure!(bench.is_patched()?, "applied, and no new code runs");
    end(&mut bench.vm)?;
    let gone = bench.wait_for(1, "gone", BOOT)?;
    println!("gone: {}", gone["why"]);
    let refused = bench.vm.try_lucos("rollback 1")?;
    ensure!(refused.code == 1 && refused.out.contains("is gone and not applied"), "{refused:?}");
    bench.begin()?;
    ensure!(!bench.is_patched()?, "the next kernel was patched");
    bench.text_is_the_images()?;
    let next = patch(&bench.apply(&lup, &["--unsigned", "--wait"])?, 0)?;
    ensure!(next["id"] == 2 && bench.is_patched()?, "{next}");
    bench.vm.power_off()
}

pub(super) fn reboot(kind: &'static str) -> Result<()> {
    gone(&mut Bench::start(kind, 2)?, |vm| vm.type_line("reboot -f"))
}

/// How far a patch is when its kernel ends.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Loading,
    Applying,
    Draining,
    Leaving,
}

/// Wherever a patch is on its way: it is gone, whoever waits for it is told so, and the next kernel is as its image.
pub(super) fn wherever_it_is(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    for (id, moment) in (1..).zip([Moment::Loading, Moment::Applying, Moment::Draining, Moment::Leaving]) {
        let lup = match moment {
            Moment::Loading => Lup::late(kind, "late")?,
            Moment::Applying => {
                Lup::new(kind, "pause")?.replace("__x64_sys_pause", "lucos_sys_pause")?.quiescent()
            }
            Moment::Draining | Moment::Leaving => {
                Lup::read(kind, &images::image(&format!("same-wait-{kind}.lup"))?)?
            }
        };
        if matches!(moment, Moment::Applying) {
            bench.vm.run("pauser old & sleep 1")?;
        }
        if matches!(moment, Moment::Draining) {
            bench.put_to_sleep()?;
        }
        let waiting = bench.begin_to_apply(&lup, &["--unsigned", "--wait"])?;
        let state = match moment {
            Moment::Loading => "loading",
            Moment::Applying => "applying",
            Moment::Draining => "draining",
            Moment::Leaving => "closed",
        };
        if matches!(moment, Moment::Leaving) {
            // The shell itself leaves old code when it has something to do.
            bench.wait_until_switched(id)?;
            bench.vm.run("true")?;
        }
        bench.wait_for(id, state, COMMAND)?;
        if matches!(moment, Moment::Leaving) {
            bench.put_to_sleep()?;
            patch(&bench.vm.try_lucos(&format!("rollback {id}"))?, 0)?;
            bench.wait_for(id, "leaving", COMMAND)?;
        }
        bench.vm.type_line("reboot -f")?;
        let gone = bench.wait_for(id, "gone", BOOT)?;
        let output = waiting.join().map_err(|_| anyhow::anyhow!("the thread that waits has panicked"))??;
        let told = if matches!(moment, Moment::Leaving) { 0 } else { 6 };
        ensure!(output.code == told, "{moment:?}: {output:?}");
        println!("{moment:?}: {}", gone["why"]);
        bench.begin()?;
        ensure!(!bench.is_patched()?, "{moment:?}: the next kernel was patched");
        bench.text_is_the_images()?;
        let modules = bench.vm.run("cat /proc/modules")?;
        ensure!(!modules.contains("lucos_"), "{moment:?}: the next kernel has {modules}");
    }
    // And a machine that ends altogether leaves nobody waiting.
    let waiting = bench.begin_to_apply(&Lup::late(kind, "late")?, &["--unsigned", "--wait"])?;
    bench.wait_for(5, "loading", COMMAND)?;
    bench.vm.lucos("shutdown")?;
    let output = waiting.join().map_err(|_| anyhow::anyhow!("the thread that waits has panicked"))??;
    ensure!(output.code != 0, "{output:?}");
    bench.vm.expect_exit(0, EXIT)
}

impl Bench {
    /// Waits until a patch is switched, whoever is still in old code.
    fn wait_until_switched(&self, id: u64) -> Result<()> {
        let begin = Instant::now();
        while !self
            .state(id)
            .is_ok_and(|info| ["draining", "closed"].iter().any(|state| info["state"] == *state))
        {
            ensure!(begin.elapsed() < COMMAND, "it is not switched: {:?}", self.state(id));
        }
        Ok(())
    }
}

fn builder(kind: &str, folder: &tempfile::TempDir) -> Result<Builder> {
    generations::builder(kind, folder, &[&images::image("agent.cpio")?])
}

pub(super) fn kexec(kind: &'static str) -> Result<()> {
    let folder = images::folder()?;
    let builder = builder(kind, &folder)?;
    gone(&mut Bench::of(kind, folder, builder)?, |vm| {
        vm.run_within(&format!("kexec /vmlinuz /base.cpio '{}'", generations::CMDLINE), LONG_COMMAND)?;
        vm.type_line("kexec -e")
    })
}

pub(super) fn kdump(kind: &'static str) -> Result<()> {
    let folder = images::folder()?;
    let builder = builder(kind, &folder)?.cmdline("crashkernel=256M");
    gone(&mut Bench::of(kind, folder, builder)?, |vm| {
        let load = format!("kexec -p /vmlinuz /base.cpio '{} nr_cpus=1 reset_devices'", generations::CMDLINE);
        vm.run_within(&load, LONG_COMMAND)?;
        vm.type_line("echo c > /proc/sysrq-trigger")
    })
}

/// Rounds, each of which kills the agent a bit later.
const ROUNDS: u32 = 12;

/// Whatever the agent was doing: the patch is applied whole, by the next agent, or nothing is changed and that is said.
pub(super) fn agent_killed(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    let mut ends = Vec::new();
    for round in 0..ROUNDS {
        // Each time under another name, so that nothing is left to be used again but the module.
        let lup = bench.version()?.with(|manifest| {
            manifest.name = format!("version-{round}").parse().expect("this is a name");
        });
        let applying = bench.begin_to_apply(&lup, &["--unsigned", "--limit", "30"])?;
        thread::sleep(Duration::from_millis(40) * round);
        bench.vm.run(&format!("kill -9 $(cat /agent.pid); {AGENT}"))?;
        let output =
            applying.join().map_err(|_| anyhow::anyhow!("the thread that applies has panicked"))??;
        let info: Value = serde_json::from_str(&output.out).with_context(|| format!("{output:?}"))?;
        let state = info["state"].as_str().context("no state")?.to_owned();
        let id = info["id"].as_u64().context("no number")?;
        match output.code {
            0 => {
                ensure!(bench.is_patched()?, "{info}, and no new code runs");
                patch(&bench.vm.try_lucos(&format!("rollback {id} --wait"))?, 0)?;
            }
            5 => ensure!(state == "failed" && info["why"].is_string(), "{info}"),
            _ => anyhow::bail!("{output:?}"),
        }
        ensure!(!bench.is_patched()?, "{info}, and new code runs");
        bench.text_is_the_images()?;
        ends.push(state);
    }
    println!("{ends:?}");
    ensure!(ends.iter().any(|state| state == "closed"), "no agent has carried on: {ends:?}");
    let agent = bench.vm.lucos("status")?;
    ensure!(agent["agent"]["pid"].is_u64(), "{agent}");
    bench.vm.run_within("sync", COMMAND)?;
    bench.vm.power_off()
}
