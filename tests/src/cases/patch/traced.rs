//! Everything that a guest can attach to a function, on one that is patched: attached before and after, and detached before and
//! after the patch is rolled back.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{Bench, patch};
use crate::deadlines::COMMAND;

/// Calls of the function that are made at a time.
const CALLS: u64 = 5;

/// What watches `version_proc_show`.
struct Tracer {
    name: &'static str,
    attach: &'static str,
    detach: &'static str,
    /// Prints how often it has fired since it was attached.
    hits: &'static str,
}

const BPF_HITS: &str =
    "cat /proc/$(cat /bpf.pid)/fdinfo/* | sed -n 's/run_cnt:[[:space:]]*//p' | sort -n | tail -1";

const TRACERS: [Tracer; 5] = [
    Tracer {
        name: "function tracer",
        attach: "cd /sys/kernel/tracing; echo version_proc_show > set_ftrace_filter; echo > trace; echo function > current_tracer",
        detach: "cd /sys/kernel/tracing; echo nop > current_tracer; echo > set_ftrace_filter",
        hits: "grep -c 'version_proc_show <-' /sys/kernel/tracing/trace",
    },
    Tracer {
        name: "kprobe",
        attach: "cd /sys/kernel/tracing; echo 'p:lucos_entry version_proc_show' >> kprobe_events; echo 1 > events/kprobes/lucos_entry/enable",
        detach: "cd /sys/kernel/tracing; echo 0 > events/kprobes/lucos_entry/enable; echo '-:lucos_entry' >> kprobe_events",
        hits: "awk '$1 == \"lucos_entry\" { print $2 }' /sys/kernel/tracing/kprobe_profile",
    },
    Tracer {
        name: "kretprobe",
        attach: "cd /sys/kernel/tracing; echo 'r:lucos_return version_proc_show' >> kprobe_events; echo 1 > events/kprobes/lucos_return/enable",
        detach: "cd /sys/kernel/tracing; echo 0 > events/kprobes/lucos_return/enable; echo '-:lucos_return' >> kprobe_events",
        hits: "awk '$1 == \"lucos_return\" { print $2 }' /sys/kernel/tracing/kprobe_profile",
    },
    Tracer {
        name: "fentry",
        attach: "(exec bpf fentry version_proc_show) & echo $! > /bpf.pid; sleep 1",
        detach: "kill $(cat /bpf.pid); wait $(cat /bpf.pid); true",
        hits: BPF_HITS,
    },
    Tracer {
        name: "fexit",
        attach: "(exec bpf fexit version_proc_show) & echo $! > /bpf.pid; sleep 1",
        detach: "kill $(cat /bpf.pid); wait $(cat /bpf.pid); true",
        hits: BPF_HITS,
    },
];

impl Bench {
    /// Calls the function, which must be the old or the new one, and fire `tracer` each time.
    fn calls(&mut self, patched: bool, tracer: Option<&Tracer>) -> Result<()> {
        let hits = |bench: &mut Self| -> Result<u64> {
            let Some(tracer) = tracer else { return Ok(0) };
            let text = bench.vm.run(&format!("{}; true", tracer.hits))?;
            text.trim().parse().with_context(|| format!("{} has fired {text:?} times", tracer.name))
        };
        let before = hits(self)?;
        let said = self.vm.run(&format!("for n in $(seq {CALLS}); do cat /proc/version; done"))?;
        let new = said.matches("patched: Linux").count() as u64;
        ensure!(new == if patched { CALLS } else { 0 }, "{new} of {CALLS} calls ran new code: {said}");
        if let Some(tracer) = tracer {
            let fired = hits(self)? - before;
            ensure!(
                fired == CALLS,
                "{} has fired {fired} times at {CALLS} calls, patched: {patched}",
                tracer.name
            );
        }
        Ok(())
    }

    fn apply_version(&self) -> Result<u64> {
        let info = patch(&self.apply(&self.version()?, &["--unsigned", "--wait"])?, 0)?;
        info["id"].as_u64().context("no number")
    }

    fn roll_back(&self, id: u64) -> Result<()> {
        patch(&self.vm.try_lucos(&format!("rollback {id} --wait"))?, 0).map(drop)
    }
}

pub(super) fn traced(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    bench
        .vm
        .run("mount -t tracefs tracefs /sys/kernel/tracing; echo 1 > /proc/sys/kernel/bpf_stats_enabled")?;
    for tracer in &TRACERS {
        let on = Some(tracer);
        // Before the patch, and detached while it is applied.
        bench.vm.run(tracer.attach)?;
        bench.calls(false, on)?;
        let id = bench.apply_version()?;
        bench.calls(true, on)?;
        bench.vm.run(tracer.detach)?;
        bench.calls(true, None)?;
        // Again while it is applied, and detached after it was rolled back.
        bench.vm.run(tracer.attach)?;
        bench.calls(true, on)?;
        bench.roll_back(id)?;
        bench.calls(false, on)?;
        // Applied and rolled back under it.
        bench.apply_version()?;
        bench.calls(true, on)?;
        bench.roll_back(id)?;
        bench.calls(false, on)?;
        bench.vm.run(tracer.detach)?;
        bench.calls(false, None)?;
        bench.text_is_the_images()?;
        println!("{}: fired at each call", tracer.name);
    }
    all_at_once(&mut bench)?;
    ensure!(
        bench.vm.run("cat /proc/sys/kernel/ftrace_enabled")?.trim() == "1",
        "ftrace has shut itself down"
    );
    bench.vm.power_off()
}

/// All of them on one function.
fn all_at_once(bench: &mut Bench) -> Result<()> {
    let tracers: Vec<&Tracer> = TRACERS.iter().filter(|tracer| tracer.name != "fexit").collect();
    for tracer in &tracers {
        bench.vm.run(tracer.attach)?;
    }
    let id = bench.apply_version()?;
    for tracer in &tracers {
        bench.calls(true, Some(tracer))?;
    }
    bench.roll_back(id)?;
    for tracer in tracers.iter().rev() {
        bench.calls(false, Some(tracer))?;
        bench.vm.run(tracer.detach)?;
    }
    bench.text_is_the_images()
}

/// One who puts a probe on the very bytes of the jump.
struct Owner {
    attach: &'static str,
    detach: &'static str,
    /// What is said of it.
    named: &'static [&'static str],
}

const TRACEFS: Owner = Owner {
    attach: "cd /sys/kernel/tracing; echo 'p:lucos_jump version_proc_show+5' >> kprobe_events; echo 1 > events/kprobes/lucos_jump/enable",
    detach: "cd /sys/kernel/tracing; echo 0 > events/kprobes/lucos_jump/enable; echo '-:lucos_jump' >> kprobe_events",
    named: &["the event kprobes:lucos_jump of tracefs"],
};

const MODULE: Owner = Owner {
    attach: "insmod /lucos_probe.ko symbol=version_proc_show offset=5",
    detach: "rmmod lucos_probe",
    named: &["the handler lucos_probed+0x0/", "[lucos_probe]"],
};

const BPF: Owner = Owner {
    attach: "(exec bpf kprobe version_proc_show 5) & echo $! > /bpf.pid; sleep 1",
    detach: "kill $(cat /bpf.pid); wait $(cat /bpf.pid); true",
    named: &["perf's event kprobes:version_proc_show", "the BPF program lucos_probe (", "opened by bpf ("],
};

/// A probe on the very bytes of the jump: nothing is applied over it, and nothing rolled back under it, and whose it is is said.
pub(super) fn probe_on_the_jump(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    bench.vm.run("mount -t tracefs tracefs /sys/kernel/tracing")?;
    let on = Tracer {
        name: "probe",
        attach: TRACEFS.attach,
        detach: TRACEFS.detach,
        hits: "awk '$1 == \"lucos_jump\" { print $2 }' /sys/kernel/tracing/kprobe_profile",
    };
    bench.vm.run(on.attach)?;
    bench.calls(false, Some(&on))?;
    let refused = patch(&bench.apply(&bench.version()?, &["--unsigned", "--limit", "2"])?, 5)?;
    names(&refused, "a probe is on", &[&TRACEFS])?;
    bench.calls(false, Some(&on))?;
    bench.vm.run(on.detach)?;
    let id = bench.apply_version()?;
    bench.vm.run(on.attach)?;
    bench.calls(true, Some(&on))?;
    bench.stays(id, &[&TRACEFS])?;
    bench.calls(true, Some(&on))?;
    // Others, on top of it and without it.
    bench.vm.run(MODULE.attach)?;
    bench.vm.run(BPF.attach)?;
    bench.stays(id, &[&TRACEFS, &MODULE, &BPF])?;
    bench.vm.run(on.detach)?;
    bench.vm.run(BPF.detach)?;
    bench.stays(id, &[&MODULE])?;
    bench.vm.run(MODULE.detach)?;
    bench.vm.run(BPF.attach)?;
    bench.stays(id, &[&BPF])?;
    // It waits until the probe is removed.
    let mut lucos = bench.lucos()?;
    lucos.args(["rollback", &id.to_string(), "--wait"]);
    let waiting = std::thread::spawn(move || crate::process::run(&mut lucos, crate::deadlines::PATCH));
    let begin = Instant::now();
    loop {
        let info = bench.wait_for(id, "rolling-back", COMMAND)?;
        if info["why"].is_string() {
            names(&info, "a probe is on the jump", &[&BPF])?;
            break;
        }
        ensure!(begin.elapsed() < COMMAND, "it does not say what it waits for: {info}");
    }
    bench.vm.run(BPF.detach)?;
    let output = waiting.join().map_err(|_| anyhow::anyhow!("the thread that waits has panicked"))??;
    patch(&output, 0)?;
    bench.calls(false, None)?;
    bench.text_is_the_images()?;
    bench.vm.power_off()
}

impl Bench {
    /// A patch that is not rolled back, because of probes of `owners`, who are named.
    fn stays(&self, id: u64, owners: &[&Owner]) -> Result<()> {
        let refused = patch(&self.vm.try_lucos(&format!("rollback {id} --limit 1"))?, 5)?;
        ensure!(
            refused["state"] != "resident" && refused.to_string().contains("not within 1 s"),
            "{refused}"
        );
        names(&refused, "a probe is on the jump", owners)
    }
}

/// What is said of a patch begins with `what`, names each of `owners`, and no other of the three.
fn names(patch: &serde_json::Value, what: &str, owners: &[&Owner]) -> Result<()> {
    let why = patch["why"].as_str().unwrap_or_default();
    println!("{why}");
    ensure!(why.contains(what) && why.contains("version_proc_show"), "{why}");
    for owner in [&TRACEFS, &MODULE, &BPF] {
        let expected = owners.iter().any(|other| other.attach == owner.attach);
        let named = owner.named.iter().all(|name| why.contains(name));
        ensure!(
            named == expected,
            "{:?} is {}: {why}",
            owner.named,
            if named { "named" } else { "not named" }
        );
    }
    Ok(())
}

/// A livepatch of the guest's own.
const DISABLE: &str = "echo 0 > /sys/kernel/livepatch/lucos_livepatch/enabled; \
        while [ -d /sys/kernel/livepatch/lucos_livepatch ]; do sleep 0.2; done; rmmod lucos_livepatch";
/// See [`DISABLE`].
const ENABLE: &str = "insmod /lucos_livepatch.ko; \
        while [ $(cat /sys/kernel/livepatch/lucos_livepatch/transition) = 1 ]; do sleep 0.2; done";

/// A livepatch of the guest's own on the same function: nothing is applied under it; one that comes later wins until it goes.
pub(super) fn livepatched(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    let version = |bench: &mut Bench| bench.vm.run("cat /proc/version");
    bench.vm.run_within(ENABLE, crate::deadlines::LONG_COMMAND)?;
    ensure!(version(&mut bench)?.contains("by the guest: "), "the guest has not patched itself");
    let refused = patch(&bench.apply(&bench.version()?, &["--unsigned", "--limit", "2"])?, 5)?;
    let why = refused["why"].as_str().unwrap_or_default();
    ensure!(why.contains("a livepatch of its own on version_proc_show"), "{refused}");
    bench.vm.run_within(DISABLE, crate::deadlines::LONG_COMMAND)?;
    bench.calls(false, None)?;

    let id = bench.apply_version()?;
    bench.calls(true, None)?;
    bench.vm.run_within(ENABLE, crate::deadlines::LONG_COMMAND)?;
    ensure!(version(&mut bench)?.contains("by the guest: "), "the guest has not patched itself");
    bench.roll_back(id)?;
    ensure!(version(&mut bench)?.contains("by the guest: "), "the guest's own patch is gone");
    bench.vm.run_within(DISABLE, crate::deadlines::LONG_COMMAND)?;
    bench.calls(false, None)?;
    ensure!(
        bench.vm.run("cat /proc/sys/kernel/ftrace_enabled")?.trim() == "1",
        "ftrace has shut itself down"
    );
    bench.text_is_the_images()?;
    bench.vm.power_off()
}
