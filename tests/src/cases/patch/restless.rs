//! Patches of a kernel that changes its own text all the time: processors come and go, static keys are flipped, functions traced,
//! probes armed, modules loaded and unloaded.

use anyhow::{Context, Result, ensure};

use super::{Bench, patch};
use crate::deadlines::LONG_COMMAND;
use crate::lup::Lup;

/// Patches that are applied and rolled back.
const CYCLES: usize = 20;

/// What the guest does meanwhile, each until it is told to end.
const RESTLESS: [&str; 5] = [
    "cpu() { echo $1 > /sys/devices/system/cpu/cpu3/online; sleep 0.1; }; while [ -e /go ]; do cpu 0; cpu 1; done",
    "key() { echo $1 > /proc/sys/kernel/sched_schedstats; echo $1 > /proc/sys/kernel/bpf_stats_enabled; }; \
     while [ -e /go ]; do key 1; key 0; done",
    "while [ -e /go ]; do echo function > $t/current_tracer; sleep 0.1; echo nop > $t/current_tracer; done",
    "while [ -e /go ]; do echo 'p:lucos_r vfs_write' >> $t/kprobe_events; echo 1 > $t/events/kprobes/lucos_r/enable; \
     echo 0 > $t/events/kprobes/lucos_r/enable; echo '-:lucos_r' >> $t/kprobe_events; done",
    "while [ -e /go ]; do insmod /lucos_trial.ko && rmmod lucos_trial; done",
];

pub(super) fn restless(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 4)?;
    bench.vm.run("export t=/sys/kernel/tracing; mount -t tracefs tracefs $t; echo 'vfs_* version_proc_show' > $t/set_ftrace_filter; touch /go")?;
    // What processors say when they come and go is not what the harness looks for.
    bench.vm.run("dmesg -n 5")?;
    for what in RESTLESS {
        bench.vm.run(&format!("({what}) > /dev/null 2>&1 & echo $! >> /restless"))?;
    }
    let patches = [
        bench.version()?,
        Lup::new(kind, "calls")?
            .replace("__x64_sys_pause", "lucos_sys_pause")?
            .replace("__x64_sys_getppid", "lucos_sys_getppid")?,
    ];
    let (mut switches, mut given_back) = (0, 0);
    let mut attempts = std::collections::BTreeMap::new();
    let mut count = |info: &serde_json::Value| -> Result<u64> {
        let number = |field: &str| info[field].as_u64().with_context(|| format!("no {field} in {info}"));
        let (id, all) = (number("id")?, number("attempts")?);
        switches += 1;
        given_back += all - attempts.insert(id, all).unwrap_or(0) - 1;
        Ok(id)
    };
    for cycle in 0..CYCLES {
        let mut ids = Vec::new();
        for lup in &patches {
            let info =
                patch(&bench.apply(lup, &["--unsigned"])?, 0).with_context(|| format!("in cycle {cycle}"))?;
            ids.push(count(&info)?);
        }
        ensure!(bench.is_patched()?, "no new code runs in cycle {cycle}");
        for id in ids {
            let info = patch(&bench.vm.try_lucos(&format!("rollback {id}"))?, 0);
            count(&info.with_context(|| format!("in cycle {cycle}"))?)?;
        }
        ensure!(!bench.is_patched()?, "new code runs in cycle {cycle}");
    }
    bench.vm.run_within("rm /go; for pid in $(cat /restless); do wait $pid; done", LONG_COMMAND)?;
    println!("{switches} switches, {given_back} attempts given back");
    ensure!(
        bench.vm.run("cat /proc/sys/kernel/ftrace_enabled")?.trim() == "1",
        "ftrace has shut itself down"
    );
    ensure!(bench.vm.run("nproc")?.trim() == "4", "a processor is missing");
    ensure!(given_back > 0, "the guest has never been in the middle of a change");
    bench.text_is_the_images()?;
    bench.vm.power_off()
}
