//! Functions that some thread is always inside: patched at once, and drained as those who sleep there are woken.

use std::collections::BTreeMap;
use std::thread;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Bench, patch};
use crate::deadlines::{COMMAND, PATCH};
use crate::images;
use crate::lup::Lup;
use crate::process;

/// Who sleeps where: the program's word for it, which is its name, too, and the function that it is inside.
pub(super) const SLEEPERS: [(&str, &str); 3] =
    [("poll", "do_sys_poll"), ("futex", "futex_wait"), ("pipe", "pipe_read")];

impl Bench {
    /// Has one sleep in each function.
    pub(super) fn put_to_sleep(&mut self) -> Result<()> {
        for (word, _) in SLEEPERS {
            self.vm.run(&format!("sleeper {word} > /{word}.log & echo $! > /{word}.pid"))?;
        }
        self.vm.run("sleep 1").map(drop)
    }

    /// Wakes one, which must have slept to the end.
    pub(super) fn wake(&mut self, word: &str) -> Result<()> {
        let said = self
            .vm
            .run(&format!("kill -USR1 $(cat /{word}.pid); wait $(cat /{word}.pid); cat /{word}.log"))?;
        ensure!(said == format!("{word}: woken"), "{said}");
        Ok(())
    }

    pub(super) fn pid(&mut self, word: &str) -> Result<u64> {
        Ok(self.vm.run(&format!("cat /{word}.pid"))?.trim().parse()?)
    }

    /// The frames of the sleepers, by name, as `lucos stacks` shows them.
    pub(super) fn frames(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let report = self.vm.lucos("stacks")?;
        let stacks = report["stacks"].as_array().context("no stacks")?;
        let frames = |stack: &Value| -> Vec<String> {
            let frames = stack["frames"].as_array().map_or(&[][..], Vec::as_slice);
            frames.iter().filter_map(|frame| frame["name"].as_str().map(str::to_owned)).collect()
        };
        let of = |stack: &Value| Some((stack["comm"].as_str()?.to_owned(), frames(stack)));
        Ok(stacks.iter().filter_map(of).collect())
    }

    /// Every sleeper that is named is inside its function's new code, or the old.
    fn are_inside(&self, new: bool) -> Result<()> {
        let all = self.frames()?;
        for (word, function) in SLEEPERS {
            let frames = all.get(word).with_context(|| format!("{word} does not sleep: {all:?}"))?;
            let is_new = |frame: &String| frame.starts_with(&format!("lucos_{function}+"));
            let is_old = |frame: &String| frame.starts_with(&format!("{function}+"));
            let found = (frames.iter().any(is_old), frames.iter().any(is_new));
            ensure!(found == (!new, new), "{word} is not in {function}, new: {new}: {frames:?}");
        }
        Ok(())
    }

    /// Sleepers are shown as holders, and are woken one by one until the patch is in the state `end`. In the old code, each is
    /// shown in its function; the new code is called as the patch is.
    fn drain(&mut self, id: u64, state: &str, end: &str, function: impl Fn(&str) -> String) -> Result<()> {
        for (woken, (word, old)) in SLEEPERS.iter().enumerate() {
            let left = &SLEEPERS[woken..];
            // Others may be inside for a moment, as the shell.
            let wanted: Vec<u64> = left.iter().map(|(word, _)| self.pid(word)).collect::<Result<_>>()?;
            let info = self.wait_until(id, COMMAND, |info| {
                let held = holders(info);
                wanted.iter().all(|pid| held.contains_key(pid))
                    && !SLEEPERS[..woken]
                        .iter()
                        .any(|(gone, _)| held.values().any(|holder| holder["comm"] == **gone))
            })?;
            ensure!(info["state"] == state, "{info}");
            for ((word, old), pid) in left.iter().zip(&wanted) {
                let held = holders(&info);
                let holder = held.get(pid).context("it was there")?;
                ensure!(holder["comm"] == *word && holder["function"] == function(old), "{holder}");
                ensure!(holder["stack"].to_string().contains(&format!("{old}+")), "{holder}");
            }
            println!("{state}: {} are left, {word} in {old} among them", holders(&info).len());
            self.wake(word)?;
        }
        self.wait_until(id, COMMAND, |info| info["state"] == end).map(drop)
    }

    pub(super) fn wait_until(
        &self,
        id: u64,
        limit: std::time::Duration,
        is_it: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let begin = std::time::Instant::now();
        loop {
            let info = self.state(id)?;
            if is_it(&info) {
                return Ok(info);
            }
            ensure!(begin.elapsed() < limit, "patch {id} does not come so far: {info}");
        }
    }
}

pub(super) fn holders(info: &Value) -> BTreeMap<u64, &Value> {
    let holders = info["holders"].as_array().map_or(&[][..], Vec::as_slice);
    holders.iter().filter_map(|holder| Some((holder["pid"].as_u64()?, holder))).collect()
}

/// The same where old and new code may not run at the same time: it waits for all of them, names them, and gives up; when they are
/// gone in time, it is applied. So it is rolled back.
pub(super) fn quiescent(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    let lup = Lup::read(kind, &images::image(&format!("same-wait-{kind}.lup"))?)?.quiescent();
    bench.put_to_sleep()?;
    let given_up = patch(&bench.apply(&lup, &["--unsigned", "--limit", "4"])?, 5)?;
    ensure!(given_up["state"] == "failed", "{given_up}");
    let named = |info: &Value| {
        let why = info["why"].as_str().unwrap_or_default();
        SLEEPERS.iter().all(|(word, _)| why.contains(&format!(" {word} (")))
    };
    ensure!(named(&given_up), "not all are named: {given_up}");
    bench.are_inside(false)?;
    bench.text_is_the_images()?;

    let waiting = bench.begin_to_apply(&lup, &["--unsigned"])?;
    let pids: Vec<u64> = SLEEPERS.iter().map(|(word, _)| bench.pid(word)).collect::<Result<_>>()?;
    let begin = std::time::Instant::now();
    let waits = |info: &Value| {
        let held = holders(info);
        info["state"] == "applying" && pids.iter().all(|pid| held.contains_key(pid))
    };
    while !bench.vm.lucos("list")?["patches"].as_array().is_some_and(|all| all.iter().any(waits)) {
        ensure!(begin.elapsed() < COMMAND, "they are not shown: {}", bench.vm.lucos("list")?);
    }
    for (word, _) in SLEEPERS {
        ensure!(!waiting.is_finished(), "it was applied although {word} slept: {:?}", waiting.join());
        bench.wake(word)?;
    }
    // The shell itself sleeps in poll at its prompt, and not while it waits for a program.
    bench.vm.run("sleep 5")?;
    let output = waiting.join().map_err(|_| anyhow::anyhow!("the thread that waits has panicked"))??;
    let info = patch(&output, 0)?;
    ensure!(info["state"] == "closed", "{info}");
    let id = info["id"].as_u64().context("no number")?;

    bench.put_to_sleep()?;
    bench.are_inside(true)?;
    let kept = patch(&bench.vm.try_lucos(&format!("rollback {id} --limit 4"))?, 5)?;
    ensure!(named(&kept) && kept["why"].to_string().contains("still applied"), "{kept}");
    bench.are_inside(true)?;
    for (word, _) in SLEEPERS {
        bench.wake(word)?;
    }
    let mut lucos = bench.lucos()?;
    lucos.args(["rollback", &id.to_string(), "--wait"]);
    let waiting = thread::spawn(move || process::run(&mut lucos, PATCH));
    bench.vm.run("sleep 5")?;
    let output = waiting.join().map_err(|_| anyhow::anyhow!("the thread that waits has panicked"))??;
    let info = patch(&output, 0)?;
    ensure!(info["state"] == "removed", "{info}");
    bench.text_is_the_images()?;
    bench.vm.power_off()
}

pub(super) fn always_inside(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    let lup = images::image(&format!("same-wait-{kind}.lup"))?;
    bench.put_to_sleep()?;
    bench.are_inside(false)?;
    let info = patch(&bench.vm.try_lucos_with("apply", &lup, &["--unsigned"])?, 0)?;
    let id = info["id"].as_u64().context("no number")?;
    ensure!(info["state"] == "draining", "{info}");
    bench.drain(id, "draining", "closed", ToOwned::to_owned)?;

    bench.put_to_sleep()?;
    bench.are_inside(true)?;
    let info = patch(&bench.vm.try_lucos(&format!("rollback {id}"))?, 0)?;
    ensure!(info["state"] == "leaving", "{info}");
    bench.drain(id, "leaving", "removed", |_| "same-wait".to_owned())?;
    bench.put_to_sleep()?;
    bench.are_inside(false)?;
    bench.text_is_the_images()?;
    bench.vm.power_off()
}
