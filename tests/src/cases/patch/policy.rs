//! Old and new code that may not run at the same time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{Bench, patch};
use crate::deadlines::COMMAND;
use crate::lup::Lup;

/// Threads that are inside the function.
const INSIDE: usize = 3;

/// The patch waits, names who is inside, and gives up; when they leave in time, it is applied.
pub(super) fn quiescent(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    let lup = Lup::new(kind, "pause")?.replace("__x64_sys_pause", "lucos_sys_pause")?.quiescent();
    let inside = "for name in a b c; do pauser $name & echo $! >> /inside; done; sleep 1";
    bench.vm.run(inside)?;

    let given_up = patch(&bench.apply(&lup, &["--unsigned", "--limit", "3"])?, 5)?;
    ensure!(given_up["state"] == "failed", "{given_up}");
    let why = given_up["why"].as_str().unwrap_or_default();
    ensure!(
        why.contains("nothing was changed") && why.contains(&format!("{INSIDE} frames are in the code")),
        "{why}"
    );
    ensure!(
        ["a", "b", "c"].iter().all(|name| why.contains(&format!(" {name} ("))),
        "not all are named: {why}"
    );
    ensure!(given_up["attempts"].as_u64().is_some_and(|count| count > 3), "{given_up}");
    bench.text_is_the_images()?;

    let waiting = bench.begin_to_apply(&lup, &["--unsigned"])?;
    let begin = Instant::now();
    let holders = |info: &Value| info["holders"].as_array().map_or(0, Vec::len);
    let waits = |info: &Value| info["state"] == "applying" && holders(info) == INSIDE;
    while !bench.vm.lucos("list")?["patches"].as_array().is_some_and(|all| all.iter().any(waits)) {
        ensure!(begin.elapsed() < COMMAND, "those who are inside are not shown: {}", bench.vm.lucos("list")?);
    }
    std::thread::sleep(Duration::from_secs(2));
    ensure!(!waiting.is_finished(), "{:?}", waiting.join());
    // Old code as long as one is inside.
    let left = bench.vm.run("for pid in $(cat /inside); do kill -USR1 $pid; wait $pid; done")?;
    ensure!(left.matches("pause ended with error 4").count() == INSIDE, "{left}");
    let output = waiting.join().map_err(|_| anyhow::anyhow!("the thread that waits has panicked"))??;
    let info = patch(&output, 0)?;
    ensure!(info["state"] == "closed", "{info}");
    ensure!(bench.vm.run("pauser new")?.contains("new: pause ended with error 11"), "new calls run old code");
    patch(&bench.vm.try_lucos(&format!("rollback {}", info["id"]))?, 0)?;
    bench.text_is_the_images()?;
    println!("{} tries before it was applied", info["attempts"]);
    bench.vm.power_off()
}
