//! Old code that is filled with traps once nobody is in it: what the kernel and its tracers still do there, who comes to one, and
//! how it is put back.

use std::fs;

use anyhow::{Context, Result, ensure};
use lucos_lup::{Container, Patch};
use serde_json::Value;

use super::{AGENT, Bench, patch};
use crate::deadlines::{COMMAND, LONG_COMMAND};
use crate::images;
use crate::lup::Lup;

/// A tracepoint in a function that is filled: a static key.
const RENAME: &str = "/sys/kernel/tracing/events/task/task_rename/enable";
/// Renames a task, and prints how often the tracepoint has fired for that.
const RENAMED: &str = "echo > /sys/kernel/tracing/trace; echo one > /proc/self/comm; grep -c task_rename: /sys/kernel/tracing/trace || true";
/// A probe on an instruction of old code.
const PROBE: &str = "cd /sys/kernel/tracing; for at in $(seq 17 40); do \
        echo \"p:lucos_old version_proc_show+$at\" >> kprobe_events 2> /dev/null && break; done; \
        echo 1 > events/kprobes/lucos_old/enable";
/// See [`PROBE`].
const NO_PROBE: &str =
    "cd /sys/kernel/tracing; echo 0 > events/kprobes/lucos_old/enable; echo '-:lucos_old' >> kprobe_events";

impl Bench {
    /// Waits until old code of a patch is filled, or is there.
    fn wait_filled(&self, id: u64, filled: bool) -> Result<Value> {
        let begin = std::time::Instant::now();
        loop {
            let info = self.state(id)?;
            if info["state"] == "closed" && (info["tombstones"].as_u64() > Some(0)) == filled {
                return Ok(info);
            }
            ensure!(begin.elapsed() < COMMAND, "patch {id} is not filled: {filled}: {info}");
        }
    }

    /// Nothing in the text differs without a reason; how many bytes do by right of patches.
    fn written(&self) -> Result<u64> {
        let report = self.vm.lucos("text-check")?;
        ensure!(report["unexplained"].as_array().is_some_and(Vec::is_empty), "{}", report["unexplained"]);
        Ok(report["explained"]["patches"]["bytes"].as_u64().unwrap_or(0))
    }

    /// Applies a patch, and waits until its old code is filled.
    fn apply_filled(&self, lup: &Lup) -> Result<(u64, u64)> {
        let info = patch(&self.apply(lup, &["--unsigned", "--wait"])?, 0)?;
        let id = info["id"].as_u64().context("no number")?;
        let filled = self.wait_filled(id, true)?["tombstones"].as_u64().context("no tombstones")?;
        Ok((id, filled))
    }

    fn roll_back_to(&self, id: u64, bytes: u64) -> Result<()> {
        let info = patch(&self.vm.try_lucos(&format!("rollback {id}"))?, 0)?;
        ensure!(info["tombstones"] == 0, "{info}");
        let written = self.written()?;
        ensure!(written == bytes, "{written} bytes of patches are left, and not {bytes}");
        Ok(())
    }
}

pub(super) fn filled(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    // Warnings are to be on the console, where the harness finds them.
    bench.vm.run("mount -t tracefs tracefs /sys/kernel/tracing; dmesg -n 5")?;
    let base = bench.written()?;

    under_load(&mut bench)?;
    static_key(&mut bench)?;
    stacked(&mut bench)?;
    probed(&mut bench)?;

    ensure!(bench.written()? == base, "not all is as it was");
    bench.vm.power_off()
}

/// Functions that are called all the time.
fn under_load(bench: &mut Bench) -> Result<()> {
    let file = fs::read(images::image(&format!("same-read-{}.lup", bench.kind))?)?;
    let container = Container::read(&file)?;
    let mut manifest = Patch::read(&container)?.manifest;
    manifest.policy.tombstones = true;
    let path = bench.folder.path().join("same-read.lup");
    fs::write(&path, Patch::pack(&manifest, container.module())?)?;
    bench.vm.run("workload /count > /workload.log 2>&1 & echo $! > /workload.pid; sleep 1")?;
    for round in 0..3 {
        let info = patch(&bench.vm.try_lucos_with("apply", &path, &["--unsigned"])?, 0)?;
        let id = info["id"].as_u64().context("no number")?;
        // The shell of this very guest waits in read(2), and comes out of it with each command. The agent waits there, too.
        bench.vm.run(&format!("kill $(cat /agent.pid); wait $(cat /agent.pid); {AGENT}"))?;
        let begin = std::time::Instant::now();
        let filled = loop {
            let info = bench.state(id)?;
            if info["tombstones"].as_u64() > Some(0) || begin.elapsed() > LONG_COMMAND {
                break info;
            }
            bench.vm.run("true")?;
        };
        ensure!(filled["state"] == "closed" && filled["tombstones"].as_u64() > Some(1500), "{filled}");
        let written = bench.written()?;
        ensure!(Some(written) > filled["tombstones"].as_u64(), "{written} bytes are written: {filled}");
        println!(
            "round {round}: {} bytes are filled, {written} bytes differ from the image",
            filled["tombstones"]
        );
        bench.vm.run("sleep 2")?;
        bench.roll_back_to(id, 0)?;
    }
    let said = bench.vm.run_within(
        "kill -TERM $(cat /workload.pid); wait $(cat /workload.pid); cat /workload.log",
        LONG_COMMAND,
    )?;
    ensure!(said.contains(", 0 wrong"), "{said}");
    Ok(())
}

/// A static key that is flipped in a function that is filled, and found flipped when it is back.
fn static_key(bench: &mut Bench) -> Result<()> {
    let fired = |bench: &mut Bench| -> Result<u64> { Ok(bench.vm.run(RENAMED)?.trim().parse()?) };
    let on = |bench: &mut Bench, on: u8| bench.vm.run(&format!("echo {on} > {RENAME}")).map(drop);
    let lup = Lup::new(bench.kind, "rename")?.replace("__set_task_comm", "lucos_set_task_comm")?.tombstones();
    let (id, filled) = bench.apply_filled(&lup)?;
    on(bench, 1)?;
    let written = bench.written()?;
    ensure!(written >= filled && fired(bench)? == 0, "new code does not tell");
    on(bench, 0)?;
    on(bench, 1)?;
    bench.roll_back_to(id, 0)?;
    ensure!(fired(bench)? > 0, "the key that was flipped in the filled function is not");
    // And the other way round.
    bench.apply_filled(&lup)?;
    on(bench, 0)?;
    bench.roll_back_to(id, 0)?;
    ensure!(fired(bench)? == 0, "the key that was flipped back in the filled function is not");
    println!("__set_task_comm: {filled} bytes are filled, and its static key was flipped");
    Ok(())
}

/// Another patch on top, and the lower one rolled back under it.
fn stacked(bench: &mut Bench) -> Result<()> {
    let lower = bench.version()?.tombstones();
    let (lower_id, filled) = bench.apply_filled(&lower)?;
    ensure!(bench.is_patched()?, "old code runs");
    // It has the same module, which is there already.
    let upper = bench.version()?.with(|manifest| manifest.name = "upper".parse().expect("a name"));
    let info = patch(&bench.apply(&upper, &["--unsigned", "--wait"])?, 0)?;
    let upper_id = info["id"].as_u64().context("no number")?;
    ensure!(info["tombstones"] == 0 && bench.written()? > filled, "{info}");
    patch(&bench.vm.try_lucos(&format!("rollback {lower_id} --wait"))?, 0)?;
    let jump = bench.written()?;
    ensure!(bench.is_patched()? && (1..20).contains(&jump), "{jump} bytes are written");
    // Below again, where nothing is dead for it: it goes on top.
    bench.apply_filled(&lower)?;
    patch(&bench.vm.try_lucos(&format!("rollback {upper_id} --wait"))?, 0)?;
    ensure!(bench.is_patched()? && bench.written()? > filled, "it was emptied for another patch");
    traced(bench)?;
    bench.roll_back_to(lower_id, 0)?;
    ensure!(!bench.is_patched()?, "new code runs");
    println!("version_proc_show: {filled} bytes were filled below another patch, and above");
    Ok(())
}

/// Tracers at the beginning of a function that is filled.
fn traced(bench: &mut Bench) -> Result<()> {
    let calls = "for n in 1 2 3; do cat /proc/version > /dev/null; done";
    let function = format!(
        "cd /sys/kernel/tracing; echo version_proc_show > set_ftrace_filter; echo > trace; echo function > current_tracer; {calls}; \
         grep -c 'version_proc_show <-' trace; echo nop > current_tracer; echo > set_ftrace_filter"
    );
    ensure!(bench.vm.run(&function)?.trim() == "3", "the function tracer has missed calls");
    let probe = format!(
        "cd /sys/kernel/tracing; echo 'p:lucos_entry version_proc_show' >> kprobe_events; echo 1 > events/kprobes/lucos_entry/enable; \
         {calls}; awk '$1 == \"lucos_entry\" {{ print $2 }}' kprobe_profile; echo 0 > events/kprobes/lucos_entry/enable; \
         echo '-:lucos_entry' >> kprobe_events"
    );
    ensure!(bench.vm.run(&probe)?.trim() == "3", "a probe has missed calls");
    Ok(())
}

/// A probe in old code: nothing is filled around it, and nothing put back under it.
fn probed(bench: &mut Bench) -> Result<()> {
    bench.vm.run(PROBE)?;
    let lup = bench.version()?.tombstones();
    let info = patch(&bench.apply(&lup, &["--unsigned", "--wait"])?, 0)?;
    let id = info["id"].as_u64().context("no number")?;
    bench.vm.run("sleep 1")?;
    let info = bench.state(id)?;
    let why = info["why"].as_str().unwrap_or_default();
    ensure!(info["tombstones"] == 0 && why.contains("old code is not filled yet: a probe is at"), "{info}");
    bench.vm.run(NO_PROBE)?;
    bench.wait_filled(id, true)?;

    // The kernel lets somebody put one on a tombstone, which nobody comes to.
    bench.vm.run(PROBE)?;
    let refused = patch(&bench.vm.try_lucos(&format!("rollback {id} --limit 2"))?, 5)?;
    let why = refused["why"].as_str().unwrap_or_default();
    ensure!(why.contains("a probe is at") && why.contains("in the old version_proc_show"), "{refused}");
    ensure!(bench.is_patched()?, "old code runs");
    bench.vm.run(NO_PROBE)?;
    bench.wait_filled(id, true)?;
    bench.roll_back_to(id, 0)?;
    ensure!(!bench.is_patched()?, "new code runs");
    Ok(())
}

/// Somebody has kept an address in the middle of a function, and goes on from there when that is filled.
pub(super) fn stale(kind: &'static str) -> Result<()> {
    const CALL: &str = "cat /sys/module/lucos_stale/parameters/call";
    const BYTES: &str = "cat /sys/module/lucos_stale/parameters/bytes";
    let mut bench = Bench::start(kind, 2)?;
    bench.vm.run("dmesg -n 5; insmod /lucos_stale.ko")?;
    let is_right = |bench: &mut Bench| -> Result<()> {
        let said = bench.vm.run(CALL)?;
        let (answer, expected) = said.trim().split_once(' ').context("no two numbers")?;
        ensure!(answer == expected, "the old code has returned {answer}, and not {expected}");
        Ok(())
    };
    let exits = |bench: &Bench| -> Result<u64> {
        bench.vm.lucos("counters")?["exits"]["tombstone"].as_u64().context("no count of tombstones")
    };
    is_right(&mut bench)?;
    let before = bench.vm.run(BYTES)?;
    let lup = Lup::new(kind, "getpid")?.replace("__x64_sys_getpid", "lucos_sys_getpid")?.tombstones();
    let (id, filled) = bench.apply_filled(&lup)?;
    let now = bench.vm.run(BYTES)?;
    // A call of 6.12 comes next, which one of its tables names.
    ensure!(now.starts_with("e5e5e5e5e5e5e5"), "{now} is there, and before was {before}");
    ensure!(exits(&bench)? == 0, "somebody was there already");

    is_right(&mut bench)?;
    let met = exits(&bench)?;
    ensure!(met > 0, "nobody has come to a tombstone");
    ensure!(bench.vm.run(BYTES)? == before, "old code is not back");
    let info = bench.wait_filled(id, false)?;
    let why = info["why"].as_str().unwrap_or_default();
    ensure!(
        why.contains("__x64_sys_getpid+")
            && why.contains("was called by cat (")
            && why.contains("tombstones were taken away"),
        "{info}"
    );
    let said = bench.vm.messages().text();
    let line = said.lines().find(|line| line.contains("its tombstones were taken away")).unwrap_or_default();
    ensure!(line.contains("__x64_sys_getpid+") && line.contains("cat ("), "it is not told: {line:?}");
    // It costs nothing more, and is not filled again.
    for _ in 0..3 {
        is_right(&mut bench)?;
    }
    bench.vm.run("sleep 2")?;
    ensure!(exits(&bench)? == met && bench.state(id)?["tombstones"] == 0, "it was filled again");
    bench.roll_back_to(id, 0)?;
    is_right(&mut bench)?;
    println!("{filled} bytes were filled; the one who came has left the guest {met} times");
    bench.vm.power_off()
}
