//! What the tests on a KVM host find beside the workspace's programs: guest kernels and images, by the names that
//! tests know them by.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::bed::{self, Image, vmlinux};
use crate::cache::{Cache, write_atomically};
use crate::fixes;
use crate::images;
use crate::kernels::{self, Flavour, Need, Series};
use crate::packages::{self, Group};
use crate::progress::{self, Step};

/// What every host needs, and the images that are small enough to be copied to the Intel host and to be used by an
/// interpreter. Fetches and builds what is not in the cache yet.
pub(super) fn small() -> Result<Vec<Image>> {
    let step = Step::start("preparing KVM hosts and small guests");
    packages::ensure(&[Group::Images, Group::Modules, Group::Fuzz, Group::Amd, Group::Intel])
        .context("there is no KVM host to test on, and no way to make one")?;
    // Without it a test or two skip themselves, which is no reason to run none.
    if let Err(error) = packages::ensure(&[Group::Signing]) {
        progress::note(format!("signatures are not held against minisign's own: {error:#}"));
    }
    let cache = Cache::open()?;
    let mut list = Vec::new();
    for series in [Series::V6_1, Series::V6_12] {
        let kernel = kernels::find(&cache, &Need::newest(series, Flavour::Cloud))?;
        list.push(image(format!("vmlinuz-{series}-cloud"), kernel.vmlinuz.clone()));
        list.push(image(format!("plant-{series}-cloud.cpio"), images::plant(&cache, &kernel)?));
        if series == Series::V6_1 {
            list.push(image("vmlinux-6.1-cloud", vmlinux::unpacked(&cache, &kernel)?));
        }
    }
    list.push(image("tiny.img", images::tiny(&cache)?));
    list.push(image("tiny.cpio", images::tiny_cpio(&cache)?));
    list.push(image("agent.cpio", images::agent(&cache)?));
    // The hosts' own: a session would make them, too, but in the time that is meant for tests.
    images::host_root(&cache)?;
    bed::prepare(&cache)?;
    step.done();
    Ok(list)
}

/// The other kernels, every initramfs, and the full Debian; what only the long run uses, if it is `full`.
pub(super) fn large(full: bool) -> Result<Vec<Image>> {
    let step = Step::start("preparing the other guests");
    let cache = Cache::open()?;
    let mut list = Vec::new();
    for need in images::guest_kernels() {
        let kernel = kernels::find(&cache, &need)?;
        let kind = format!("{}-{}", need.series, need.flavour);
        if need.flavour != Flavour::Cloud {
            list.push(image(format!("vmlinuz-{kind}"), kernel.vmlinuz.clone()));
        }
        list.push(image(format!("initrd-{kind}"), images::initrd(&cache, &kernel)?));
        if need.flavour == Flavour::Rt {
            list.push(image(format!("plant-{kind}.cpio"), images::plant(&cache, &kernel)?));
        }
    }
    list.push(image("debian.img", images::debian(&cache)?));
    list.extend(holes_of(&cache)?);
    let same = fixes::same_patches_of_all(&cache, full)?;
    if full {
        list.push(image("debian-load.img", images::debian_load(&cache)?));
        let compiled = same.iter().any(|(name, _)| name.ends_with(images::REALTIME));
        list.extend(realtime(&cache, compiled)?);
    }
    list.extend(same.into_iter().map(|(name, path)| image(format!("{name}.lup"), path)));
    step.done();
    Ok(list)
}

/// The realtime kernel that patches were `compiled` for, or a file in its place that tells tests that there is none.
fn realtime(cache: &Cache, compiled: bool) -> Result<Vec<Image>> {
    let name = images::REALTIME;
    let kernel = compiled.then(|| kernels::find(cache, &images::realtime_kernel())).transpose()?;
    let Some(kernel) = kernel else {
        progress::note(
            "nothing is compiled for a realtime kernel: Debian's archive has none with its source any more",
        );
        let path = cache.root().join("no-realtime-kernel");
        write_atomically(&path, "")?;
        return Ok(vec![image("no-realtime-kernel", path)]);
    };
    let plant = image(format!("plant-{name}.cpio"), images::plant(cache, &kernel)?);
    Ok(vec![image(format!("vmlinuz-{name}"), kernel.vmlinuz), plant])
}

/// What shows holes, and closes them.
pub(super) fn holes() -> Result<Vec<Image>> {
    holes_of(&Cache::open()?)
}

/// A kernel with known holes, one without, what shows them, and live patches. Debian's archive drops old kernels: tests that
/// need the first find a file in its place that tells them so.
fn holes_of(cache: &Cache) -> Result<Vec<Image>> {
    let newest = kernels::find(cache, &Need::newest(Series::V6_1, Flavour::Cloud))?;
    let mut list = vec![image("holes-6.1-cloud.cpio", images::holes(cache, &newest)?)];
    let vulnerable = kernels::find_if_offered(cache, &images::vulnerable_kernel())?;
    if let (Some(kernel), Some(patches)) = (vulnerable, fixes::live_patches(cache)?) {
        list.push(image("holes-6.1-cloud-vulnerable.cpio", images::holes(cache, &kernel)?));
        list.push(image("vmlinuz-6.1-cloud-vulnerable", kernel.vmlinuz));
        list.extend(patches.into_iter().map(|(name, path)| image(format!("{name}.lup"), path)));
    } else {
        progress::note(
            "no hole can be shown open: there is no vulnerable kernel any more, or not its source",
        );
        let path = cache.root().join("no-vulnerable-kernel");
        write_atomically(&path, "")?;
        list.push(image("no-vulnerable-kernel", path));
    }
    Ok(list)
}

fn image(name: impl Into<String>, path: PathBuf) -> Image {
    Image { name: name.into(), path }
}
