//! Debian's kernels, as they are, for the hosts and guests of the test bed.

mod headers;
mod need;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub use headers::Headers;
pub use need::{Flavour, Need, Offer, Series};

use crate::archive::{self, Archive, Package};
use crate::cache::{Cache, Inputs, write_atomically};
use crate::command::{command, path_with_sbin, run};
use crate::packages::{self, Group};
use crate::progress::{self, Step};

/// The description that an entry of the cache carries, so that a kernel is found again without the archive.
const DESCRIPTION: &str = "kernel.json";

/// A kernel that is on this machine.
#[derive(Debug, Clone, Serialize)]
pub struct Kernel {
    /// Which series.
    pub series: Series,
    /// Which build of it.
    pub flavour: Flavour,
    /// What `uname -r` says.
    pub release: String,
    /// The Debian package.
    pub package: String,
    /// The version of that package.
    pub version: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// The configuration it was built with.
    pub config: PathBuf,
    /// The unpacked package, `depmod` done: modules are in `lib/modules/RELEASE` below it.
    pub modules: PathBuf,
}

/// There is no kernel that fits a need, neither in Debian's archive, which has answered, nor in the cache.
#[derive(Debug)]
pub struct NoneFits(String);

impl fmt::Display for NoneFits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoneFits {}

/// What [`DESCRIPTION`] says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Description {
    package: String,
    version: String,
}

impl Kernel {
    fn at(place: &Path, offer: &Offer, need: &Need) -> Self {
        let release = &offer.release;
        Self {
            series: need.series,
            flavour: need.flavour,
            release: release.clone(),
            package: offer.package.name.clone(),
            version: offer.package.version.clone(),
            vmlinuz: place.join(format!("boot/vmlinuz-{release}")),
            config: place.join(format!("boot/config-{release}")),
            modules: place.to_owned(),
        }
    }

    /// The files of `modules` and of all they depend on, in the order in which they are to be loaded.
    ///
    /// Names that are built into this kernel yield nothing.
    pub fn module_files(&self, modules: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for module in modules {
            let mut modprobe = command("modprobe");
            modprobe.env("PATH", path_with_sbin()).arg("-d").arg(&self.modules);
            modprobe.args(["-S", &self.release, "--show-depends", module]);
            let text = run(&mut modprobe, &format!("find module {module} of kernel {}", self.release))?;
            for path in text.lines().filter_map(|line| line.strip_prefix("insmod ")) {
                let path = PathBuf::from(path.split_whitespace().next().unwrap_or_default());
                if !files.contains(&path) {
                    files.push(path);
                }
            }
        }
        Ok(files)
    }
}

/// Returns the kernel that `need` asks for, from the cache or else from Debian's archive.
///
/// The answer to a need stays the same until [`refresh`] is called for it: a kernel update in the middle of a day
/// shall not change what the tests run on, and a warm start needs no network.
pub fn find(cache: &Cache, need: &Need) -> Result<Kernel> {
    if let Some(offer) = remembered(cache, need) {
        let place = place(cache, &offer);
        if cache.is_good(&place) {
            return Ok(Kernel::at(&place, &offer, need));
        }
    }
    search(cache, need, false)
}

/// Like [`find`], but `None` where there is no such kernel any more ([`NoneFits`]); the note says what there is. That the
/// archive cannot be asked stays an error.
pub fn find_if_offered(cache: &Cache, need: &Need) -> Result<Option<Kernel>> {
    match find(cache, need) {
        Err(error) if error.is::<NoneFits>() => {
            progress::note(format!("{error:#}"));
            Ok(None)
        }
        result => result.map(Some),
    }
}

/// Like [`find`], but looks into the archive again, and remembers the answer.
pub fn refresh(cache: &Cache, need: &Need) -> Result<Kernel> {
    search(cache, need, true)
}

/// Tries with the package lists as they are first. They can be up to a day old, in which Debian may have added what
/// is wanted or dropped what was chosen, so a failure counts only with fresh lists.
fn search(cache: &Cache, need: &Need, now: bool) -> Result<Kernel> {
    match attempt(cache, need, now) {
        Err(_) if !now => attempt(cache, need, true),
        result => result,
    }
}

fn attempt(cache: &Cache, need: &Need, now: bool) -> Result<Kernel> {
    let archive = Archive::open(cache)?;
    let mut offers = cached(cache);
    match on_offer(&archive, need, now) {
        Ok(found) => offers.extend(found),
        Err(error) if need.choose(&offers).is_some() => {
            progress::note(format!(
                "Debian's archive does not answer, looking at cached kernels only: {error:#}"
            ));
        }
        Err(error) => return Err(error),
    }
    let Some(offer) = need.choose(&offers) else {
        return Err(NoneFits(nothing_fits(need, &offers)).into());
    };
    let kernel = fetch(cache, &archive, offer, need)?;
    let note = Description { package: offer.package.name.clone(), version: offer.package.version.clone() };
    write_atomically(&memory(cache, need), serde_json::to_vec(&note)?)?;
    Ok(kernel)
}

/// What the archive has of the series.
fn on_offer(archive: &Archive, need: &Need, now: bool) -> Result<Vec<Offer>> {
    archive.update(now)?;
    let packages = archive.list(&format!("linux-image-{}.", need.series))?;
    Ok(packages.into_iter().filter_map(Offer::parse).collect())
}

/// Downloads and unpacks one kernel.
fn fetch(cache: &Cache, archive: &Archive, offer: &Offer, need: &Need) -> Result<Kernel> {
    let Package { name, version } = &offer.package;
    let place = cache.entry(&entry_name(offer), &inputs(offer), |folder| {
        packages::ensure(&[Group::Images])?;
        let step = Step::start(format!("fetching {name} {version}"));
        let download =
            tempfile::tempdir_in(cache.root().join("tmp")).context("cannot make a folder to download to")?;
        let deb = archive.download(name, Some(version), download.path())?;
        archive::unpack(&deb, folder)?;
        // Debian 13's packages have modules in usr/lib only; all readers here look in lib.
        if !folder.join("lib").exists() && folder.join("usr/lib/modules").exists() {
            std::os::unix::fs::symlink("usr/lib", folder.join("lib"))?;
        }
        let mut depmod = command("depmod");
        depmod.env("PATH", path_with_sbin()).arg("-b").arg(folder).arg(&offer.release);
        run(&mut depmod, &format!("index the modules of {}", offer.release))?;
        let description = Description { package: name.clone(), version: version.clone() };
        fs::write(folder.join(DESCRIPTION), serde_json::to_vec(&description)?)?;
        step.done();
        Ok(())
    })?;
    Ok(Kernel::at(&place, offer, need))
}

fn inputs(offer: &Offer) -> Inputs {
    Inputs::new().with("package", &offer.package.name).with("version", &offer.package.version)
}

fn entry_name(offer: &Offer) -> String {
    format!("kernels/{}", offer.release)
}

fn place(cache: &Cache, offer: &Offer) -> PathBuf {
    cache.place(&entry_name(offer), &inputs(offer))
}

/// Where the answer to a need is remembered.
fn memory(cache: &Cache, need: &Need) -> PathBuf {
    let part = |word: &str, version: &Option<String>| {
        version.as_ref().map(|version| format!("-{word}-{}", version.replace('/', "_"))).unwrap_or_default()
    };
    let parts = part("of", &need.version) + &part("before", &need.older_than);
    let name = format!("{}-{}{parts}.json", need.series, need.flavour);
    cache.root().join("needs").join(name)
}

fn remembered(cache: &Cache, need: &Need) -> Option<Offer> {
    read_description(&memory(cache, need)).filter(|offer| need.is_same_kind(offer))
}

/// The kernels that were fetched before; the archive may have dropped them since.
fn cached(cache: &Cache) -> Vec<Offer> {
    let folders = |path: &Path| -> Vec<PathBuf> {
        fs::read_dir(path).map(|entries| entries.flatten().map(|e| e.path()).collect()).unwrap_or_default()
    };
    let entries = folders(&cache.root().join("kernels"));
    let entries = entries.iter().flat_map(|release| folders(release));
    let offers = entries.filter_map(|entry| read_description(&entry.join(DESCRIPTION)));
    offers.filter(|offer| place(cache, offer).exists()).collect()
}

fn read_description(path: &Path) -> Option<Offer> {
    let text = fs::read_to_string(path).ok()?;
    let Description { package, version } = serde_json::from_str(&text).ok()?;
    Offer::parse(Package { name: package, version })
}

fn nothing_fits(need: &Need, offers: &[Offer]) -> String {
    let mut kind: Vec<&Offer> = offers.iter().filter(|offer| need.is_same_kind(offer)).collect();
    kind.sort_by(|a, b| b.newer(a));
    kind.dedup();
    if kind.is_empty() {
        return format!("there is no {need}: neither Debian's archive nor the cache has one of that kind");
    }
    let lines: Vec<String> =
        kind.iter().map(|offer| format!("  {} (version {})", offer.release, offer.package.version)).collect();
    format!("there is no {need}; what there is, in Debian's archive and in the cache:\n{}", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(release: &str, version: &str) -> Offer {
        let name = format!("linux-image-{release}");
        Offer::parse(Package { name, version: version.into() }).unwrap()
    }

    #[test]
    fn a_need_that_nothing_fits_lists_what_there_is() {
        let offers = [offer("6.1.0-55-amd64", "6.1.187-1"), offer("6.1.0-56-amd64", "6.1.192-2")];
        let text = nothing_fits(&Need::newest(Series::V6_1, Flavour::Generic).older_than("6.1.5-1"), &offers);
        assert!(text.starts_with("there is no 6.1 generic kernel older than 6.1.5-1;"), "{text}");
        assert!(text.find("6.1.0-56").unwrap() < text.find("6.1.0-55").unwrap(), "{text}");
        let text = nothing_fits(&Need::newest(Series::V6_1, Flavour::Rt), &offers);
        assert!(text.contains("neither"), "{text}");
    }

    #[test]
    fn a_cached_kernel_answers_without_the_archive() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let offer = offer("6.1.0-9-cloud-amd64", "6.1.27-1");
        let need = Need::newest(Series::V6_1, Flavour::Cloud).older_than("6.1.28-1");
        let description = r#"{"package":"linux-image-6.1.0-9-cloud-amd64","version":"6.1.27-1"}"#;
        let build = |folder: &Path| Ok(fs::write(folder.join(DESCRIPTION), description)?);
        cache.entry(&entry_name(&offer), &inputs(&offer), build).unwrap();
        assert_eq!(cached(&cache), [offer]);

        write_atomically(&memory(&cache, &need), description).unwrap();
        let kernel = find(&cache, &need).unwrap();
        assert_eq!(kernel.release, "6.1.0-9-cloud-amd64");
        assert!(kernel.vmlinuz.ends_with("boot/vmlinuz-6.1.0-9-cloud-amd64"));
    }
}
