//! `cargo xtask fuzz`: builds the fuzz targets of `update-server` and `patches`, and runs each for a while.
//!
//! They are laid out for cargo-fuzz, which wants a nightly toolchain for its sanitizers. What the fuzzer itself needs, counters
//! of which code was reached, the stable compiler can put in, too; the code under test has no `unsafe` for which the
//! sanitizers would be worth it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::bed::{self, Image};
use crate::cache::{Cache, workspace_root};
use crate::cargo::cargo;
use crate::command::run as output_of;
use crate::kernels::{self, Flavour, Need, Series};
use crate::packages::{self, Group};
use crate::progress::Step;

/// What cargo-fuzz hands to the compiler, without a sanitizer.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg=fuzzing -Ccodegen-units=1";
/// With a target named, the flags are not those of build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Inputs longer than this find nothing that shorter ones do not.
const LONGEST: &str = "-max_len=16384";
/// One input, in seconds: a look at a lying guest takes two or three, in a build for fuzzing.
const SLOWEST: &str = "-timeout=60";
const MEMORY: &str = "-rss_limit_mb=2048";
/// The kernel that a lying guest claims to run, by the name that targets know it by.
const KERNEL: &str = "vmlinux-6.1-cloud";

/// Fuzz the parsers of what images, guests and authors of patches have made.
#[derive(Debug, Args)]
#[command(after_help = "\
New inputs are kept below target/fuzz/corpus, and what crashes below target/fuzz/crashes; a crash is reproduced by handing
its file to the target: target/fuzz/x86_64-unknown-linux-gnu/release/TARGET FILE. The targets guest and survey want
LUCOS_IMAGES to name a folder with the unpacked kernel as vmlinux-6.1-cloud.")]
pub struct Fuzz {
    /// Which targets; all when none is given.
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long each is run.
    #[arg(long, value_name = "N", default_value_t = 20)]
    seconds: u64,
}

/// Where targets are, each folder a crate of its own with their sources and seeds.
const SOURCES: [&str; 2] = ["update-server/fuzz", "patches/fuzz"];

/// One target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    /// Its name, which no other one has.
    pub(crate) name: String,
    source: PathBuf,
}

/// Every target, by name.
pub(crate) fn targets() -> Result<Vec<Target>> {
    let mut found = Vec::new();
    for source in SOURCES.map(|source| workspace_root().join(source)) {
        let folder = source.join("fuzz_targets");
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let name = entry?.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
            found.push(Target { name, source: source.clone() });
        }
    }
    found.sort();
    Ok(found)
}

/// The commands that build all of them.
pub(crate) fn build() -> Result<Vec<Command>> {
    packages::ensure(&[Group::Fuzz])?;
    let command = |source: &str| {
        let mut build = cargo();
        build.args(["build", "--release", "--locked", "--quiet", "--target", TARGET, "--manifest-path"]);
        build.arg(workspace_root().join(source).join("Cargo.toml")).arg("--target-dir").arg(folder());
        build.env("RUSTFLAGS", FLAGS);
        build
    };
    Ok(SOURCES.iter().map(|source| command(source)).collect())
}

/// The command that runs one for so long, with the kernel in the folder `images`.
pub(crate) fn command(target: &Target, time: Duration, images: &Path) -> Result<Command> {
    let Target { name: target, source } = target;
    let (corpus, crashes) = (folder().join("corpus").join(target), folder().join("crashes"));
    for place in [&corpus, &crashes] {
        fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
    }
    let mut command = Command::new(folder().join(TARGET).join("release").join(target));
    command.env("LUCOS_IMAGES", images).args([LONGEST, SLOWEST, MEMORY, "-print_final_stats=1"]);
    command.arg(format!("-max_total_time={}", time.as_secs()));
    command.arg(format!("-artifact_prefix={}/{target}-", crashes.display()));
    command.arg(corpus).arg(source.join("seeds").join(target));
    Ok(command)
}

/// What a finished run says of itself, in one line.
pub(crate) fn verdict(lines: &[String]) -> String {
    let last =
        |marker: &str| lines.iter().rfind(|line| line.contains(marker)).map(|line| line.trim().to_owned());
    last("SUMMARY:")
        .or_else(|| last("DONE"))
        .or_else(|| last("INITED"))
        .unwrap_or_else(|| "it said nothing".into())
}

fn folder() -> PathBuf {
    bed::target_folder().join("fuzz")
}

/// Does what the command line asks for.
pub fn run(chore: &Fuzz) -> Result<()> {
    let all = targets()?;
    let names: Vec<&str> = all.iter().map(|target| &*target.name).collect();
    if let Some(unknown) = chore.targets.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("there is no fuzz target {unknown}; there are {}", names.join(", "));
    }
    let step = Step::start("building the fuzz targets");
    for mut build in build()? {
        output_of(&mut build, "build the fuzz targets")?;
    }
    step.done();
    let cache = Cache::open()?;
    let kernel = kernels::find(&cache, &Need::newest(Series::V6_1, Flavour::Cloud))?;
    let images = tempfile::tempdir().context("cannot make a folder for a link to a kernel")?;
    let kernel = Image { name: KERNEL.to_owned(), path: bed::vmlinux::unpacked(&cache, &kernel)? };
    kernel.link_in(images.path())?;
    let mut crashed = Vec::new();
    let chosen = |target: &&Target| chore.targets.is_empty() || chore.targets.contains(&target.name);
    for target in all.iter().filter(chosen) {
        let output = command(target, Duration::from_secs(chore.seconds), images.path())?
            .output()
            .with_context(|| format!("cannot start the fuzz target {}", target.name))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        println!("{}: {}", target.name, verdict(&lines));
        if !output.status.success() {
            println!("{text}");
            crashed.push(&*target.name);
        }
    }
    let place = folder().join("crashes");
    ensure!(
        crashed.is_empty(),
        "did not end well: {}; inputs are in {}",
        crashed.join(", "),
        place.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_built_and_has_seeds() {
        let targets = targets().unwrap();
        assert!(targets.len() >= 14, "{targets:?}");
        assert!(targets.windows(2).all(|pair| pair[0].name != pair[1].name), "{targets:?}");
        for Target { name, source } in targets {
            let manifest = fs::read_to_string(source.join("Cargo.toml")).unwrap();
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
            assert!(source.join("seeds").join(&name).read_dir().unwrap().next().is_some(), "{name}");
        }
    }

    #[test]
    fn the_verdict_is_the_crash_if_there_is_one() {
        let lines = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
        assert_eq!(verdict(&lines(&["#9 INITED a", "#99 DONE cov: 5"])), "#99 DONE cov: 5");
        assert_eq!(
            verdict(&lines(&["#99 DONE", "SUMMARY: libFuzzer: timeout"])),
            "SUMMARY: libFuzzer: timeout"
        );
    }
}
