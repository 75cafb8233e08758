//! Live patches that change nothing: functions of a stock kernel, compiled once more from Debian's source as they are.
//!
//! Whatever goes wrong with one of them is the fault of how it was made or applied. `patches/same` says what is in each.

use std::path::PathBuf;

use anyhow::Result;
use serde::Deserialize;

use super::catalogue::{self, File};
use super::source::Source;
use super::stock::Stock;
use crate::cache::Cache;
use crate::command::run;
use crate::images;
use crate::kernels::{self, Flavour, Kernel, Need, Series};
use crate::progress::{self, Step};

/// That of the tests of the gate.
const OF_THE_GATE: &str = "6.1-cloud";

/// The kernels that there are patches for, as tests call them, and the packages with their source.
fn all_kernels() -> [(String, Need, &'static str); 3] {
    let cloud = |series| (format!("{series}-{}", Flavour::Cloud), Need::newest(series, Flavour::Cloud));
    let ((old, old_need), (new, new_need)) = (cloud(Series::V6_1), cloud(Series::V6_12));
    [
        (old, old_need, "linux-source-6.1"),
        (new, new_need, "linux-source-6.12"),
        (images::REALTIME.to_owned(), images::realtime_kernel(), "linux-source-6.1"),
    ]
}

/// One of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Same {
    /// The name of the live patch, and of its file here.
    name: String,
    /// One line for operators.
    summary: String,
    /// Why the kernel's code and the same code may run at the same time.
    coexist_is_safe: String,
    /// What is done about threads in old code.
    #[serde(default = "watch")]
    draining: String,
    /// What is compiled.
    files: Vec<File>,
}

fn watch() -> String {
    "watch".to_owned()
}

/// Makes all of them for each kernel of [`all_kernels`]: names with the kind of kernel (`same-read-6.1-cloud`), and `.lup` files that
/// are not signed. Of a kernel whose source Debian's archive has no more there are none; a note says so. Not all take part in the
/// gate: only for those that do, they are made unless `full`.
pub fn same_patches_of_all(cache: &Cache, full: bool) -> Result<Vec<(String, PathBuf)>> {
    let mut all = Vec::new();
    for (kind, need, package) in all_kernels().into_iter().filter(|(kind, ..)| full || kind == OF_THE_GATE) {
        let Some(kernel) = kernels::find_if_offered(cache, &need)? else { continue };
        let patches = same_patches(cache, &kernel, package)?.unwrap_or_default();
        all.extend(patches.into_iter().map(|(name, path)| (format!("{name}-{kind}"), path)));
    }
    Ok(all)
}

/// Each of them, and its file's text.
fn described() -> Result<Vec<(Same, String)>> {
    catalogue::read("patches/same", |same: &Same| &same.name)
}

/// Makes all of them for `kernel`, which the package `package` has the source of. `None` where Debian's archive has it no more; a
/// note says so.
fn same_patches(cache: &Cache, kernel: &Kernel, package: &str) -> Result<Option<Vec<(String, PathBuf)>>> {
    let described = described()?;
    let inputs = Stock::inputs(kernel)?.with("code", include_str!("same.rs"));
    let inputs = described.iter().fold(inputs, |inputs, (_, text)| inputs.with("same", text));
    let name = format!("fixes/same/{}", kernel.release);
    let place = cache.place(&name, &inputs);
    if !cache.is_good(&place) {
        let version = &kernel.version;
        let source = match Source::find(cache, package, version)? {
            Some(source) if kernel.flavour == Flavour::Rt => source.realtime(cache, version)?,
            source => source,
        };
        let Some(source) = source else {
            progress::note(format!("Debian's archive has no source of {} any more", kernel.release));
            return Ok(None);
        };
        cache.entry(&name, &inputs, |folder| {
            let step = Step::start(format!("compiling functions of {} as they are", kernel.release));
            let stock = Stock::prepare(cache, kernel.clone(), &source)?;
            for (Same { name, summary, coexist_is_safe, draining, files }, _) in &described {
                let mut make = stock.make();
                make.args(["--name", name, "--summary", summary, "--consistency", "coexist"]);
                make.args(["--coexist-is-safe", coexist_is_safe, "--draining", draining]);
                for file in files {
                    make.arg("--unit").arg(&file.path);
                    make.args(file.functions.iter().flat_map(|function| ["--function", function]));
                }
                make.arg("--output").arg(folder.join(format!("{name}.lup")));
                run(&mut make, &format!("make the live patch {name}"))?;
            }
            step.done();
            Ok(())
        })?;
    }
    let made = |(same, _): (Same, String)| {
        let path = place.join(format!("{}.lup", same.name));
        (same.name, path)
    };
    Ok(Some(described.into_iter().map(made).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_names_what_is_compiled() {
        let described = described().unwrap();
        assert!(!described.is_empty());
        for (Same { name, files, .. }, _) in described {
            assert!(name.starts_with("same-"), "{name} could be taken for a fix");
            assert!(files.iter().all(|file| !file.functions.is_empty()) && !files.is_empty(), "{name}");
        }
    }
}
