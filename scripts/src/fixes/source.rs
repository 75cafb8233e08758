//! Debian's kernel source: a package with the whole tree in one archive.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive::{self, Archive};
use crate::cache::{Cache, Inputs};
use crate::command::{command, run};
use crate::progress::Step;

/// One version of the source, packed.
#[derive(Debug)]
pub(super) struct Source {
    tar: PathBuf,
    /// The folder that everything in it is in.
    top: String,
}

impl Source {
    /// Fetches it, unless it is cached. `None` if the archive, asked just now, has no such version: Debian drops old ones.
    pub(super) fn find(cache: &Cache, package: &str, version: &str) -> Result<Option<Self>> {
        let name = format!("sources/{package}");
        let inputs = Inputs::new().with("version", version);
        if !cache.is_good(&cache.place(&name, &inputs)) && !is_offered(cache, package, version)? {
            return Ok(None);
        }
        let file = format!("{package}.tar.xz");
        let place = cache.entry(&name, &inputs, |folder| {
            let step = Step::start(format!("fetching {package} {version}"));
            let download = tempfile::tempdir_in(cache.root().join("tmp"))
                .context("cannot make a folder to download to")?;
            let deb = Archive::open(cache)?.download(package, Some(version), download.path())?;
            let tree = download.path().join("tree");
            archive::unpack(&deb, &tree)?;
            let tar = tree.join("usr/src").join(&file);
            fs::rename(&tar, folder.join(&file)).with_context(|| format!("there is no {}", tar.display()))?;
            step.done();
            Ok(())
        })?;
        Ok(Some(Self { tar: place.join(file), top: package.to_owned() }))
    }

    /// Unpacks the files at these paths into `folder`. Returns the top of the tree.
    pub(super) fn unpack_files(&self, paths: &BTreeSet<&str>, folder: &Path) -> Result<PathBuf> {
        // With it, tar does not read on to the end for more of the same name.
        self.tar_into(folder, &["--occurrence=1"], paths)
    }

    /// Unpacks all of it into `folder`. Returns the top of the tree.
    pub(super) fn unpack(&self, folder: &Path) -> Result<PathBuf> {
        self.tar_into(folder, &[], &BTreeSet::new())
    }

    fn tar_into(&self, folder: &Path, options: &[&str], paths: &BTreeSet<&str>) -> Result<PathBuf> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut tar = command("tar");
        tar.arg("-C").arg(folder).args(options).arg("-xf").arg(&self.tar);
        tar.args(paths.iter().map(|path| format!("{}/{path}", self.top)));
        run(&mut tar, &format!("unpack {}", self.tar.display()))?;
        Ok(folder.join(&self.top))
    }
}

/// Lists may be a day old.
fn is_offered(cache: &Cache, package: &str, version: &str) -> Result<bool> {
    let archive = Archive::open(cache)?;
    let has = || -> Result<bool> {
        let packages = archive.list(package)?;
        Ok(packages.iter().any(|offer| offer.name == package && offer.version == version))
    };
    archive.update(false)?;
    if has()? {
        return Ok(true);
    }
    archive.update(true)?;
    has()
}
