//! What a module is built with for a kernel: Debian's headers of it, and the build tools of its series.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Kernel;
use crate::archive::{self, Archive};
use crate::cache::{Cache, Inputs};
use crate::command::{command, run};
use crate::progress::Step;

/// Of all that the headers of a kernel depend on: headers that kernels share, and the build tools. A compiler is the
/// machine's own.
const PARTS: [&str; 2] = ["linux-headers-", "linux-kbuild-"];

/// The headers of one kernel, unpacked.
#[derive(Debug)]
pub struct Headers {
    folder: tempfile::TempDir,
    release: String,
}

impl Headers {
    /// Fetches the packages, unless they are cached, and unpacks them into a folder that is removed with the value.
    pub fn of(cache: &Cache, kernel: &Kernel) -> Result<Self> {
        let packages = packages(cache, kernel)?;
        let folder =
            tempfile::tempdir_in(cache.root().join("tmp")).context("cannot make a folder for headers")?;
        for file in fs::read_dir(&packages).with_context(|| format!("cannot list {}", packages.display()))? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                archive::unpack(&path, folder.path())?;
            }
        }
        let headers = Self { folder, release: kernel.release.clone() };
        headers.make_movable()?;
        Ok(headers)
    }

    /// Runs the kernel's `make modules` for the sources in `folder`, with the machine's compiler.
    pub fn make_modules(&self, folder: &Path) -> Result<()> {
        let mut make = command("make");
        make.arg("-C").arg(self.place()).arg(format!("M={}", folder.display()));
        // The kernel's types would be put into the module by pahole, which nobody else here needs.
        make.args(["CC=gcc", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
        run(&mut make, &format!("build modules for kernel {}", self.release)).map(drop)
    }

    /// The folder that modules are built with.
    pub fn place(&self) -> PathBuf {
        self.folder.path().join("usr/src").join(format!("linux-headers-{}", self.release))
    }

    /// The one absolute path in Debian's headers is that from a kernel's own Makefile to the shared one.
    fn make_movable(&self) -> Result<()> {
        let path = self.place().join("Makefile");
        let change =
            || fs::write(&path, fs::read_to_string(&path)?.replace("include /usr/src/", "include ../"));
        change().with_context(|| format!("cannot change {}", path.display()))
    }
}

/// The folder of the packages.
fn packages(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let (name, version) = (format!("linux-headers-{}", kernel.release), &kernel.version);
    let inputs = Inputs::new().with("version", version);
    cache.entry(&format!("headers/{}", kernel.release), &inputs, |folder| {
        let step = Step::start(format!("fetching {name} {version}"));
        let archive = Archive::open(cache)?;
        archive.update(false)?;
        let fetch = || -> Result<()> {
            archive.download(&name, Some(version), folder)?;
            for part in archive.dependencies(&name)? {
                if PARTS.iter().any(|prefix| part.starts_with(prefix)) {
                    archive.download(&part, None, folder)?;
                }
            }
            Ok(())
        };
        // Lists may be a day old, or have been read before there were modules to build.
        if fetch().is_err() {
            archive.update(true)?;
            fetch().with_context(|| {
                format!(
                    "kernel {} has no headers in Debian's archive any more; take the newest kernel by \
                     `cargo xtask kernel --series {} --flavour {} --refresh`",
                    kernel.release, kernel.series, kernel.flavour
                )
            })?;
        }
        step.done();
        Ok(())
    })
}
