//! What is asked of nobody in vain: guests that would load no module, and patches from inside that are not for the guest to apply.

use std::fs::{self, File};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::refusals::lucos_patch;
use super::{AGENT, Bench, patch};
use crate::deadlines::{BOOT, COMMAND};
use crate::images;
use crate::initramfs::Initramfs;
use crate::lup::Lup;
use crate::process;
use crate::vm::Vm;

/// Guests that load no module of anybody: their command line, what is done before the agent starts, and what the refusal names.
const SETTINGS: [(&str, &str, &str); 3] = [
    ("lockdown=integrity", "true", "is locked down"),
    ("module.sig_enforce=1", "true", "module.sig_enforce is set"),
    ("", "echo 1 > /proc/sys/kernel/modules_disabled", "kernel.modules_disabled is 1"),
];

/// Each is recognised before anything is sent, and in one sentence.
pub(super) fn recognised(kind: &'static str) -> Result<()> {
    for (cmdline, before, word) in SETTINGS {
        let folder = images::folder()?;
        let builder = Bench::builder(kind, &folder)?.cpus(2).cmdline(cmdline);
        let mut bench = Bench { vm: builder.verbose().start()?, kind, folder };
        bench.vm.shell(BOOT)?;
        bench.vm.run(&format!(
            "mount -t securityfs securityfs /sys/kernel/security; {before}; {AGENT}; sleep 2"
        ))?;
        let calls = |bench: &Bench| -> Result<u64> {
            bench.vm.lucos("counters")?["exits"]["hypercall"].as_u64().context("no count of hypercalls")
        };
        let quiet = calls(&bench)?;
        let output = bench.apply(&bench.version()?, &["--unsigned"])?;
        ensure!(output.code == 4, "{cmdline}: {output:?}");
        let error: Value = serde_json::from_str(&output.out)?;
        let message = error["message"].as_str().unwrap_or_default();
        ensure!(error["code"] == "guest_refuses" && message.contains(word), "{cmdline}: {error}");
        println!("{message}");
        thread::sleep(Duration::from_secs(2));
        ensure!(calls(&bench)? == quiet, "{cmdline}: the agent was asked for something");
        ensure!(!bench.has_module("lucos_patch")? && !bench.is_patched()?, "{cmdline}: something was loaded");
        bench.text_is_the_images()?;
        bench.vm.power_off()?;
    }
    Ok(())
}

impl Bench {
    /// Hands a file of the guest's in; what the agent says then.
    fn hand_in(&mut self, file: &str) -> Result<String> {
        let (said, code) = self.vm.run_any(&format!("lucos-agent apply {file}"), COMMAND)?;
        ensure!(code == 0, "the agent has ended with {code}: {said}");
        Ok(said)
    }

    /// Waits until the guest is told something of its patches that has `word` in it.
    fn is_told(&mut self, word: &str) -> Result<String> {
        let begin = Instant::now();
        loop {
            let said = self.vm.run("lucos-agent status")?;
            if said.contains(word) {
                return Ok(said);
            }
            ensure!(begin.elapsed() < COMMAND, "the guest is not told of {word:?}: {said}");
        }
    }
}

/// Whether a patch from inside is taken is the operator's policy, and what the operator takes back the guest does not undo.
pub(super) fn from_inside(kind: &'static str) -> Result<()> {
    let folder = images::folder()?;
    let files = folder.path();
    lucos_patch(files, &["keygen", "--no-password", "me"])?;
    let lup = Lup::new(kind, "version")?.replace("version_proc_show", "lucos_version_proc_show")?;
    fs::copy(lup.write(files)?, files.join("unsigned.lup"))?;
    lucos_patch(files, &["sign", "--key", "me.key", "version.lup"])?;
    let initramfs = Initramfs::planted(files.join("initramfs"), kind)?
        .archive(&images::image("agent.cpio")?)?
        .file("version.lup", &files.join("version.lup"))?
        .file("unsigned.lup", &files.join("unsigned.lup"))?;
    let builder = || -> Result<_> {
        let builder = Vm::builder(&format!("vmlinuz-{kind}"))?.initrd_file(initramfs.path()).cpus(2);
        Ok(builder.patch_key(&files.join("me.pub")))
    };

    // Nobody has allowed it.
    let mut closed = Bench::of(kind, images::folder()?, builder()?)?;
    let (said, code) = closed.vm.run_any("lucos-agent apply /version.lup", COMMAND)?;
    ensure!(code == 1 && said.contains("lets the guest hand in no patches"), "{code}: {said}");
    ensure!(closed.vm.lucos("list")?["patches"].as_array().is_some_and(Vec::is_empty), "it was taken");
    closed.vm.power_off()?;

    let mut bench = Bench::of(kind, images::folder()?, builder()?.patches_from_inside())?;
    let watched = files.join("watched");
    let mut watching = bench.lucos()?;
    let mut watching = watching.arg("watch").stdout(Stdio::from(File::create(&watched)?)).spawn()?;
    bench.hand_in("/unsigned.lup")?;
    let said = bench.is_told("was refused")?;
    ensure!(said.contains("unsigned.lup, handed over as number 1") && said.contains("not signed"), "{said}");
    bench.hand_in("/version.lup")?;
    bench.is_told("1 version closed")?;
    let info = bench.state(1)?;
    ensure!(info["from"] == "guest" && info["signed_by"].is_string() && bench.is_patched()?, "{info}");
    patch(&bench.vm.try_lucos("rollback 1 --wait")?, 0)?;
    bench.hand_in("/version.lup")?;
    let said = bench.is_told("was refused")?;
    ensure!(said.contains("operator has rolled version back") && !bench.is_patched()?, "{said}");
    // The operator may think otherwise, and then it is the guest's again.
    patch(&bench.vm.try_lucos_with("apply", &files.join("version.lup"), &["--wait"])?, 0)?;
    ensure!(bench.is_patched()?, "applied, and no new code runs");
    bench.text_is_the_images()?;
    bench.vm.power_off()?;
    let ended = process::wait(&mut watching, COMMAND)?.context("nothing ends a watch")?;
    ensure!(ended.success(), "a watch ended with {ended}");
    shows(&fs::read_to_string(&watched)?)
}

/// What a watch has printed: one list of patches in each line, which all of its changes are in.
fn shows(watched: &str) -> Result<()> {
    let lists: Vec<Value> = watched.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let revisions: Vec<u64> = lists.iter().filter_map(|list| list["revision"].as_u64()).collect();
    ensure!(revisions.len() == lists.len() && revisions.is_sorted(), "{revisions:?}");
    let mut states: Vec<&str> =
        lists.iter().filter_map(|list| list["patches"][0]["state"].as_str()).collect();
    states.dedup();
    println!("{states:?} in {} lines", lists.len());
    let mut left = states.iter();
    for wanted in ["closed", "removed", "closed"] {
        ensure!(left.any(|state| *state == wanted), "{wanted} is not shown in its place: {states:?}");
    }
    Ok(())
}
