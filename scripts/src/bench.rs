//! `cargo xtask bench`: builds what is measured, runs it on a KVM host, and shows the figures.
//!
//! The measuring is done by a program in that host, `lucos-bench`, which prints one figure per line as JSON.

mod figure;
mod table;

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::bed::cli::small_images;
use crate::bed::{self, Cpu, Ending, Host, HostSpec, Image, vmlinux};
use crate::cache::Cache;
use crate::cargo::cargo;
use crate::command::{command, run as output_of};
use crate::fixes;
use crate::images;
use crate::kernels::{self, Flavour, Need, Series};
use crate::progress::{self, Step};

use figure::Figure;

/// All groups take a fifth of it in an emulated host.
const LIMIT: Duration = Duration::from_hours(1);

/// Measure lucos-vmm side by side with QEMU: boot time, memory, disk, exits and pauses; and censuses, patches and traps.
#[derive(Debug, Args)]
#[command(after_help = "\
All figures come from one run on one host, with programs built for release. On an emulated host only the ratios mean
anything. What each figure means, and how it is measured: docs/bench.md.")]
pub struct Bench {
    /// What to measure; all when none is given.
    #[arg(value_name = "NAME")]
    groups: Vec<Group>,
    /// Print the figures as a JSON array.
    #[arg(long)]
    json: bool,
    /// Rounds of the boot figures.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
}

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// From start to init.
    Boot,
    /// Memory beyond the guest's, and huge pages.
    Memory,
    /// fio in the guest.
    Disk,
    /// The I/O exit round trip, and pauses of busy vCPUs.
    Pause,
    /// Looking at every kernel stack, of guests with few and many tasks.
    Census,
    /// Applying patches, and rolling them back.
    Patch,
    /// Accesses to watched pages.
    Trap,
    /// Beginning and ending to watch pages, and a guest beside pages that it does not touch.
    Arm,
}

/// Does what the command line asks for.
pub fn run(chore: &Bench) -> Result<()> {
    build()?;
    let wants = |group| chore.groups.is_empty() || chore.groups.contains(&group);
    let spec = HostSpec {
        timeout: LIMIT,
        profile: "release".to_owned(),
        images: images_for(wants(Group::Disk), wants(Group::Patch))?,
        ..HostSpec::default()
    };
    let (host, _) = spec.host();
    let mut argv = vec!["lucos-bench".into(), "--rounds".into(), chore.rounds.to_string().into()];
    argv.extend(
        chore.groups.iter().filter_map(ValueEnum::to_possible_value).map(|name| name.get_name().into()),
    );

    let step = Step::start("measuring");
    let mut figures: Vec<Figure> = Vec::new();
    let ending = bed::run(&spec, &argv, &mut |line| match Figure::parse(line) {
        Some(figure) => {
            progress::note(format!("measured {}", figure.name));
            figures.push(figure);
        }
        None => progress::note(line),
    });
    step.done();
    // What was measured before something failed is worth as much as ever.
    if chore.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else if !figures.is_empty() {
        println!("{}\n{}", table::render(&figures), backend(host));
    }
    match ending? {
        Ending::Exited(0) => {}
        Ending::Exited(code) => bail!("lucos-bench failed with status {code}; its last words are above"),
        Ending::TimedOut => bail!("the measuring took longer than {} s", LIMIT.as_secs()),
        Ending::Interrupted => bail!("interrupted"),
    }
    ensure!(!figures.is_empty(), "lucos-bench printed no figure");
    Ok(())
}

/// The VMM as it is shipped, and the program that measures it.
fn build() -> Result<()> {
    let step = Step::start("building for release");
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "--quiet"]);
    // The target folder of this very program is the one that the host sees.
    build.arg("--target-dir").arg(bed::target_folder());
    build.args(["--package", "lucos-vmm", "--package", "lucos-bench"]).stderr(Stdio::inherit());
    output_of(&mut build, "build lucos-vmm and lucos-bench")?;
    step.done();
    Ok(())
}

fn images_for(disk: bool, patch: bool) -> Result<Vec<Image>> {
    let cache = Cache::open()?;
    let kernel = kernels::find(&cache, &Need::newest(Series::V6_1, Flavour::Cloud))?;
    let mut images = small_images()?;
    images.push(Image { name: "vmlinux-6.1-cloud".to_owned(), path: vmlinux::unpacked(&cache, &kernel)? });
    if disk {
        images.push(Image { name: "debian.img".to_owned(), path: images::debian(&cache)? });
    }
    if patch {
        let mut add = |name: &str, path| images.push(Image { name: name.to_owned(), path });
        add("agent.cpio", images::agent(&cache)?);
        for (name, path) in fixes::harmless(&cache, &kernel)? {
            add(&format!("{name}.lup"), path);
        }
    }
    Ok(images)
}

/// One line on where the figures come from.
fn backend(host: Host) -> String {
    let commit = output_of(
        command("git").current_dir(crate::cache::workspace_root()).args(["describe", "--always", "--dirty"]),
        "ask git for the commit",
    );
    let commit =
        commit.context("no commit").map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned());
    let backend = match host {
        Host::Local => "this machine's KVM",
        Host::Emulated(Cpu::Amd) => "kvm-amd under QEMU TCG: times are emulated, compare only ratios",
        Host::Emulated(Cpu::Intel) => "kvm-intel under Bochs: times are emulated, compare only ratios",
    };
    format!("commit {commit}; {backend}")
}
