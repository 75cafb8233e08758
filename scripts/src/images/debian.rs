//! The full Debian guest: systemd, udev, a login prompt, and the tools that tests put it under load with.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::bootstrap::Bootstrap;
use super::{agent, ext4, guest_kernels, load, modules};
use crate::archive::SUITE;
use crate::cache::{Cache, Inputs};
use crate::kernels::{self, Kernel};
use crate::progress::Step;

/// What is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contents {
    /// What every test and the demo need.
    Plain,
    /// And what only the long run loads it with: a compiler, fsx, and the script that has them work.
    Load,
}

impl Contents {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "debian",
            Self::Load => "debian-load",
        }
    }

    fn packages(self) -> Vec<&'static str> {
        let more: &[&str] = if self == Self::Load { &LOAD_PACKAGES } else { &[] };
        [&PACKAGES, more].concat()
    }
}

const LOAD_PACKAGES: [&str; 3] = ["gcc", "libc6-dev", "make"];

const PACKAGES: [&str; 19] = [
    "systemd-sysv",
    "udev",
    "dbus",
    "login",
    "passwd",
    "libpam-systemd",
    "kmod",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "procps",
    "psmisc",
    "fio",
    "stress-ng",
    "strace",
    "util-linux",
    "nvme-cli",
    "ethtool",
    "less",
];

/// What a guest of ours can have as hardware, and what a test may want on top.
///
/// Only these modules and what they depend on go into the image, once for every guest kernel: the complete trees
/// would be 1 GiB, and Debian's initramfs brings nothing for a disk that boots without one.
const MODULES: [&str; 18] = [
    "virtio_pci",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "nvme",
    "ext4",
    "overlay",
    "tun",
    "loop",
    "dummy",
    "veth",
    "fuse",
    "serio_raw",
    "psmouse",
    "button",
    "evdev",
    "msr",
    "cpuid",
];

const SETUP: &str = include_str!("../../guest/debian-setup");
const SIZE: &str = "1280M";

/// An ext4 disk for `root=/dev/nvme0n1`, with the agent as a service.
pub(super) fn disk(cache: &Cache, contents: Contents) -> Result<PathBuf> {
    let mut tars = vec![userland(cache, contents)?, agent::tar(cache)?];
    if contents == Contents::Load {
        tars.push(load::tar(cache)?);
    }
    // The folder that each is in is named by all that it is made from.
    let key = |path: &Path| path.parent().and_then(Path::file_name).unwrap_or_default().to_owned();
    let mut inputs = Inputs::new().with("size", SIZE).with("code", include_str!("debian.rs"));
    for tar in &tars {
        inputs = inputs.with("tar", key(tar).as_encoded_bytes());
    }
    let place = cache.entry(&format!("images/{}", contents.name()), &inputs, |folder| {
        let step = Step::start("building the Debian guest's disk");
        let scratch =
            tempfile::tempdir_in(cache.root().join("tmp")).context("cannot make a folder to build in")?;
        let root = scratch.path().join("root");
        let tars: Vec<&Path> = tars.iter().map(PathBuf::as_path).collect();
        ext4::from_tars(&tars, &root, &folder.join("debian.ext4"), SIZE)?;
        step.done();
        Ok(())
    })?;
    Ok(place.join("debian.ext4"))
}

/// The userland as a tar archive. It is kept, because it takes minutes to make and changes more rarely than the agent does.
fn userland(cache: &Cache, contents: Contents) -> Result<PathBuf> {
    let kernels: Vec<Kernel> =
        guest_kernels().iter().map(|need| kernels::find(cache, need)).collect::<Result<_>>()?;
    let mut inputs = Inputs::new()
        .with("suite", SUITE)
        .with("setup", SETUP)
        .with("code", include_str!("debian.rs"))
        .with("bootstrap", include_str!("bootstrap.rs"));
    for kernel in &kernels {
        inputs = inputs.with(&kernel.release, &kernel.version);
    }
    let place = cache.entry(&format!("images/{}-userland", contents.name()), &inputs, |folder| {
        let step = Step::start("putting the Debian guest together");
        let scratch =
            tempfile::tempdir_in(cache.root().join("tmp")).context("cannot make a folder to build in")?;
        let (extra, tree) = (scratch.path().join("modules.tar"), scratch.path().join("modules"));
        for kernel in &kernels {
            modules::pick(kernel, &MODULES, &tree)?;
        }
        modules::pack(&tree, &extra)?;
        let bootstrap = Bootstrap::of(cache, &contents.packages()).add(&extra).script(SETUP);
        bootstrap.run("put the Debian guest together", Some(&folder.join("debian.tar")))?;
        step.done();
        Ok(())
    })?;
    Ok(place.join("debian.tar"))
}
