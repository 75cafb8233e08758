//! A patch applied while somebody is inside one of its functions, drained, rolled back, and applied again.

use anyhow::{Result, ensure};

use super::{Bench, patch};
use crate::deadlines::COMMAND;

pub(super) fn applied(kind: &'static str) -> Result<()> {
    applied_to(&mut Bench::start(kind, 2)?)
}

pub(super) fn applied_to(bench: &mut Bench) -> Result<()> {
    let before = bench.vm.run("cat /proc/version")?;
    let lup = bench.version()?.replace("__x64_sys_pause", "lucos_sys_pause")?;

    // Nobody has signed it.
    let refused = patch(&bench.apply(&lup, &[])?, 4)?;
    ensure!(refused["code"] == "not_trusted", "{refused}");

    // Somebody is inside one of its functions.
    bench.vm.run("pauser old & echo $! > /old; sleep 1")?;
    let info = patch(&bench.apply(&lup, &["--unsigned"])?, 0)?;
    ensure!(info["state"] == "draining" && info["id"] == 1, "{info}");
    let holder = &info["holders"][0];
    ensure!(holder["comm"] == "old" && holder["function"] == "__x64_sys_pause", "{info}");
    ensure!(holder["stack"].to_string().contains("sys_pause+"), "{info}");
    let after = bench.vm.run("cat /proc/version")?;
    ensure!(after == format!("patched: {before}"), "{after:?} after {before:?}");
    ensure!(bench.vm.run("pauser new")?.contains("new: pause ended with error 11"), "new calls run old code");
    let again = bench.apply(&lup, &["--unsigned"])?;
    ensure!(again.code == 1 && again.out.contains("already_applied"), "{again:?}");

    // The last one leaves.
    ensure!(
        bench.vm.run("kill -USR1 $(cat /old); wait $(cat /old)")?.contains("old: pause ended with error 4"),
        "old code"
    );
    bench.wait_for(1, "closed", COMMAND)?;

    let info = patch(&bench.vm.try_lucos("rollback 1 --wait")?, 0)?;
    ensure!(info["state"] == "removed", "{info}");
    ensure!(bench.vm.run("cat /proc/version")? == before, "rolled back, and not as before");
    bench.text_is_the_images()?;

    // Once more: it is loaded anew, and keeps its number.
    let info = patch(&bench.apply(&lup, &["--unsigned", "--wait"])?, 0)?;
    ensure!(info["state"] == "closed" && info["id"] == 1, "{info}");
    ensure!(bench.vm.run("cat /proc/version")? == after, "applied again, and not as before");
    println!("a switch took {} us", info["paused_us"]);
    bench.vm.power_off()
}
