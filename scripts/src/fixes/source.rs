//! Debian's kernel source: a package with the whole tree in one archive.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive::{self, Archive, Package};
use crate::cache::{Cache, Inputs};
use crate::command::{command, run};
use crate::progress::Step;

/// One version of the source, packed.
#[derive(Debug)]
pub(super) struct Source {
    tar: PathBuf,
    /// The folder that everything in it is in.
    top: String,
    /// What makes a realtime kernel's source of it: Debian's packaging, with the patches.
    realtime: Option<PathBuf>,
}

/// The source package of all kernels.
const LINUX: &str = "linux";
/// Where its packaging has the patches of realtime kernels, and their order.
const REALTIME: &str = "debian/patches-rt";
const SERIES: &str = "series";

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
        Ok(Some(Self { tar: place.join(file), top: package.to_owned(), realtime: None }))
    }

    /// The same as realtime kernels are built from it. `None` if the archive does not have the patches for it any more.
    pub(super) fn realtime(self, cache: &Cache, version: &str) -> Result<Option<Self>> {
        let file = "debian.tar.xz";
        let (name, inputs) = ("sources/packaging", Inputs::new().with("version", version));
        if !cache.is_good(&cache.place(name, &inputs)) {
            let archive = Archive::of_sources(cache)?;
            if !has(&archive, || archive.list_sources(LINUX), version)? {
                return Ok(None);
            }
        }
        let place = cache.entry(name, &inputs, |folder| {
            let step = Step::start(format!("fetching the packaging of {LINUX} {version}"));
            let download = tempfile::tempdir_in(cache.root().join("tmp"))
                .context("cannot make a folder to download to")?;
            let tar = Archive::of_sources(cache)?.download_packaging(LINUX, version, download.path())?;
            fs::rename(&tar, folder.join(file)).with_context(|| format!("there is no {}", tar.display()))?;
            step.done();
            Ok(())
        })?;
        Ok(Some(Self { realtime: Some(place.join(file)), ..self }))
    }

    /// Unpacks the files at these paths into `folder`. Returns the top of the tree.
    pub(super) fn unpack_files(&self, paths: &BTreeSet<&str>, folder: &Path) -> Result<PathBuf> {
        // With it, tar does not read on to the end for more of the same name.
        self.tar_into(folder, &["--occurrence=1"], paths)
    }

    /// Unpacks all of it into `folder`. Returns the top of the tree.
    pub(super) fn unpack(&self, folder: &Path) -> Result<PathBuf> {
        let top = self.tar_into(folder, &[], &BTreeSet::new())?;
        if let Some(packaging) = &self.realtime {
            let mut tar = command("tar");
            tar.arg("-C").arg(folder).arg("-xf").arg(packaging).arg(REALTIME);
            run(&mut tar, &format!("unpack {}", packaging.display()))?;
            let patches = folder.join(REALTIME);
            let series = patches.join(SERIES);
            let series =
                fs::read_to_string(&series).with_context(|| format!("cannot read {}", series.display()))?;
            for name in series.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
                let mut patch = command("patch");
                patch
                    .arg("-d")
                    .arg(&top)
                    .args(["-p1", "--silent", "--forward", "-i"])
                    .arg(patches.join(name));
                run(&mut patch, &format!("patch the source by {name}"))?;
            }
        }
        Ok(top)
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

fn is_offered(cache: &Cache, package: &str, version: &str) -> Result<bool> {
    let archive = Archive::open(cache)?;
    let of_that_name = || -> Result<Vec<Package>> {
        let packages = archive.list(package)?;
        Ok(packages.into_iter().filter(|offer| offer.name == package).collect())
    };
    has(&archive, of_that_name, version)
}

/// Whether `offers`, which the archive's lists have, have one of that version. Lists may be a day old.
fn has(archive: &Archive, offers: impl Fn() -> Result<Vec<Package>>, version: &str) -> Result<bool> {
    let has = || -> Result<bool> { Ok(offers()?.iter().any(|offer| offer.version == version)) };
    archive.update(false)?;
    if has()? {
        return Ok(true);
    }
    archive.update(true)?;
    has()
}
