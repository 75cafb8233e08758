//! Patching a guest: for how long it stands still, until when every task is switched, and what it costs afterwards.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Setting, fresh_socket, sleepers};
use crate::api::{Lucos, Stop};
use crate::figure::{Aim, Figure};
use crate::guest::{Guest, insist};
use crate::samples::Samples;
use crate::vmm::{Machine, Vmm};

/// Patches with so many functions, by name.
const PATCHES: [(&str, u32); 2] = [("version", 1), ("many", 32)];
/// Each is applied and rolled back so often.
const ROUNDS: usize = 15;
/// Processes that sleep.
const SLEEPERS: [u32; 2] = [10, 5000];
/// Calls of a function in one run of the program that makes them.
const CALLS: u32 = 300_000;
/// Runs of that program.
const RUNS: u16 = 5;
/// For how long exits are counted.
const COUNTED: Duration = Duration::from_secs(5);
/// A patch is applied, or rolled back, and drained.
const LIMIT: Duration = Duration::from_mins(2);

/// What the guest does before anything else.
const AGENT: &str = "lucos-agent run > /dev/null 2>&1 &";

pub(super) fn measure(setting: &Setting) -> Result<()> {
    let bench = Bench::prepare(setting)?;
    for cpus in [1, 2, 4] {
        let loops =
            format!("for i in $(seq {cpus}); do while :; do :; done & done; sleep 2; echo all 'busy'; wait");
        let seen = insist(|| {
            bench.pauses(cpus, 512, &loops, |guest| guest.line_with("all busy").map(drop), &PATCHES)
        })?;
        seen.print(&format!("{cpus}cpu"), cpus, None)?;
    }
    let mut few = None;
    for sleepers in SLEEPERS {
        let script = sleepers::script(sleepers, "");
        let ready = |guest: &mut Guest| sleepers::wait(guest, sleepers);
        let seen = insist(|| bench.pauses(4, 2048, &script, ready, &PATCHES[..1]))?;
        let medians = seen.print(&format!("{sleepers}tasks"), 4, few.as_ref())?;
        few = few.or(Some(medians));
    }
    bench.until_closed()?;
    bench.call()?;
    bench.exits()
}

/// Images and patches.
struct Bench<'s> {
    setting: &'s Setting,
    initrd: PathBuf,
}

/// Pauses of one guest.
struct Seen {
    parking: Samples,
    /// For each patch: when it was applied, and when it was rolled back.
    switches: Vec<(u32, Samples, Samples)>,
}

impl<'s> Bench<'s> {
    fn prepare(setting: &'s Setting) -> Result<Self> {
        let initrd = PathBuf::from("patch.cpio");
        let mut out = File::create(&initrd)?;
        for name in ["tiny.cpio", "agent.cpio", "plant-6.1-cloud.cpio"] {
            let mut from = File::open(setting.image(name)).with_context(|| format!("cannot open {name}"))?;
            std::io::copy(&mut from, &mut out)?;
            // An archive begins where the last one has ended, on a boundary of four bytes.
            let end = out.stream_position()?.next_multiple_of(4);
            out.set_len(end)?;
            out.seek(SeekFrom::End(0))?;
        }
        Ok(Self { setting, initrd })
    }

    /// A guest with an agent.
    fn start(&self, cpus: u8, memory_mib: u32, script: &str) -> Result<(Guest, Lucos)> {
        let socket = Path::new("control.sock");
        fresh_socket(socket);
        let machine = Machine {
            cpus,
            memory_mib,
            initrd: Some(self.initrd.clone()),
            disks: Vec::new(),
            control: Some(socket.to_owned()),
            ..self.setting.tiny(&format!("{AGENT} {script}"))
        };
        Ok((Guest::start(Vmm::Lucos, &machine)?, Lucos::new(socket)))
    }

    fn pauses(
        &self,
        cpus: u8,
        memory_mib: u32,
        script: &str,
        ready: impl Fn(&mut Guest) -> Result<()>,
        patches: &[(&str, u32)],
    ) -> Result<Seen> {
        let (mut guest, mut lucos) = self.start(cpus, memory_mib, script)?;
        ready(&mut guest)?;
        let mut parking = Vec::new();
        let mut switches = Vec::new();
        for &(name, functions) in patches {
            let file = self.file(name)?;
            let (mut applied, mut back) = (Vec::new(), Vec::new());
            // The first time, the kernel image is read and the module loaded.
            for round in 0..=ROUNDS {
                let there = apply(&lucos, &file)?;
                let gone = roll_back(&lucos, there.id)?;
                if round > 0 {
                    applied.push(there.paused);
                    back.push(gone.paused);
                }
                parking.extend(lucos.stop()?.took);
                lucos.go_on()?;
                std::thread::sleep(Duration::from_millis(20));
            }
            switches.push((functions, Samples::micros(&applied), Samples::micros(&back)));
        }
        Ok(Seen { parking: Samples::micros(&parking), switches })
    }

    /// Until nobody runs old code any more: by us, and by the kernel's own livepatch of the same function.
    fn until_closed(&self) -> Result<()> {
        let script = "cd /; for n in 1 2 3 4 5; do sleep 100000 & done; \
            for r in $(seq 5); do echo own 'begin'; insmod /lucos_livepatch.ko; \
            while [ $(cat /sys/kernel/livepatch/lucos_livepatch/transition) = 1 ]; do sleep 0.05; done; echo own 'end'; \
            echo 0 > /sys/kernel/livepatch/lucos_livepatch/enabled; \
            while [ -d /sys/kernel/livepatch/lucos_livepatch ]; do sleep 0.05; done; rmmod lucos_livepatch; done; echo own 'over'; wait";
        let (mut guest, lucos) = self.start(2, 512, &format!("sleep 1; {script}"))?;
        guest.until_init()?;
        let mut own = Vec::new();
        for _ in 0..5 {
            let begin = guest.line_with("own begin")?.at;
            own.push(guest.line_with("own end")?.at.saturating_sub(begin));
        }
        guest.line_with("own over")?;
        let file = self.file("version")?;
        let mut ours = Vec::new();
        for round in 0..=5 {
            let begin = Instant::now();
            let there = apply(&lucos, &file)?;
            if round > 0 {
                ours.push(begin.elapsed());
            }
            roll_back(&lucos, there.id)?;
        }
        let own = Samples::micros(&own).median();
        Figure::median("patch.until_closed", &Samples::micros(&ours), "us")
            .against("the kernel's own livepatch", own)
            .print()
    }

    /// A call of a function that is patched.
    fn call(&self) -> Result<()> {
        let script = format!(
            "sleep 1; for r in $(seq {RUNS}); do caller {CALLS}; done; echo calls 'over'; sleep 3; \
             while [ $(lucos-agent status | grep -c closed) = 0 ]; do sleep 0.2; done; \
             for r in $(seq {RUNS}); do caller {CALLS}; done; wait"
        );
        let (mut guest, lucos) = self.start(1, 512, &script)?;
        guest.until_init()?;
        let runs = |guest: &mut Guest| -> Result<Samples> {
            let mut times = Vec::new();
            for _ in 0..RUNS {
                let begin = guest.line_with("calls begin")?.at;
                times.push(guest.line_with("calls end")?.at.saturating_sub(begin));
            }
            Ok(Samples::micros(&times))
        };
        let before = runs(&mut guest)?;
        guest.line_with("calls over")?;
        apply(&lucos, &self.file("getpid")?)?;
        let after = runs(&mut guest)?;
        Figure::median(format!("patch.calls_{CALLS}"), &after, "us")
            .against("the same, not patched", before.median())
            .print()
    }

    /// Exits of a guest with a patch whose old code nobody runs.
    fn exits(&self) -> Result<()> {
        let (mut guest, lucos) = self.start(2, 512, "sleep 1; echo all 'there'; sleep 100000")?;
        guest.line_with("all there")?;
        let file = self.file("many")?;
        // The agent has come, and the image is read.
        let there = apply(&lucos, &file)?;
        roll_back(&lucos, there.id)?;
        let count = |lucos: &Lucos| -> Result<Vec<f64>> {
            let exits = |lucos: &Lucos| -> Result<u64> {
                let counters = lucos.get("vm.counters")?;
                let exits = counters["exits"].as_object().context("no exits")?;
                Ok(exits.values().filter_map(Value::as_u64).sum())
            };
            (0..3)
                .map(|_| {
                    let before = exits(lucos)?;
                    std::thread::sleep(COUNTED);
                    let more = u32::try_from(exits(lucos)?.saturating_sub(before))?;
                    Ok(f64::from(more))
                })
                .collect()
        };
        let before = Samples::of(count(&lucos)?);
        apply(&lucos, &file)?;
        let after = Samples::of(count(&lucos)?);
        let extra = after.median() - before.median();
        Figure::median("patch.exits_in_5s", &after, "exits")
            .against("not patched", before.median())
            .print()?;
        Figure::of("patch.extra_exits_in_5s", extra.max(0.0), &after, "exits")
            .aiming(Aim::ValueAtMost(0.0))
            .print()
    }

    fn file(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.setting.image(&format!("{name}.lup"));
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

impl Seen {
    /// Prints the figures of one guest, and returns their medians; `few` are those of another one with fewer tasks.
    fn print(&self, name: &str, cpus: u8, few: Option<&Vec<f64>>) -> Result<Vec<f64>> {
        let parking = self.parking.median();
        let mut medians = Vec::new();
        for (functions, applied, back) in &self.switches {
            for (what, samples) in [("apply", applied), ("rollback", back)] {
                let name = format!("patch.{what}_{functions}f_{name}");
                let figure = Figure::median(&name, samples, "us");
                let reference = format!("parking {cpus} vCPUs");
                figure.against(reference, parking).aiming(Aim::RatioAtMost(1.2)).print()?;
                if let Some(few) = few.and_then(|few| few.get(medians.len())) {
                    let growth = Figure::median(format!("{name}_growth"), samples, "us");
                    growth
                        .against(format!("with {} tasks", SLEEPERS[0]), *few)
                        .aiming(Aim::RatioAtMost(1.5))
                        .print()?;
                }
                medians.push(samples.median());
            }
        }
        Ok(medians)
    }
}

/// A switch of functions.
struct Switch {
    id: u64,
    paused: Duration,
}

fn apply(lucos: &Lucos, file: &[u8]) -> Result<Switch> {
    let info = lucos.put("patch.apply?unsigned=true", file)?;
    follow(lucos, &info, "closed")
}

fn roll_back(lucos: &Lucos, id: u64) -> Result<Switch> {
    let info = lucos.put(&format!("patch.rollback?id={id}"), &[])?;
    follow(lucos, &info, "removed")
}

/// Waits until a patch is in a state.
fn follow(lucos: &Lucos, info: &Value, state: &str) -> Result<Switch> {
    let id = info["id"].as_u64().context("no number")?;
    let begin = Instant::now();
    let mut revision = 0;
    loop {
        let list = lucos.get(&format!("patch.list?after={revision}"))?;
        revision = list["revision"].as_u64().context("no revision")?;
        let patches = list["patches"].as_array().context("no patches")?;
        let patch =
            patches.iter().find(|patch| patch["id"] == id).context("the patch is not there any more")?;
        if patch["state"] == state {
            let paused = Duration::from_micros(patch["paused_us"].as_u64().context("no pause")?);
            return Ok(Switch { id, paused });
        }
        let failed = patch["state"] == "failed" || begin.elapsed() > LIMIT;
        ensure!(!failed, "the patch is not {state}: {patch}");
    }
}
