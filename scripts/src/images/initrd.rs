//! Debian's own initramfs of a kernel, made by Debian's own tool the way an installed system makes it.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::bootstrap::Bootstrap;
use crate::archive::SUITE;
use crate::cache::{Cache, Inputs};
use crate::command::{command, run};
use crate::kernels::Kernel;
use crate::progress::Step;

/// What an installed system has when it makes its initramfs; zstd is what Debian 12 compresses it with.
const PACKAGES: [&str; 6] = ["initramfs-tools", "udev", "kmod", "e2fsprogs", "zstd", "busybox"];

/// Tells the tool of the root file system that it is made for, so that it puts the right fsck into it.
const FSTAB: &str = r#"
set -e
printf '/dev/nvme0n1 / ext4 defaults 0 1\n' > "$1/etc/fstab"
"#;

/// The initramfs for `kernel`, as `update-initramfs` makes it with Debian's defaults.
pub(super) fn of(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let release = &kernel.release;
    let inputs = Inputs::new()
        .with("suite", SUITE)
        .with("kernel", &kernel.version)
        .with("code", include_str!("initrd.rs"))
        .with("bootstrap", include_str!("bootstrap.rs"));
    let name = format!("initrd.img-{release}");
    let place = cache.entry(&format!("initrd/{release}"), &inputs, |folder| {
        let base = base(cache)?;
        let step = Step::start(format!("making Debian's initramfs for {release}"));
        let scratch =
            tempfile::tempdir_in(cache.root().join("tmp")).context("cannot make a folder to build in")?;
        let tar = scratch.path().join("kernel.tar");
        let mut pack = command("tar");
        pack.arg("-C").arg(&kernel.modules).args(["--owner=0", "--group=0", "--numeric-owner"]);
        // In the userland /lib is a link to /usr/lib.
        pack.args(["--transform=s,^lib/,usr/lib/,", "-cf"]).arg(&tar);
        pack.args(["boot", &format!("lib/modules/{release}")]);
        run(&mut pack, &format!("pack the files of kernel {release}"))?;
        Bootstrap::again(cache, &base)
            .add(&tar)
            .script(&format!("{FSTAB}chroot \"$1\" update-initramfs -c -k {release}\n"))
            .take(&format!("/boot/{name}"), &folder.join(&name))
            .run(&format!("make the initramfs of kernel {release}"), None)?;
        step.done();
        Ok(())
    })?;
    Ok(place.join(name))
}

/// The userland that makes the initramfs of any kernel.
fn base(cache: &Cache) -> Result<PathBuf> {
    let inputs = Inputs::new()
        .with("suite", SUITE)
        .with("code", include_str!("initrd.rs"))
        .with("bootstrap", include_str!("bootstrap.rs"));
    let place = cache.entry("initrd/base", &inputs, |folder| {
        let step = Step::start("building the userland that makes Debian's initramfs");
        let bootstrap = Bootstrap::of(cache, &PACKAGES).without_devices();
        bootstrap.run("put the userland for initramfs-tools together", Some(&folder.join("base.tar")))?;
        step.done();
        Ok(())
    })?;
    Ok(place.join("base.tar"))
}
