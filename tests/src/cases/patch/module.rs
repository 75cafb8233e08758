//! A function of a module that comes and goes.

use anyhow::{Result, ensure};

use super::{Bench, patch};
use crate::deadlines::COMMAND;
use crate::lup::Lup;

const ANSWER: &str = "cat /sys/module/lucos_trial/parameters/answer";
const OLD: &str = "as it was built";
/// With the first byte of the module's own data.
const NEW: &str = "patched: 5a";

impl Bench {
    fn answers(&mut self, expected: &str) -> Result<()> {
        let answer = self.vm.run(ANSWER)?;
        ensure!(answer.contains(expected), "the answer is {answer:?}, not {expected:?}");
        Ok(())
    }
}

/// The function is replaced, taken back, replaced again, and goes with its module; loaded again, it is what it was.
pub(super) fn patched(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    let lup = Lup::of_trial(kind, "answer")?;

    // There is nothing to replace yet, and nothing of the patch comes into the guest.
    let refused = patch(&bench.apply(&lup, &["--unsigned"])?, 4)?;
    let why = refused.to_string();
    ensure!(
        why.contains("has not loaded module lucos_trial") && why.contains("modprobe lucos_trial"),
        "{why}"
    );
    ensure!(!bench.vm.run("cat /proc/modules")?.contains("lucos_answer"), "the patch's module was loaded");

    bench.vm.run("insmod /lucos_trial.ko")?;
    bench.answers(OLD)?;
    let info = patch(&bench.apply(&lup, &["--unsigned", "--wait"])?, 0)?;
    ensure!(info["state"] == "closed" && info["functions"][0] == "trial_answer [lucos_trial]", "{info}");
    println!("a switch took {} us", info["paused_us"]);
    let id = info["id"].as_u64().unwrap_or_default();
    bench.answers(NEW)?;
    patch(&bench.vm.try_lucos(&format!("rollback {id} --wait"))?, 0)?;
    bench.answers(OLD)?;
    let info = patch(&bench.apply(&lup, &["--unsigned", "--wait"])?, 0)?;
    let id = info["id"].as_u64().unwrap_or_default();
    bench.answers(NEW)?;

    // It goes while the patch is applied.
    bench.vm.run("rmmod lucos_trial")?;
    let info = bench.wait_for(id, "gone", COMMAND)?;
    let why = info["why"].as_str().unwrap_or_default();
    ensure!(why.contains("unloaded") && why.contains("lucos_trial"), "{info}");
    // So does the patch's own module.
    bench.wait_until_unloaded(id, "lucos_answer")?;
    let refused = bench.vm.try_lucos(&format!("rollback {id}"))?;
    ensure!(refused.code == 1 && refused.out.contains("not_applied"), "{refused:?}");
    bench.vm.run("insmod /lucos_trial.ko")?;
    bench.answers(OLD)?;
    let info = bench.state(id)?;
    ensure!(info["state"] == "gone", "{info}");
    bench.text_is_the_images()?;

    // Loaded again while nobody looks, it is noticed all the same.
    let info = patch(&bench.apply(&lup, &["--unsigned", "--wait"])?, 0)?;
    let id = info["id"].as_u64().unwrap_or_default();
    bench.answers(NEW)?;
    bench.vm.run("rmmod lucos_trial && insmod /lucos_trial.ko")?;
    bench.wait_for(id, "gone", COMMAND)?;
    bench.answers(OLD)?;
    bench.vm.power_off()
}
