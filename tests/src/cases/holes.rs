//! Holes of a stock kernel, as a user of the guest sees them: what a patch is to close (`scripts/guest/holes`).

use std::path::Path;

use anyhow::{Result, ensure};

use crate::deadlines::BOOT;
use crate::harness::{Test, Tier};
use crate::images;
use crate::initramfs::Initramfs;
use crate::vm::{Builder, Vm};

pub(super) const TESTS: &[Test] = &[
    Test::new(OPEN, Tier::Gate, || vulnerable(OPEN, &[&QUIET[..], &IN_MODULES].concat())),
    Test::with_alarms(OPEN_WITH_A_WARNING, Tier::Full, || vulnerable(OPEN_WITH_A_WARNING, &[WARNS])),
    Test::new("holes::of_the_newest_kernel_are_closed", Tier::Gate, || {
        let folder = images::folder()?;
        let mut vm = start("6.1-cloud", folder.path())?;
        look(&mut vm, &[&QUIET[..], &IN_MODULES, &[WARNS]].concat(), "closed")
    }),
    Test::new(PATCHED, Tier::Gate, || patched(PATCHED, &[&QUIET[..], &IN_MODULES].concat())),
    Test::with_alarms(PATCHED_WITH_A_WARNING, Tier::Full, || patched(PATCHED_WITH_A_WARNING, &[WARNS])),
    Test::new(PATCHED_ON_INTEL, Tier::IntelFull, patched_on_intel),
];

const OPEN: &str = "holes::of_the_vulnerable_kernel_are_open";
const OPEN_WITH_A_WARNING: &str = "holes::that_the_vulnerable_kernel_warns_of_are_open";
const PATCHED: &str = "holes::are_closed_by_a_patch_and_open_after_it";
const PATCHED_ON_INTEL: &str = "holes::is_closed_by_a_patch_on_intel";
const PATCHED_WITH_A_WARNING: &str = "holes::that_the_vulnerable_kernel_warns_of_are_closed_by_a_patch";

/// Those of the kernel itself, which says nothing of them.
const QUIET: [&str; 4] = ["ipc-next-id", "time-namespace", "bpf-next-key", "io-uring-pin"];
/// Those of its modules.
const IN_MODULES: [&str; 2] = ["multiport-range", "iso-handle"];
/// The vulnerable kernel warns when somebody comes near it.
const WARNS: &str = "nexthop-group";
/// Handed over in the vulnerable kernel's place when Debian's archive has it no more.
const NONE: &str = "no-vulnerable-kernel";
/// A look changes nothing, or the next would see it.
const LOOKS: usize = 3;

/// The kind of kernel that has them.
const VULNERABLE: &str = "6.1-cloud-vulnerable";

fn vulnerable(test: &str, holes: &[&str]) -> Result<()> {
    if is_skipped(test) {
        return Ok(());
    }
    let folder = images::folder()?;
    look(&mut start(VULNERABLE, folder.path())?, holes, "open")
}

/// Each fix is applied and rolled back in turn; the patch of a hole has its name.
fn patched(test: &str, holes: &[&str]) -> Result<()> {
    if is_skipped(test) {
        return Ok(());
    }
    let folder = images::folder()?;
    patch_each(&mut start(VULNERABLE, folder.path())?, holes)
}

fn patched_on_intel() -> Result<()> {
    if is_skipped(PATCHED_ON_INTEL) {
        return Ok(());
    }
    let folder = images::folder()?;
    let builder = builder(VULNERABLE, folder.path())?.on_a_slow_host();
    patch_each(&mut begin(builder)?, &QUIET[..1])
}

fn patch_each(vm: &mut Vm, holes: &[&str]) -> Result<()> {
    vm.run("lucos-agent run > /agent.log 2>&1 & :")?;
    for (hole, id) in holes.iter().zip(1..) {
        look(vm, &[hole], "open")?;
        let lup = images::image(&format!("{hole}.lup"))?;
        let applied = vm.try_lucos_with("apply", &lup, &["--unsigned", "--wait", "--limit", "900"])?;
        ensure!(applied.code == 0, "{hole}: {}{}", applied.out, applied.err);
        look(vm, &[hole], "closed")?;
        vm.lucos(&format!("rollback {id} --wait"))?;
        look(vm, &[hole], "open")?;
    }
    Ok(())
}

fn is_skipped(test: &str) -> bool {
    let skipped = images::image(NONE).is_ok();
    if skipped {
        println!("SKIPPED: {test}: Debian's archive has no vulnerable kernel any more, or not its source");
    }
    skipped
}

/// Boots the kernel `kind` with what shows holes.
fn start(kind: &str, folder: &Path) -> Result<Vm> {
    begin(builder(kind, folder)?)
}

fn builder(kind: &str, folder: &Path) -> Result<Builder> {
    let initramfs = Initramfs::new(folder.join("holes.cpio"))?
        .archive(&images::image("tiny.cpio")?)?
        .archive(&images::image("agent.cpio")?)?
        .archive(&images::image(&format!("holes-{kind}.cpio"))?)?;
    Ok(Vm::builder(&format!("vmlinuz-{kind}"))?.initrd_file(initramfs.path()).memory("512M"))
}

fn begin(builder: Builder) -> Result<Vm> {
    let mut vm = builder.start()?;
    vm.shell(BOOT)?;
    // Nothing the kernel says is to be mixed up with what the program says.
    vm.run("dmesg -n 1")?;
    Ok(vm)
}

/// Looks at each hole.
fn look(vm: &mut Vm, holes: &[&str], wanted: &str) -> Result<()> {
    for _ in 0..LOOKS {
        for hole in holes {
            let said = vm.run(&format!("holes {hole}"))?;
            ensure!(said == format!("{hole}: {wanted}"), "the guest says {said:?}, and not {wanted}");
        }
    }
    Ok(())
}
