//! Guest images, all made from Debian's packages, without root rights or loop devices.
//!
//! Every path that is returned belongs to the cache: boot a copy, or read-only.

mod agent;
mod bootstrap;
mod debian;
mod ext4;
mod holes;
mod host;
mod initrd;
mod load;
mod modules;
mod plant;
mod program;
mod tiny;

use std::path::PathBuf;

use anyhow::Result;

use crate::cache::Cache;
use crate::kernels::{Flavour, Kernel, Need, Series};

/// The version of [`vulnerable_kernel`]'s package: that of Debian 12's last point release.
const VULNERABLE: &str = "6.1.170-3";
/// An environment variable that names another version: one that does not exist shows what is done once Debian has dropped this one.
const ANOTHER: &str = "LUCOS_VULNERABLE_KERNEL";

/// An ext4 disk of 32 MiB with BusyBox and an init script.
pub fn tiny(cache: &Cache) -> Result<PathBuf> {
    tiny::disk(cache)
}

/// The same as an initramfs.
pub fn tiny_cpio(cache: &Cache) -> Result<PathBuf> {
    tiny::initramfs(cache)
}

/// An initramfs with `lucos_plant.ko` for a kernel, to be put behind another one.
pub fn plant(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    plant::initramfs(cache, kernel)
}

/// A module with new versions of some functions of a kernel, which do no harm.
pub fn patch_module(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    plant::patch_module(cache, kernel)
}

/// An initramfs with the program `holes` and the modules of a kernel that it needs, to be put behind another one.
pub fn holes(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    holes::initramfs(cache, kernel)
}

/// The guest's agent, as an initramfs to be put behind another one.
pub fn agent(cache: &Cache) -> Result<PathBuf> {
    agent::initramfs(cache)
}

/// A full Debian userland on an ext4 disk, with the modules that our guests can use for each guest kernel.
pub fn debian(cache: &Cache) -> Result<PathBuf> {
    debian::disk(cache, debian::Contents::Plain)
}

/// The same with what puts it under load and checks itself.
pub fn debian_load(cache: &Cache) -> Result<PathBuf> {
    debian::disk(cache, debian::Contents::Load)
}

/// The userland of the KVM host in the test bed, on an ext4 disk.
pub fn host_root(cache: &Cache) -> Result<PathBuf> {
    host::disk(cache)
}

/// Debian's own initramfs for a kernel.
pub fn initrd(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    initrd::of(cache, kernel)
}

/// A stock kernel whose holes are known, and fixed in later ones.
pub fn vulnerable_kernel() -> Need {
    let another = std::env::var(ANOTHER);
    Need::exactly(Series::V6_1, Flavour::Cloud, another.as_deref().unwrap_or(VULNERABLE))
}

/// A stock realtime kernel that can be compiled again. Debian keeps what the kernels of a point release are built from; of those in
/// between the realtime patches are not always there.
pub fn realtime_kernel() -> Need {
    Need::exactly(Series::V6_1, Flavour::Rt, VULNERABLE)
}

/// What tests call that kernel.
pub const REALTIME: &str = "6.1-rt-release";

/// The kernels that stock guests are booted with.
pub fn guest_kernels() -> Vec<Need> {
    vec![
        Need::newest(Series::V6_1, Flavour::Cloud),
        Need::newest(Series::V6_1, Flavour::Generic),
        Need::newest(Series::V6_1, Flavour::Rt),
        Need::newest(Series::V6_12, Flavour::Cloud),
        Need::newest(Series::V6_12, Flavour::Generic),
    ]
}
