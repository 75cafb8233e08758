//! Live patches of stock kernels: applied, seen to work, rolled back.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::deadlines::{BOOT, COMMAND, EXIT};
use crate::harness::{Test, Tier};
use crate::images;
use crate::initramfs::Initramfs;
use crate::lup::Lup;
use crate::process::Output;
use crate::vm::Vm;

pub(super) const TESTS: &[Test] = &[
    Test::new("patch::applied_and_rolled_back_6_1_cloud", Tier::Gate, || applied("6.1-cloud")),
    Test::new("patch::applied_and_rolled_back_6_12_cloud", Tier::Full, || applied("6.12-cloud")),
    Test::new("patch::applied_and_rolled_back_6_1_rt", Tier::Full, || applied("6.1-rt")),
];

/// A guest with an agent, and patches for it.
struct Bench {
    vm: Vm,
    kind: &'static str,
    folder: tempfile::TempDir,
}

impl Bench {
    fn start(kind: &'static str, cpus: u32) -> Result<Self> {
        let folder = images::folder()?;
        let initramfs = Initramfs::planted(folder.path().join("initramfs"), kind)?
            .archive(&images::image("agent.cpio")?)?;
        let builder = Vm::builder(&format!("vmlinuz-{kind}"))?.initrd_file(initramfs.path()).cpus(cpus);
        let mut vm = builder.verbose().start()?;
        vm.shell(BOOT)?;
        // Nobody but the test looks at what the agent says.
        vm.run("lucos-agent run > /agent.log 2>&1 & dmesg -n 4")?;
        Ok(Self { vm, kind, folder })
    }

    fn lup(&self, name: &str) -> Result<Lup> {
        Lup::new(self.kind, name)
    }

    fn apply(&self, lup: &Lup, more: &[&str]) -> Result<Output> {
        let file = lup.write(self.folder.path())?;
        self.vm.try_lucos_with("apply", &file, more)
    }

    fn text_is_the_images(&self) -> Result<()> {
        let report = self.vm.lucos("text-check")?;
        ensure!(report["unexplained"].as_array().is_some_and(Vec::is_empty), "{}", report["unexplained"]);
        Ok(())
    }
}

/// The patch that a command has printed, which must have ended with `code`.
fn patch(output: &Output, code: i32) -> Result<Value> {
    ensure!(output.code == code, "ended with {}: {}{}", output.code, output.out, output.err);
    serde_json::from_str(&output.out).with_context(|| format!("it printed {:?}", output.out))
}

fn applied(kind: &'static str) -> Result<()> {
    let mut bench = Bench::start(kind, 2)?;
    let before = bench.vm.run("cat /proc/version")?;
    let lup = bench.lup("version")?.replace("version_proc_show", "lucos_version_proc_show")?;
    let lup = lup.replace("__x64_sys_pause", "lucos_sys_pause")?;

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
    let begin = std::time::Instant::now();
    while bench.vm.lucos("status 1")?["patches"][0]["state"] != "closed" {
        ensure!(begin.elapsed() < COMMAND, "{}", bench.vm.lucos("status 1")?);
    }

    let info = patch(&bench.vm.try_lucos("rollback 1 --wait")?, 0)?;
    ensure!(info["state"] == "resident", "{info}");
    ensure!(bench.vm.run("cat /proc/version")? == before, "rolled back, and not as before");
    bench.text_is_the_images()?;

    // Once more, from what is still there.
    let info = patch(&bench.apply(&lup, &["--unsigned", "--wait"])?, 0)?;
    ensure!(info["state"] == "closed" && info["id"] == 1, "{info}");
    ensure!(bench.vm.run("cat /proc/version")? == after, "applied again, and not as before");
    println!("a switch took {} us", info["paused_us"]);
    bench.vm.type_keys(b"poweroff -f\r")?;
    ensure!(bench.vm.wait_exit(EXIT)? == 0, "the VMM fails");
    Ok(())
}
