//! The guest kernels and disks that the test bed offers.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The image called `name`, to be read only.
pub(crate) fn image(name: &str) -> Result<PathBuf> {
    let folder = env::var_os("LUCOS_IMAGES").context(
        "LUCOS_IMAGES is not set: these tests run in the test bed, `cargo xtask kvm-host -- lucos-tests`",
    )?;
    let path = Path::new(&folder).join(name);
    ensure!(
        path.exists(),
        "the image {name} is not in {}; hand it over with `cargo xtask kvm-host --image {name}=FILE`",
        Path::new(&folder).display()
    );
    Ok(path)
}

/// A copy of the image `name` in `folder` that a guest may write to.
pub(crate) fn copy(name: &str, folder: &Path) -> Result<PathBuf> {
    let (from, to) = (image(name)?, folder.join(name));
    // Images are mostly holes, and the scratch disk of an emulated host is slow.
    let cp = Command::new("cp").args(["--sparse=always", "--"]).args([&from, &to]).status()?;
    ensure!(cp.success(), "cannot copy {} to {}", from.display(), to.display());
    Ok(to)
}

/// An empty disk in `folder`.
pub(crate) fn blank(folder: &Path, name: &str, mib: u64) -> Result<PathBuf> {
    let path = folder.join(name);
    let make = || fs::File::create(&path)?.set_len(mib << 20);
    make().with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// A program of the workspace.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let folder = env::var_os("LUCOS_BIN").context("LUCOS_BIN is not set")?;
    let path = Path::new(&folder).join(name);
    ensure!(path.exists(), "{} is missing; build it with `cargo build --workspace`", path.display());
    Ok(path)
}

/// A folder on the scratch disk that is removed when it is dropped.
pub(crate) fn folder() -> Result<tempfile::TempDir> {
    let scratch = env::var_os("LUCOS_SCRATCH").map_or_else(env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(&scratch).with_context(|| format!("cannot make a folder in {}", scratch.display()))
}
