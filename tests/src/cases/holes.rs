//! Holes of a stock kernel, as a user of the guest sees them: what a patch is to close (`scripts/guest/holes`).

use anyhow::{Result, ensure};

use crate::deadlines::BOOT;
use crate::harness::{Test, Tier};
use crate::images;
use crate::initramfs::Initramfs;
use crate::vm::Vm;

pub(super) const TESTS: &[Test] = &[
    Test::new(OPEN, Tier::Gate, || vulnerable(OPEN, &QUIET)),
    Test::with_alarms(OPEN_WITH_A_WARNING, Tier::Full, || vulnerable(OPEN_WITH_A_WARNING, &[WARNS])),
    Test::new("holes::of_the_newest_kernel_are_closed", Tier::Gate, || {
        look("6.1-cloud", &[&QUIET[..], &[WARNS]].concat(), "closed")
    }),
];

const OPEN: &str = "holes::of_the_vulnerable_kernel_are_open";
const OPEN_WITH_A_WARNING: &str = "holes::that_the_vulnerable_kernel_warns_of_are_open";

/// Those that a kernel says nothing of.
const QUIET: [&str; 6] =
    ["ipc-next-id", "time-namespace", "bpf-next-key", "io-uring-pin", "multiport-range", "iso-handle"];
/// The vulnerable kernel warns when somebody comes near it.
const WARNS: &str = "nexthop-group";
/// Handed over in the vulnerable kernel's place when Debian's archive has it no more.
const NONE: &str = "no-vulnerable-kernel";
/// A look changes nothing, or the next would see it.
const LOOKS: usize = 3;

fn vulnerable(test: &str, holes: &[&str]) -> Result<()> {
    if images::image(NONE).is_ok() {
        println!("SKIPPED: {test}: Debian's archive has no vulnerable kernel any more");
        return Ok(());
    }
    look("6.1-cloud-vulnerable", holes, "open")
}

/// Boots the kernel `kind`, and looks at each hole.
fn look(kind: &str, holes: &[&str], wanted: &str) -> Result<()> {
    let folder = images::folder()?;
    let initramfs = Initramfs::new(folder.path().join("holes.cpio"))?
        .archive(&images::image("tiny.cpio")?)?
        .archive(&images::image(&format!("holes-{kind}.cpio"))?)?;
    let mut vm =
        Vm::builder(&format!("vmlinuz-{kind}"))?.initrd_file(initramfs.path()).memory("512M").start()?;
    vm.shell(BOOT)?;
    // Nothing the kernel says is to be mixed up with what the program says.
    vm.run("dmesg -n 1")?;
    for _ in 0..LOOKS {
        for hole in holes {
            let said = vm.run(&format!("holes {hole}"))?;
            ensure!(said == format!("{hole}: {wanted}"), "of {kind}, the guest says {said:?}");
        }
    }
    Ok(())
}
