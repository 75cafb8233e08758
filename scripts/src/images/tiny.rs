//! The tiny guest: BusyBox and one script, to reach user space as fast as a kernel can.

use std::fs::{self, File, Permissions};
use std::io::BufWriter;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::ext4;
use crate::archive::{self, Archive};
use crate::cache::{Cache, Inputs};
use crate::command::{command, run};
use crate::cpio;
use crate::packages::{self, Group};
use crate::progress::Step;

const INIT: &str = include_str!("../../guest/tiny-init");
const SIZE: &str = "32M";

/// An ext4 disk for `root=/dev/nvme0n1`, with or without an initramfs in front of it.
pub(super) fn disk(cache: &Cache) -> Result<PathBuf> {
    let inputs = Inputs::new().with("init", INIT).with("size", SIZE).with("code", include_str!("tiny.rs"));
    let place = cache.entry("images/tiny", &inputs, |folder| {
        packages::ensure(&[Group::Images])?;
        let step = Step::start("building the tiny guest's disk");
        let tree = tree(cache)?;
        ext4::from_folder(tree.path(), &folder.join("tiny.ext4"), SIZE)?;
        step.done();
        Ok(())
    })?;
    Ok(place.join("tiny.ext4"))
}

/// The same as an initramfs, not compressed: a slow host would unpack it for longer than it reads it.
pub(super) fn initramfs(cache: &Cache) -> Result<PathBuf> {
    let inputs = Inputs::new().with("init", INIT).with("code", include_str!("tiny.rs"));
    let place = cache.entry("images/tiny-cpio", &inputs, |folder| {
        let step = Step::start("building the tiny guest's initramfs");
        let tree = tree(cache)?;
        symlink("sbin/init", tree.path().join("init"))?;
        let mut archive = cpio::Archive::new(BufWriter::new(File::create(folder.join("tiny.cpio"))?));
        archive.tree(tree.path())?;
        archive.character_device("dev/console", 0o600, 5, 1)?;
        archive.character_device("dev/null", 0o666, 1, 3)?;
        archive.finish()?;
        step.done();
        Ok(())
    })?;
    Ok(place.join("tiny.cpio"))
}

/// Lays the files out in a folder that is removed when it is dropped.
fn tree(cache: &Cache) -> Result<tempfile::TempDir> {
    let tree =
        tempfile::tempdir_in(cache.root().join("tmp")).context("cannot make a folder for the tiny guest")?;
    let root = tree.path();
    // A temporary folder is private; as the root of a guest it is not.
    fs::set_permissions(root, Permissions::from_mode(0o755))?;
    for folder in
        ["bin", "sbin", "usr/bin", "usr/sbin", "dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp"]
    {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(busybox(cache)?, root.join("bin/busybox")).context("cannot copy BusyBox")?;
    let applets = run(command(root.join("bin/busybox")).arg("--list-full"), "list the applets of BusyBox")?;
    for applet in applets.lines() {
        let path = root.join(applet);
        if !path.exists() && applet != "sbin/init" && applet != "linuxrc" {
            symlink("/bin/busybox", &path).with_context(|| format!("cannot link {}", path.display()))?;
        }
    }
    script(&root.join("sbin/init"), INIT)?;
    fs::write(root.join("etc/passwd"), "root::0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    fs::write(root.join("etc/hostname"), "lucos-guest\n")?;
    Ok(tree)
}

/// Debian 12's static BusyBox from the archive: the machine may have another one, or none.
fn busybox(cache: &Cache) -> Result<PathBuf> {
    let inputs = Inputs::new().with("suite", archive::SUITE);
    let place = cache.entry("packages/busybox-static", &inputs, |folder| {
        let step = Step::start("fetching BusyBox");
        let archive = Archive::open(cache)?;
        let download = tempfile::tempdir_in(cache.root().join("tmp"))?;
        let deb = archive.fetch("busybox-static", download.path())?;
        archive::unpack(&deb, folder)?;
        step.done();
        Ok(())
    })?;
    let paths = ["bin/busybox", "usr/bin/busybox"].map(|path| place.join(path));
    paths.into_iter().find(|path| path.exists()).context("the package busybox-static holds no busybox")
}

fn script(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))?;
    Ok(())
}
