//! The userland of the KVM host inside the test bed: QEMU to compare with, and the tools to measure with.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::bootstrap::Bootstrap;
use super::ext4;
use crate::archive::SUITE;
use crate::cache::{Cache, Inputs};
use crate::progress::Step;

const PACKAGES: [&str; 12] = [
    "qemu-system-x86",
    "fio",
    "e2fsprogs",
    "procps",
    "iproute2",
    "iputils-ping",
    "strace",
    "util-linux",
    "busybox",
    "kmod",
    "curl",
    "socat",
];

/// Firmware, message catalogues and other baggage of QEMU and Perl that a host without a screen does not touch.
const SETUP: &str = r#"
set -e
echo lucos-host > "$1/etc/hostname"
printf '127.0.0.1 localhost lucos-host\n' > "$1/etc/hosts"
mkdir -p "$1/host" "$1/work"
rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/cache/debconf/*-old "$1"/usr/share/doc
"#;
const SIZE: &str = "1G";

/// An ext4 disk to `chroot` into; it has no init.
pub(super) fn disk(cache: &Cache) -> Result<PathBuf> {
    let inputs = Inputs::new()
        .with("suite", SUITE)
        .with("code", include_str!("host.rs"))
        .with("bootstrap", include_str!("bootstrap.rs"));
    let place = cache.entry("images/host-root", &inputs, |folder| {
        let step = Step::start("building the KVM host's disk");
        build(cache, folder)?;
        step.done();
        Ok(())
    })?;
    Ok(place.join("host-root.ext4"))
}

fn build(cache: &Cache, folder: &Path) -> Result<()> {
    let scratch =
        tempfile::tempdir_in(cache.root().join("tmp")).context("cannot make a folder to build in")?;
    let tar = scratch.path().join("host-root.tar");
    Bootstrap::of(cache, &PACKAGES).script(SETUP).run("put the KVM host's userland together", Some(&tar))?;
    ext4::from_tar(&tar, &scratch.path().join("root"), &folder.join("host-root.ext4"), SIZE)
}
