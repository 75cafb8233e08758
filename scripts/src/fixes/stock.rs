//! A stock kernel with all that live patches for it are made of, and the program that makes them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::source::Source;
use crate::bed;
use crate::cache::{Cache, Inputs, workspace_root};
use crate::cargo::cargo;
use crate::command::{command, run};
use crate::kernels::{Headers, Kernel};
use crate::packages::{self, Group};

const PROGRAM: &str = "lucos-patch";
/// All that `lucos-patch` is built from.
const SOURCES: [&str; 8] = [
    "Cargo.lock",
    "Cargo.toml",
    "patches/Cargo.toml",
    "patches/lup/src",
    "patches/make/src",
    "patches/src",
    "rust-toolchain.toml",
    "update-server/src",
];

/// What live patches are made of, and with.
#[derive(Debug)]
pub(super) struct Stock {
    pub(super) kernel: Kernel,
    headers: Headers,
    source: PathBuf,
    /// Where the source is, until the patches are made.
    _folder: tempfile::TempDir,
}

/// Builds the program. Cargo shows its own progress.
pub(super) fn build() -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--locked", "--package", PROGRAM]);
    run(&mut build, &format!("build {PROGRAM}")).map(drop)
}

/// The program.
pub(super) fn program() -> Command {
    command(bed::target_folder().join("debug").join(PROGRAM))
}

impl Stock {
    /// What has a say in each patch for `kernel`.
    pub(super) fn inputs(kernel: &Kernel) -> Result<Inputs> {
        let inputs = Inputs::new().with("kernel", &kernel.version).with("code", include_str!("stock.rs"));
        SOURCES.iter().try_fold(inputs, |inputs, path| inputs.with_files(&workspace_root(), Path::new(path)))
    }

    /// Unpacks all of it, and builds the program.
    pub(super) fn prepare(cache: &Cache, kernel: Kernel, source: &Source) -> Result<Self> {
        packages::ensure(&[Group::Fixes])?;
        build()?;
        let folder =
            tempfile::tempdir_in(cache.root().join("tmp")).context("cannot make a folder for a source")?;
        let source = source.unpack(folder.path())?;
        Ok(Self { headers: Headers::of(cache, &kernel)?, kernel, source, _folder: folder })
    }

    /// `lucos-patch make` for it; what to make is to be added.
    pub(super) fn make(&self) -> Command {
        let mut make = program();
        make.arg("make").arg("--kernel").arg(&self.kernel.vmlinuz).arg("--headers").arg(self.headers.place());
        make.arg("--source").arg(&self.source);
        make
    }
}
