//! A guest that lies while it is patched: another processor changes what is seen of it, and changes it back
//! (`scripts/guest/plant/hostile.c`).

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Bench, patch};
use crate::deadlines::COMMAND;
use crate::process::Output;

/// A kind of lie.
struct Attack {
    name: &'static str,
    /// What is said when it was seen: one of these.
    seen: &'static [&'static str],
}

/// The bytes of the function: what is read of it, and what is written over.
const FUNCTION: &[&str] = &["is not the one that the patch is for", "where e9 "];
/// The guest's copy of the patch's module.
const MODULE: &[&str] = &["the guest's copy of"];
/// Who is where.
const STACKS: &[&str] = &["not everything is proven"];

const ATTACKS: [Attack; 7] = [
    Attack { name: "text", seen: FUNCTION },
    Attack { name: "page", seen: FUNCTION },
    Attack { name: "new-text", seen: MODULE },
    Attack { name: "new-page", seen: MODULE },
    Attack { name: "sections", seen: MODULE },
    Attack { name: "stack", seen: STACKS },
    Attack { name: "tasks", seen: STACKS },
];

/// Tries to apply, for each kind of lie: at least, and until it was both seen and missed.
const TRIES: u32 = 4;
/// See [`TRIES`]; a lie lasts about as long as the truth.
const TRIES_MAX: u32 = 40;

/// How tries ended.
#[derive(Debug, Default)]
struct Outcomes {
    applied: u32,
    rolled_back: u32,
    /// Ended at once.
    refused: u32,
    /// Ended after a second.
    not_in_time: u32,
    /// Pauses in which nothing could be done, before one in which it could, or the second was over.
    given_back: usize,
}

/// Whatever the guest does meanwhile, a patch is applied as a whole or not at all, and says why.
pub(super) fn lies(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    // The guest has the module from here on, and it can be lied about: somebody there holds it.
    patch(&bench.apply(&bench.version()?, &["--unsigned", "--wait"])?, 0)?;
    bench.vm.run("insmod /lucos_trial.ko; echo lucos_patch > /sys/module/lucos_trial/parameters/hold")?;
    patch(&bench.vm.try_lucos("rollback 1")?, 0)?;
    bench.is_out(1)?;
    bench.truth()?;
    bench.vm.run("insmod /lucos_hostile.ko")?;
    for attack in &ATTACKS {
        let outcomes = bench.lie(attack).with_context(|| format!("while {} is changed", attack.name))?;
        println!("{}: {outcomes:?}", attack.name);
        bench.truth().with_context(|| format!("after {} was changed", attack.name))?;
    }
    bench.vm.run("rmmod lucos_hostile")?;
    bench.vm.power_off()
}

impl Bench {
    fn lie(&mut self, attack: &Attack) -> Result<Outcomes> {
        let switch = "/sys/module/lucos_hostile/parameters/attack";
        self.vm.run(&format!("echo {} > {switch}", attack.name))?;
        let lup = self.version()?;
        let mut outcomes = Outcomes::default();
        let before = self.given_back(attack);
        for tries in 1..=TRIES_MAX {
            let applied = self.apply(&lup, &["--unsigned", "--limit", "1"])?;
            if let Some(info) = outcomes.note(attack, &applied)? {
                outcomes.applied += 1;
                let id = &info["id"];
                // Nothing of it stays, whenever the guest lets it be taken back.
                for _ in 0..TRIES_MAX {
                    let rolled_back = self.vm.try_lucos(&format!("rollback {id} --limit 1"))?;
                    if outcomes.note(attack, &rolled_back)?.is_some() {
                        outcomes.rolled_back += 1;
                        break;
                    }
                }
                ensure!(outcomes.applied == outcomes.rolled_back, "it is not rolled back: {outcomes:?}");
            }
            outcomes.given_back = self.given_back(attack) - before;
            if tries >= TRIES && outcomes.seen() && outcomes.applied > 0 {
                break;
            }
        }
        self.vm.run(&format!("echo stop > {switch}"))?;
        let rounds = self.vm.run("cat /sys/module/lucos_hostile/parameters/rounds")?;
        ensure!(rounds.parse::<u64>()? > 0, "nothing was changed");
        ensure!(outcomes.seen(), "nobody has seen it in {rounds} rounds: {outcomes:?}");
        ensure!(outcomes.applied > 0, "nothing was ever applied: {outcomes:?}");
        Ok(outcomes)
    }

    /// How many pauses were given back for that so far, as the VMM says.
    fn given_back(&self, attack: &Attack) -> usize {
        let said = self.vm.messages().text();
        let is_it = |line: &&str| line.contains("not now: ") && attack.is_in(line);
        said.lines().filter(is_it).count()
    }

    /// Waits until a patch is rolled back and nobody is in it; its module is held.
    fn is_out(&self, id: u64) -> Result<()> {
        let is_out = |info: &Value| info["state"] == "removing" || info["state"] == "resident";
        self.wait_until(id, COMMAND, is_out).map(drop)
    }

    /// Everything works, and the guest is what it was.
    fn truth(&mut self) -> Result<()> {
        self.text_is_the_images()?;
        ensure!(!self.is_patched()?, "there is something left of it");
        let info = patch(&self.apply(&self.version()?, &["--unsigned", "--wait"])?, 0)?;
        let id = info["id"].as_u64().context("no number")?;
        ensure!(self.is_patched()?, "the new code does not run");
        self.text_is_the_images()?;
        patch(&self.vm.try_lucos(&format!("rollback {id}"))?, 0)?;
        self.is_out(id)?;
        ensure!(!self.is_patched()?, "the old code does not run");
        self.text_is_the_images()
    }
}

impl Attack {
    fn is_in(&self, why: &str) -> bool {
        self.seen.iter().any(|seen| why.contains(seen))
    }
}

impl Outcomes {
    fn seen(&self) -> bool {
        self.refused > 0 || self.not_in_time > 0 || self.given_back > 0
    }

    /// Takes down how a try has ended. Returns what is said of the patch if that was well.
    fn note(&mut self, attack: &Attack, output: &Output) -> Result<Option<Value>> {
        let code = if output.code == 0 { 0 } else { 5 };
        let info = patch(output, code)?;
        let why = info["why"].as_str().unwrap_or_default();
        if code == 0 {
            return Ok(Some(info));
        }
        ensure!(attack.is_in(why), "it has ended otherwise: {info}");
        let count = if why.contains("not within") { &mut self.not_in_time } else { &mut self.refused };
        *count += 1;
        Ok(None)
    }
}
