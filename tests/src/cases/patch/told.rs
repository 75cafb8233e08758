//! Functions that some thread is always inside, of a patch that redirects returns: who leaves old code tells the host by himself, at
//! once, and nobody looks for him.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::inside::{SLEEPERS, holders};
use super::{Bench, patch};
use crate::deadlines::COMMAND;
use crate::images;

/// For how long the guest is left alone, so that a timer that looks would have done it: the first look is after 50 ms, the next ones
/// within some seconds.
const QUIET: Duration = Duration::from_secs(3);

/// What of the tracers a sleeper can meet has its functions' returns.
const TRACE: &str = "cd /sys/kernel/tracing; echo do_sys_poll futex_wait pipe_read > set_ftrace_filter; echo function_graph > current_tracer";
const TRACE_NO_MORE: &str = "cd /sys/kernel/tracing; echo nop > current_tracer; echo > set_ftrace_filter";

impl Bench {
    fn applied_told(&self) -> Result<Value> {
        let lup = images::image(&format!("same-wait-told-{}.lup", self.kind))?;
        patch(&self.vm.try_lucos_with("apply", &lup, &["--unsigned"])?, 0)
    }

    /// The stacks of the sleepers as the guest itself sees them.
    fn own_stacks(&mut self) -> Result<BTreeMap<&'static str, Vec<String>>> {
        let mut all = BTreeMap::new();
        for (word, _) in SLEEPERS {
            let said = self.vm.run(&format!("cat /proc/$(cat /{word}.pid)/stack"))?;
            let names = said.lines().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned);
            all.insert(word, names.collect());
        }
        Ok(all)
    }

    /// As the host sees them.
    fn host_stacks(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let mut all = self.frames()?;
        all.retain(|comm, _| SLEEPERS.iter().any(|(word, _)| word == comm));
        Ok(all)
    }

    /// Whatever is known of stacks, they are what a new look at each finds.
    fn stacks_are_true(&self) -> Result<()> {
        let report = self.vm.lucos("stacks --verify")?;
        ensure!(report["doubts"].as_array().is_some_and(Vec::is_empty), "{}", report["doubts"]);
        Ok(())
    }

    /// Each sleeper is there, and leaves as is wanted: redirected or watched.
    fn are_held(&mut self, id: u64, redirected: u64) -> Result<Value> {
        let mut wanted = Vec::new();
        for (word, _) in SLEEPERS {
            wanted.push(self.pid(word)?);
        }
        let info = self.wait_until(id, COMMAND, |info| {
            let held = holders(info);
            // Others may be inside for a moment, as the shell until it was asked for these numbers.
            held.len() == wanted.len() && wanted.iter().all(|pid| held.contains_key(pid))
        })?;
        ensure!(info["redirected"] == redirected, "{info}");
        Ok(info)
    }

    /// Wakes one after another: each tells that it leaves, and is not looked for.
    fn wake_each(&mut self, id: u64, end: &str) -> Result<()> {
        std::thread::sleep(QUIET);
        let before = self.state(id)?;
        let looks = &before["looks"];
        let told = before["told"].as_u64().context("no count")?;
        for (woken, (word, _)) in (1..).zip(SLEEPERS) {
            self.wake(word)?;
            let is_noticed = |info: &Value| info["told"] == told + woken;
            let info = self.wait_until(id, COMMAND, is_noticed)?;
            if woken < SLEEPERS.len() as u64 {
                ensure!(info["looks"] == *looks, "somebody has looked: {before} {info}");
                ensure!(holders(&info).len() as u64 == SLEEPERS.len() as u64 - woken, "{info}");
            }
            println!("{word} has told that it leaves; looks {}", info["looks"]);
        }
        let info = self.wait_until(id, COMMAND, |info| info["state"] == end)?;
        ensure!(info["told"] == told + SLEEPERS.len() as u64, "{info}");
        // The one that confirms it, or a second one where the last was still in its stub.
        let more = info["looks"].as_u64().zip(looks.as_u64()).map(|(now, before)| now - before);
        ensure!(matches!(more, Some(1 | 2)), "{before} {info}");
        Ok(())
    }
}

pub(super) fn told(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    let all = SLEEPERS.len() as u64;
    bench.put_to_sleep()?;
    let (own, hosts) = (bench.own_stacks()?, bench.host_stacks()?);
    let info = bench.applied_told()?;
    let id = info["id"].as_u64().context("no number")?;
    ensure!(info["state"] == "draining", "{info}");
    bench.are_held(id, all)?;
    // Both still see the whole stack. The guest sees one stub on it, in the place of whom that goes on to.
    ensure!(bench.host_stacks()? == hosts, "{:?} {hosts:?}", bench.host_stacks()?);
    bench.stacks_are_true()?;
    for (word, now) in bench.own_stacks()? {
        let before = own.get(word).context("it was there")?;
        let other: Vec<_> = now.iter().zip(before).filter(|(now, before)| now != before).collect();
        let is_stub = matches!(other[..], [(now, _)] if now.starts_with("lucos_stubs+"));
        ensure!(is_stub && now.len() == before.len(), "{word}: {now:?} {before:?}");
    }
    bench.wake_each(id, "closed")?;

    // Those in new code, when it goes.
    bench.put_to_sleep()?;
    let info = patch(&bench.vm.try_lucos(&format!("rollback {id}"))?, 0)?;
    ensure!(info["state"] == "leaving", "{info}");
    bench.are_held(id, all)?;
    bench.stacks_are_true()?;
    bench.wake_each(id, "removed")?;

    // To and fro while they sleep: each still leaves through its stub, whatever is old and what is new by then.
    bench.put_to_sleep()?;
    let id = bench.applied_told()?["id"].as_u64().context("no number")?;
    bench.wait_until(id, COMMAND, |info| info["state"] == "draining")?;
    bench.are_held(id, all)?;
    patch(&bench.vm.try_lucos(&format!("rollback {id}"))?, 0)?;
    bench.wait_until(id, COMMAND, |info| info["state"] == "leaving")?;
    bench.are_held(id, all)?;
    bench.applied_told()?;
    bench.wait_until(id, COMMAND, |info| info["state"] == "draining")?;
    bench.are_held(id, all)?;
    bench.wake_each(id, "closed")?;

    // Who is traced is watched.
    patch(&bench.vm.try_lucos(&format!("rollback {id}"))?, 0)?;
    // Its shell sleeps in poll, too, until it is told something.
    bench.vm.run("mount -t tracefs tracefs /sys/kernel/tracing")?;
    bench.vm.run(TRACE)?;
    bench.wait_until(id, COMMAND, |info| info["state"] == "removed")?;
    bench.put_to_sleep()?;
    let id = bench.applied_told()?["id"].as_u64().context("no number")?;
    bench.wait_until(id, COMMAND, |info| info["state"] == "draining")?;
    let info = bench.are_held(id, 0)?;
    println!("traced: {}", info["holders"]);
    for (word, _) in SLEEPERS {
        bench.wake(word)?;
    }
    let info = bench.wait_until(id, COMMAND, |info| info["state"] == "closed")?;
    ensure!(info["told"] == 0 && info["looks"] != 0, "{info}");
    bench.vm.run(TRACE_NO_MORE)?;
    bench.text_is_the_images()?;
    // Its console shows errors alone. The words must not be in the command, which is shown there, too.
    let warned = bench.vm.run("dmesg | grep -c -e 'BU[G]:' -e 'WARNIN[G]:' -e 'Oop[s]' -e 'unwind'; true")?;
    ensure!(warned.trim() == "0", "{}", bench.vm.run("dmesg | tail -50")?);
    bench.vm.power_off()
}
