//! New code that is of no more use: unloaded by the guest, or there to stay, with the reason.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{AGENT, Bench, patch};
use crate::deadlines::{COMMAND, LONG_COMMAND};
use crate::lup::Lup;
use crate::process;

const MODULE: &str = "lucos_patch";
/// One that takes four seconds to be loaded.
const LATE: &str = "lucos_late";
const NEW: &str = "lucos_version_proc_show";
/// Patches that are applied and removed one after the other.
const CYCLES: u32 = 5;

impl Bench {
    /// Whether the guest knows the patch's new function. It has many, and takes its time.
    fn has_symbol(&mut self) -> Result<bool> {
        let count = self.vm.run_within(&format!("grep -c ' {NEW}\\b' /proc/kallsyms; true"), LONG_COMMAND)?;
        Ok(count.trim() != "0")
    }

    fn apply_new(&mut self, lup: &Lup) -> Result<u64> {
        let info = patch(&self.apply(lup, &["--unsigned", "--wait"])?, 0)?;
        ensure!(info["state"] == "closed" && self.is_patched()? && self.has_module(MODULE)?, "{info}");
        info["id"].as_u64().context("no number")
    }

    fn take_back(&self, id: u64) -> Result<Value> {
        patch(&self.vm.try_lucos(&format!("rollback {id} --wait"))?, 0)
    }

    fn is_removed(&mut self, info: &Value) -> Result<()> {
        ensure!(info["state"] == "removed" && info["why"].is_null(), "{info}");
        ensure!(!self.has_module(MODULE)? && !self.is_patched()?, "removed, and still there: {info}");
        self.text_is_the_images()
    }

    fn trace(&mut self, command: &str) -> Result<()> {
        self.vm.run(&format!("cd /sys/kernel/tracing; {command}")).map(drop)
    }
}

pub(super) fn removed(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    let lup = bench.version()?;
    let id = bench.apply_new(&lup)?;
    ensure!(bench.has_symbol()?, "applied, and without a symbol");
    let info = bench.take_back(id)?;
    bench.is_removed(&info)?;
    ensure!(!bench.has_symbol()?, "removed, and with a symbol");
    for _ in 0..CYCLES {
        let begin = Instant::now();
        let id = bench.apply_new(&lup)?;
        let applied = begin.elapsed();
        let info = bench.take_back(id)?;
        println!("applied within {applied:?}, removed within {:?}", begin.elapsed().saturating_sub(applied));
        bench.is_removed(&info)?;
    }
    tracers_go_with_it(&mut bench, &lup)?;
    at_any_moment(&mut bench, &lup)?;
    what_was_not_applied_goes(&mut bench)?;
    ensure!(
        bench.vm.run("cat /proc/sys/kernel/ftrace_enabled")?.trim() == "1",
        "ftrace has shut itself down"
    );
    bench.vm.power_off()
}

/// A probe and a tracer on the new function keep nothing: the kernel takes them away with the module.
fn tracers_go_with_it(bench: &mut Bench, lup: &Lup) -> Result<()> {
    bench.vm.run("mount -t tracefs tracefs /sys/kernel/tracing")?;
    let id = bench.apply_new(lup)?;
    bench.trace(&format!(
        "echo 'p:lucos_new {NEW}' >> kprobe_events; echo 1 > events/kprobes/lucos_new/enable; \
         echo {NEW} > set_ftrace_filter; echo function > current_tracer; cat /proc/version > /dev/null; \
         grep -q {NEW} trace"
    ))?;
    let info = bench.take_back(id)?;
    bench.is_removed(&info)?;
    bench.trace(
        "echo nop > current_tracer; echo > set_ftrace_filter; echo 0 > events/kprobes/lucos_new/enable; \
         echo -:lucos_new >> kprobe_events",
    )
}

/// Applied again while it is on its way out, wherever that is: by the module that is there, or loaded anew.
fn at_any_moment(bench: &mut Bench, lup: &Lup) -> Result<()> {
    let mut id = bench.apply_new(lup)?;
    for round in 0..CYCLES {
        patch(&bench.vm.try_lucos(&format!("rollback {id}"))?, 0)?;
        std::thread::sleep(Duration::from_millis(20) * round);
        id = bench.apply_new(lup)?;
    }
    let info = bench.take_back(id)?;
    bench.is_removed(&info)
}

/// Somebody sleeps inside, so that a patch that must not be beside the old code fails; its module is in the guest by then.
fn what_was_not_applied_goes(bench: &mut Bench) -> Result<()> {
    bench.vm.run("pauser old & echo $! > /old; sleep 1")?;
    let lup = bench.version()?.replace("__x64_sys_pause", "lucos_sys_pause")?.quiescent();
    let info = patch(&bench.apply(&lup, &["--unsigned", "--limit", "1"])?, 5)?;
    ensure!(info["state"] == "failed", "{info}");
    let id = info["id"].as_u64().context("no number")?;
    bench.wait_until_unloaded(id, MODULE)?;
    let after = bench.state(id)?;
    ensure!(after["state"] == "failed" && after["why"] == info["why"], "{after}");
    bench.vm.run("kill -USR1 $(cat /old); wait $(cat /old)").map(drop)
}

/// Nobody waits any longer for a module that the guest is loading: it does not stay.
pub(super) fn late(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    let lup = Lup::late(kind, "late")?;
    for taken_back in [false, true] {
        let id = if taken_back {
            let file = lup.write(bench.folder.path())?;
            let mut lucos = bench.lucos()?;
            lucos.args(["apply", "--unsigned"]).arg(file);
            let applying = std::thread::spawn(move || process::run(&mut lucos, crate::deadlines::PATCH));
            while !bench.has_module(LATE)? {}
            let info = bench.take_back(2)?;
            ensure!(info["state"] == "failed", "{info}");
            let applied =
                applying.join().map_err(|_| anyhow::anyhow!("the thread that applies has panicked"))?;
            ensure!(applied?.code != 0, "it was applied");
            2
        } else {
            let info = patch(&bench.apply(&lup, &["--unsigned", "--wait", "--limit", "1"])?, 5)?;
            let why = info["why"].as_str().unwrap_or_default();
            ensure!(why.contains("has not loaded the module within 1 s"), "{info}");
            info["id"].as_u64().context("no number")?
        };
        ensure!(bench.has_module(LATE)?, "it is not being loaded");
        let before = bench.state(id)?;
        let took = bench.wait_until_unloaded(id, LATE)?;
        println!("taken back: {taken_back}; the module went within {took:?}");
        let after = bench.state(id)?;
        ensure!(after["state"] == "failed" && after["why"] == before["why"], "{before} {after}");
    }
    // It is applied by whoever waits for it.
    let info = patch(&bench.apply(&lup, &["--unsigned", "--wait"])?, 0)?;
    ensure!(info["state"] == "closed", "{info}");
    bench.text_is_the_images()?;
    bench.vm.power_off()
}

/// Somebody in the guest holds the module: it stays, is used again, and goes when it is free and somebody asks.
pub(super) fn held(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    bench.vm.run("insmod /lucos_trial.ko")?;
    let hold = |bench: &mut Bench, what: &str| {
        bench.vm.run(&format!("echo {what} > /sys/module/lucos_trial/parameters/hold")).map(drop)
    };
    let lup = bench.version()?;
    let id = bench.apply_new(&lup)?;
    hold(&mut bench, MODULE)?;
    let info = bench.take_back(id)?;
    let why = info["why"].as_str().unwrap_or_default();
    ensure!(
        info["state"] == "resident" && why.contains("somebody in the guest uses module lucos_patch"),
        "{info}"
    );
    ensure!(bench.has_module(MODULE)? && !bench.is_patched()?, "{info}");
    ensure!(bench.apply_new(&lup)? == id, "it was there, and was not used again");
    patch(&bench.vm.try_lucos(&format!("rollback {id}"))?, 0)?;
    bench.wait_for(id, "removing", COMMAND)?;
    // It goes by itself when it is free soon.
    hold(&mut bench, "nothing")?;
    let info = bench.wait_for(id, "removed", COMMAND)?;
    bench.is_removed(&info)?;

    // Nobody in the guest would unload it; when somebody comes, it goes.
    let id = bench.apply_new(&lup)?;
    bench.vm.run("kill -STOP $(cat /agent.pid)")?;
    patch(&bench.vm.try_lucos(&format!("rollback {id}"))?, 0)?;
    bench.wait_for(id, "removing", COMMAND)?;
    bench.vm.run("kill -CONT $(cat /agent.pid)")?;
    let info = bench.wait_for(id, "removed", COMMAND)?;
    bench.is_removed(&info)?;
    bench.vm.power_off()
}

/// A patch that leaves an address of itself behind is named with it, and stays.
pub(super) fn kept(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    let lup = Lup::kept(kind, "kept")?;
    let info = patch(&bench.apply(&lup, &["--unsigned", "--wait"])?, 0)?;
    let id = info["id"].as_u64().context("no number")?;
    let info = bench.take_back(id)?;
    let why = info["why"].as_str().unwrap_or_default();
    ensure!(
        info["state"] == "resident"
            && why.contains("hands out the address of kept_callback at lucos_kept_getppid"),
        "{info}"
    );
    println!("{why}");
    ensure!(bench.vm.run("cat /proc/modules")?.contains("lucos_kept "), "it has gone");
    let info = patch(&bench.apply(&lup, &["--unsigned", "--wait"])?, 0)?;
    ensure!(info["state"] == "closed" && info["id"] == id, "{info}");
    bench.text_is_the_images()?;
    bench.vm.power_off()
}

/// Rounds, each of which kills the agent a bit later.
const ROUNDS: u32 = 10;

/// The agent is killed while a module is on its way out: it goes all the same, by the next agent.
pub(super) fn agent_killed(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    let lup = bench.version()?;
    for round in 0..ROUNDS {
        let id = bench.apply_new(&lup)?;
        let mut lucos = bench.lucos()?;
        lucos.args(["rollback", &id.to_string()]);
        let taking = std::thread::spawn(move || process::run(&mut lucos, crate::deadlines::PATCH));
        std::thread::sleep(Duration::from_millis(15) * round);
        bench.vm.run(&format!("kill -9 $(cat /agent.pid); {AGENT}"))?;
        patch(&taking.join().map_err(|_| anyhow::anyhow!("the thread that rolls back has panicked"))??, 0)?;
        let info = bench.wait_for(id, "removed", COMMAND)?;
        bench.is_removed(&info)?;
    }
    bench.vm.power_off()
}
