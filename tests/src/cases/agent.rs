//! The agent in a stock guest: what it is asked to load is loaded, and what is handed in from inside comes out.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lucos_abi::Lockdown;
use lucos_vmm::agent::{ModuleSection, Order, Outcome};
use lucos_vmm::config::MachineSpec;

use super::devices::sha256;
use super::kernel::number;
use crate::deadlines::{BOOT, COMMAND, DEBIAN_BOOT, EXIT, SHUTDOWN};
use crate::embedded::Embedded;
use crate::harness::{Test, Tier};
use crate::images;
use crate::initramfs::{Initramfs, contents};

pub(super) const TESTS: &[Test] = &[
    Test::new("agent::modules_and_patches_of_6_1_cloud", Tier::Gate, || modules_and_patches("6.1-cloud")),
    Test::new("agent::modules_and_patches_of_6_12_cloud", Tier::Full, || modules_and_patches("6.12-cloud")),
    Test::new("agent::a_service_of_debian", Tier::Gate, service),
    Test::new("agent::a_locked_kernel_is_recognised", Tier::Gate, locked),
];

/// Error numbers of Linux (include/uapi/asm-generic/errno-base.h).
const ENOENT: u32 = 2;
const ENOEXEC: u32 = 8;
const EBUSY: u32 = 16;
const EEXIST: u32 = 17;
/// Taints (Documentation/admin-guide/tainted-kernels.rst): a module not of the kernel's source, and one without signature.
const TAINT_OF_MODULE: u64 = 1 << 12 | 1 << 13;

/// What the guest does. It waits for what the host does by looking at the modules that are there.
const SCRIPT: &str = r#"
mount -t securityfs securityfs /sys/kernel/security
dmesg -n 4
there() { grep -q "^$1 " /proc/modules; }
echo "trial: $(lucos-agent status)"
lucos-agent run &
agent=$!
until there lucos_plant; do sleep 0.2; done
head -c 300000 /dev/urandom > /tmp/fix.lup
echo "trial: patch $(sha256sum < /tmp/fix.lup)"
lucos-agent apply /tmp/fix.lup
echo "trial: second agent: $(lucos-agent run 2>&1)"
kill -9 $agent
wait $agent
echo "trial: killed"
until [ "$(lucos-agent status | tail -n 1)" = "go on" ]; do sleep 0.2; done
lucos-agent run &
until there lucos_trial; do sleep 0.2; done
echo "trial: $(lucos-agent status)"
"#;

fn start(kind: &str, script: &str, cmdline: &str) -> Result<Embedded> {
    let folder = images::folder()?;
    let initramfs = Initramfs::new(folder.path().join("initramfs"))?
        .archive(&images::image("tiny.cpio")?)?
        .archive(&images::image("agent.cpio")?)?
        .text("trial", script)?;
    let mut spec = MachineSpec::new(images::image(&format!("vmlinuz-{kind}"))?);
    spec.initrd = Some(initramfs.path().to_owned());
    spec.cpus = "2".parse()?;
    spec.cmdline = format!("{cmdline} LUCOS_RUN=\"sh /trial\"");
    Embedded::start(spec, folder)
}

fn modules_and_patches(kind: &str) -> Result<()> {
    let plant = images::image(&format!("plant-{kind}.cpio"))?;
    let module = |name: &str| -> Result<Order> {
        Ok(Order::Load { name: name.into(), module: contents(&plant, &format!("{name}.ko"))?.into() })
    };
    let unload = |name: &str| Order::Unload { name: name.into() };
    let mut vm = start(kind, SCRIPT, "")?;
    vm.link().allow_submissions(true);
    vm.link().set_status("no patch is applied\n");
    let hello = vm.wait("an agent", BOOT, lucos_vmm::agent::AgentLink::hello)?;
    let release = hello.release().context("no release")?;
    let flavour = kind.rsplit('-').next().context("no flavour")?;
    ensure!(release.contains(flavour), "the agent runs on {release}");
    ensure!(hello.obstacle(false).is_none() && hello.taint.get() == 0, "{hello:?}");
    let status = vm.console().expect("no patch is applied", COMMAND)?;
    ensure!(status.contains(&format!("kernel    {release}")) && status.contains("taint     0"), "{status}");

    // A module of 200 kB goes in, and is where the guest says that it is.
    let began = Instant::now();
    let (taint, sections) = done(vm.ask(module("lucos_trial")?)?)?;
    let took = began.elapsed();
    ensure!(taint & TAINT_OF_MODULE == TAINT_OF_MODULE, "taint {taint:#x}");
    check_place(&vm, &sections)?;
    failed(&vm, module("lucos_trial")?, EEXIST)?;
    done(vm.ask(unload("lucos_trial"))?)?;
    failed(&vm, unload("lucos_trial"), ENOENT)?;
    failed(&vm, Order::Load { name: "lucos_trial".into(), module: vec![0x5a; 100_000].into() }, ENOEXEC)?;

    ensure_idle(&vm)?;

    // This one has no way to be unloaded, and tells the script to go on.
    done(vm.ask(module("lucos_plant")?)?)?;
    failed(&vm, unload("lucos_plant"), EBUSY)?;
    let sum =
        vm.console().expect("trial: patch ", COMMAND).and_then(|_| vm.console().expect("  -", COMMAND))?;
    let patch = vm.wait("a patch", COMMAND, lucos_vmm::agent::AgentLink::take_submission)?;
    ensure!(patch.name == "fix.lup" && patch.number == 1, "{} {}", patch.number, patch.name);
    ensure!(sha256(&patch.bytes) == sum.trim(), "{} bytes with another sum than {sum}", patch.bytes.len());
    vm.console().expect("handed over as number 1", COMMAND)?;
    vm.console().expect("another lucos-agent sleeps on /dev/ttyS1", COMMAND)?;

    // What an agent is not there for waits for the next one.
    vm.console().expect("trial: killed", COMMAND)?;
    vm.link().ask(module("lucos_trial")?)?;
    ensure!(vm.link().take_answers().is_empty(), "an agent that was killed answers");
    vm.link().set_status("go on\n");
    let answers = vm.wait("the next agent", COMMAND, |link| {
        Some(link.take_answers()).filter(|answers| !answers.is_empty())
    })?;
    ensure!(matches!(answers[0].outcome, Outcome::Done { .. }), "{answers:?}");
    vm.console().expect("a module without a trusted signature was loaded", COMMAND)?;
    vm.expect_power_off(EXIT)?;
    println!("a module of {} sections in {} ms", sections.len(), took.as_millis());
    Ok(())
}

/// Nobody polls: an agent with nothing to do makes no call, once it has asked for the last time.
fn ensure_idle(vm: &Embedded) -> Result<()> {
    let calls = || -> Result<u64> {
        vm.lucos("counters")?["exits"]["hypercall"].as_u64().context("no count of hypercalls")
    };
    let begin = Instant::now();
    let mut before = calls()?;
    loop {
        thread::sleep(Duration::from_secs(5));
        let now = calls()?;
        if now == before {
            return Ok(());
        }
        ensure!(begin.elapsed() < COMMAND, "an agent with nothing to do calls: {before}, then {now}");
        before = now;
    }
}

fn done(outcome: Outcome) -> Result<(u64, Vec<ModuleSection>)> {
    match outcome {
        Outcome::Done { taint, sections } => Ok((taint, sections)),
        other => anyhow::bail!("not done: {other:?}"),
    }
}

fn failed(vm: &Embedded, order: Order, expected: u32) -> Result<()> {
    let outcome = vm.ask(order)?;
    ensure!(
        matches!(outcome, Outcome::Failed { errno, .. } if errno == expected),
        "not failed with {expected}: {outcome:?}"
    );
    Ok(())
}

/// The host sees the module's text where the agent says that it is.
fn check_place(vm: &Embedded, sections: &[ModuleSection]) -> Result<()> {
    let text = sections.iter().find(|section| section.name == ".text" || section.name == ".exit.text");
    let text = text.with_context(|| format!("no text among {sections:?}"))?.address;
    let report = vm.lucos("modules lucos_trial")?;
    let seen = &report["modules"][0]["text"];
    let (start, bytes) =
        (number(&seen["address"]).context("no module")?, seen["bytes"].as_u64().unwrap_or(0));
    ensure!((start..start + bytes).contains(&text), "{text:#x} is not in {seen}");
    Ok(())
}

/// The service has the rights that it needs, for all that its unit takes away.
fn service() -> Result<()> {
    let folder = images::folder()?;
    let disk = images::copy("debian.img", folder.path())?;
    let mut spec = MachineSpec::new(images::image("vmlinuz-6.1-cloud")?);
    spec.disks = vec![disk.to_str().context("an odd path")?.parse()?];
    spec.memory = "1G".parse()?;
    let mut vm = Embedded::start(spec, folder)?;
    let hello = vm.wait("the service", DEBIAN_BOOT, lucos_vmm::agent::AgentLink::hello)?;
    ensure!(hello.lockdown() == Some(Lockdown::None) && hello.obstacle(false).is_none(), "{hello:?}");
    let name = "lucos_trial";
    let module = contents(&images::image("plant-6.1-cloud.cpio")?, &format!("{name}.ko"))?;
    let (_, sections) = done(vm.ask(Order::Load { name: name.into(), module: module.into() })?)?;
    check_place(&vm, &sections)?;
    done(vm.ask(Order::Unload { name: name.into() })?)?;
    vm.console().expect("login: ", DEBIAN_BOOT)?;
    vm.lucos("power-button")?;
    vm.expect_power_off(SHUTDOWN)
}

/// The agent of a locked kernel cannot reach the host, and says why; so does one that may load nothing.
fn locked() -> Result<()> {
    let mut vm = start(
        "6.1-cloud",
        "mount -t securityfs securityfs /sys/kernel/security; lucos-agent run; echo \"trial: ended with $?\"",
        "lockdown=integrity",
    )?;
    let said = vm.console().expect("trial: ended with 1", BOOT)?;
    ensure!(said.contains("this kernel is locked down"), "it says {said:?}");
    vm.expect_power_off(EXIT)?;
    ensure!(vm.link().hello().is_none(), "a locked kernel lets its agent call");

    let script = "echo 1 > /proc/sys/kernel/modules_disabled; lucos-agent run & sleep 20";
    let mut vm = start("6.1-cloud", script, "module.sig_enforce=1")?;
    let hello = vm.wait("an agent", BOOT, lucos_vmm::agent::AgentLink::hello)?;
    let obstacle = hello.obstacle(true).context("nothing keeps modules out")?;
    ensure!(obstacle.contains("modules_disabled"), "{obstacle}");
    let outcome = vm.ask(Order::Load { name: "fix".into(), module: vec![0; 64].into() })?;
    ensure!(matches!(outcome, Outcome::Failed { errno: 1, .. }), "{outcome:?}");
    vm.expect_power_off(EXIT)
}
