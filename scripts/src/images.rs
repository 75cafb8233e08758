//! Guest images, all made from Debian's packages, without root rights or loop devices.
//!
//! Every path that is returned belongs to the cache: boot a copy, or read-only.

mod agent;
mod bootstrap;
mod debian;
mod ext4;
mod host;
mod initrd;
mod modules;
mod plant;
mod tiny;

use std::path::PathBuf;

use anyhow::Result;

use crate::cache::Cache;
use crate::kernels::{Flavour, Kernel, Need, Series};

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

/// The guest's agent, as an initramfs to be put behind another one.
pub fn agent(cache: &Cache) -> Result<PathBuf> {
    agent::initramfs(cache)
}

/// A full Debian userland on an ext4 disk, with the modules that our guests can use for each guest kernel.
pub fn debian(cache: &Cache) -> Result<PathBuf> {
    debian::disk(cache)
}

/// The userland of the KVM host in the test bed, on an ext4 disk.
pub fn host_root(cache: &Cache) -> Result<PathBuf> {
    host::disk(cache)
}

/// Debian's own initramfs for a kernel.
pub fn initrd(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    initrd::of(cache, kernel)
}

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
