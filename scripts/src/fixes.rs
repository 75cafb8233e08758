//! Real fixes of Debian's kernel, as patches to make live patches of.
//!
//! The repository holds no kernel code. `patches/catalogue` says of each fix in which functions of which files it is, between
//! which two versions of Debian's source. The hunks are taken out of those sources here, and so carry Debian's licence. Beside
//! them there are patches that change nothing, for tests.

mod catalogue;
mod functions;
mod hunks;
mod live;
mod same;
mod source;
mod stock;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use catalogue::{Fix, catalogue};
pub use same::same_patches_of_all;
use source::Source;

use crate::cache::{Cache, Inputs};
use crate::kernels::Kernel;
use crate::progress::{self, Step};

/// The code that decides what a patch looks like.
const CODE: [&str; 3] =
    [include_str!("fixes.rs"), include_str!("fixes/functions.rs"), include_str!("fixes/hunks.rs")];

/// A fix, and the file with its hunks: a unified diff for `patch -p1` at the top of the vulnerable source.
#[derive(Debug, Clone)]
pub struct Patch {
    /// What it fixes.
    pub fix: Fix,
    /// Where the diff is.
    pub path: PathBuf,
}

/// The patches of the whole catalogue. `None` where Debian's archive has one of the sources no more; a note says which.
pub fn patches(cache: &Cache) -> Result<Option<Vec<Patch>>> {
    let fixes = catalogue()?;
    let place = place(cache, &fixes);
    if !cache.is_good(&place) {
        let Some(sources) = sources(cache, &fixes)? else { return Ok(None) };
        cache.entry(NAME, &inputs(&fixes), |folder| {
            let step = Step::start(format!("taking {} fixes out of Debian's source", fixes.len()));
            extract(cache, &fixes, &sources, folder)?;
            step.done();
            Ok(())
        })?;
    }
    let patch = |fix: Fix| Patch { path: place.join(file_name(&fix)), fix };
    Ok(Some(fixes.into_iter().map(patch).collect()))
}

/// The live patches of the whole catalogue: names, and `.lup` files that are not signed. `None` where Debian's archive has not all that
/// they are made of any more; a note says what.
pub fn live_patches(cache: &Cache) -> Result<Option<Vec<(String, PathBuf)>>> {
    match patches(cache)? {
        Some(patches) => live::all(cache, &patches),
        None => Ok(None),
    }
}

/// Live patches of any kernel that close nothing and do no harm: names and files. They are not signed.
pub fn harmless(cache: &Cache, kernel: &Kernel) -> Result<Vec<(&'static str, PathBuf)>> {
    live::harmless(cache, kernel)
}

const NAME: &str = "fixes/patches";

fn inputs(fixes: &[Fix]) -> Inputs {
    let inputs = CODE.iter().fold(Inputs::new(), |inputs, code| inputs.with("code", code));
    fixes.iter().fold(inputs, |inputs, fix| inputs.with("fix", &fix.text))
}

fn place(cache: &Cache, fixes: &[Fix]) -> PathBuf {
    cache.place(NAME, &inputs(fixes))
}

fn file_name(fix: &Fix) -> String {
    format!("{}.patch", fix.name)
}

/// A package and a version of it, with its source.
type Sources = BTreeMap<(String, String), Source>;

fn sources(cache: &Cache, fixes: &[Fix]) -> Result<Option<Sources>> {
    let mut sources = Sources::new();
    for fix in fixes {
        let package = &fix.source.package;
        for version in [&fix.source.vulnerable, &fix.source.fixed] {
            let key = (package.clone(), version.clone());
            if sources.contains_key(&key) {
                continue;
            }
            let Some(source) = Source::find(cache, package, version)? else {
                progress::note(format!("Debian's archive has no {package} of version {version} any more"));
                return Ok(None);
            };
            sources.insert(key, source);
        }
    }
    Ok(Some(sources))
}

/// Unpacks the files that are named from each source, once, and writes the patches to `folder`.
fn extract(cache: &Cache, fixes: &[Fix], sources: &Sources, folder: &Path) -> Result<()> {
    let scratch =
        tempfile::tempdir_in(cache.root().join("tmp")).context("cannot make a folder for sources")?;
    let mut trees = BTreeMap::new();
    for (key, source) in sources {
        let (package, version) = key;
        let uses = |fix: &&Fix| {
            fix.source.package == *package && [&fix.source.vulnerable, &fix.source.fixed].contains(&version)
        };
        let paths =
            fixes.iter().filter(uses).flat_map(|fix| &fix.source.files).map(|file| file.path.as_str());
        let tree = source.unpack_files(&paths.collect::<BTreeSet<_>>(), &scratch.path().join(version))?;
        trees.insert(key, tree);
    }
    for fix in fixes {
        let tree = |version: &String| &trees[&(fix.source.package.clone(), version.clone())];
        let (old, new) = (tree(&fix.source.vulnerable), tree(&fix.source.fixed));
        let mut text = String::new();
        for file in &fix.source.files {
            let diff = hunks::between(&read(old, &file.path)?, &read(new, &file.path)?, file);
            text.push_str(&diff.with_context(|| format!("cannot make the patch {}", fix.name))?);
        }
        let path = folder.join(file_name(fix));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Kernel sources are ASCII but for names of people.
fn read(tree: &Path, path: &str) -> Result<String> {
    let path = tree.join(path);
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests;
