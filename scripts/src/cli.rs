//! The subcommands of `cargo xtask`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use xtask::bed::cli::KvmHost;
use xtask::bench::{self, Bench};
use xtask::cache::{Cache, workspace_root};
use xtask::demo::{self, Demo};
use xtask::fixes;
use xtask::fuzz::{self, Fuzz};
use xtask::gate::{self, Extent, Only};
use xtask::images;
use xtask::kernels::{self, Flavour, Need, Series};
use xtask::packages::{self, Group};
use xtask::progress;
use xtask::tidy;

/// The project's chores: fetch, build, demo, test, bench.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Install the Debian packages that the test bed needs on this machine.
    Packages(Packages),
    /// Fetch one of Debian's kernels, asked for by need.
    Kernel(Kernel),
    /// Build a guest image.
    Image(Image),
    /// Run a command on a real KVM host: this machine, or one made by QEMU or Bochs.
    KvmHost(KvmHost),
    /// Boot a stock Debian in lucos-vmm, close a hole of its kernel while it runs, open it again, and switch it off.
    Demo(Demo),
    /// Run every test that a change must pass; with --full, those on every host, too.
    Test(Test),
    /// Check the repository's own rules, which are a part of `test`.
    Tidy,
    /// Measure lucos-vmm side by side with QEMU.
    Bench(Bench),
    /// Fuzz the parsers of what images and guests have made.
    Fuzz(Fuzz),
}

#[derive(Debug, Args)]
struct Packages {
    /// What the packages are for; all when none is given.
    #[arg(value_name = "GROUP")]
    groups: Vec<Group>,
}

#[derive(Debug, Args)]
struct Kernel {
    /// The series of the kernel.
    #[arg(long, default_value = "6.1")]
    series: Series,
    /// Debian's build of it.
    #[arg(long, default_value = "cloud")]
    flavour: Flavour,
    /// Only a kernel older than this package version or release.
    #[arg(long, value_name = "VERSION")]
    older_than: Option<String>,
    /// Only the kernel whose package has this version.
    #[arg(long, conflicts_with = "older_than")]
    version: Option<String>,
    /// Ask the archive again, even though the answer to this need is known.
    #[arg(long)]
    refresh: bool,
    /// Read every cached file in full before it is used.
    #[arg(long)]
    verify: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Image {
    /// Which image.
    name: ImageName,
    /// Read every cached file in full before it is used.
    #[arg(long)]
    verify: bool,
}

#[derive(Debug, Args)]
struct Test {
    /// Run only what needs no KVM host; a quick look, which the gate has to confirm.
    #[arg(long, conflicts_with = "full")]
    here: bool,
    /// Run the tests that take long, too, and all on every kernel of the hosts; keep the results in tests/results.
    #[arg(long)]
    full: bool,
    /// With --full, run only in the places whose names contain this, for example `here` or `AMD host 6.12`; may be
    /// repeated.
    #[arg(long, value_name = "PLACE", requires = "full")]
    on: Vec<String>,
    /// Run only the suites whose names contain this, for example `kvm_pause`; may be repeated.
    #[arg(long, value_name = "NAME", conflicts_with = "full")]
    only: Vec<String>,
    /// The time limit for the whole run, downloads and builds included [default: 75, with --full 360].
    #[arg(long, value_name = "MINUTES")]
    limit: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ImageName {
    /// BusyBox on an ext4 disk.
    Tiny,
    /// BusyBox as an initramfs.
    TinyCpio,
    /// The guest's agent, as an initramfs.
    Agent,
    /// The module that plants stacks to be found, as an initramfs for each guest kernel.
    Plant,
    /// What shows holes of a kernel, as an initramfs for the vulnerable kernel and for the newest.
    Holes,
    /// The fixes of the catalogue, as live patches for the vulnerable kernel.
    Fixes,
    /// Live patches that change nothing, for the newest kernels.
    Same,
    /// A full Debian on an ext4 disk.
    Debian,
    /// The same with a compiler and other load, for the long run.
    DebianLoad,
    /// The userland of the test bed's KVM host.
    HostRoot,
    /// Debian's initramfs for each guest kernel.
    Initrd,
    /// All of them.
    All,
}

/// Does what the command line asks for.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.chore {
        Chore::Packages(packages) => install(&packages),
        Chore::Kernel(kernel) => fetch(kernel),
        Chore::Image(image) => build(&image),
        Chore::Bench(chore) => bench::run(&chore),
        Chore::Fuzz(chore) => fuzz::run(&chore),
        Chore::KvmHost(chore) => return xtask::bed::cli::run(&chore),
        Chore::Demo(chore) => return demo::run(&chore),
        Chore::Test(chore) => return test(&chore),
        Chore::Tidy => return tidy(),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn test(arguments: &Test) -> Result<ExitCode> {
    let extent = match (arguments.here, arguments.full) {
        (true, _) => Extent::Here,
        (_, true) => Extent::Full,
        _ => Extent::Gate,
    };
    let limit = arguments.limit.map_or_else(|| extent.limit(), Duration::from_mins);
    let only = Only { suites: arguments.only.clone(), places: arguments.on.clone() };
    gate::run(extent, &only, limit)
}

fn tidy() -> Result<ExitCode> {
    let outcomes = tidy::check(&workspace_root())?;
    for outcome in &outcomes {
        outcome.remarks.iter().for_each(|remark| println!("remark: {remark}"));
        outcome.findings.iter().for_each(|finding| println!("{}: {finding}", outcome.name));
    }
    let good = outcomes.iter().all(|outcome| outcome.findings.is_empty());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn install(arguments: &Packages) -> Result<()> {
    let groups = if arguments.groups.is_empty() { Group::value_variants() } else { &arguments.groups };
    packages::ensure(groups)?;
    progress::note("every package that the test bed needs is installed");
    Ok(())
}

fn fetch(arguments: Kernel) -> Result<()> {
    let cache = Cache::open()?.verifying(arguments.verify);
    let need = Need {
        series: arguments.series,
        flavour: arguments.flavour,
        older_than: arguments.older_than,
        version: arguments.version,
    };
    let kernel =
        if arguments.refresh { kernels::refresh(&cache, &need) } else { kernels::find(&cache, &need) }?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&kernel)?);
    } else {
        println!("release  {}\nversion  {}", kernel.release, kernel.version);
        println!("vmlinuz  {}\nconfig   {}", kernel.vmlinuz.display(), kernel.config.display());
        println!("modules  {}", kernel.modules.display());
    }
    Ok(())
}

fn build(arguments: &Image) -> Result<()> {
    let cache = Cache::open()?.verifying(arguments.verify);
    let wanted = |name| arguments.name == name || arguments.name == ImageName::All;
    if wanted(ImageName::Tiny) {
        println!("{}", images::tiny(&cache)?.display());
    }
    if wanted(ImageName::TinyCpio) {
        println!("{}", images::tiny_cpio(&cache)?.display());
    }
    if wanted(ImageName::Agent) {
        println!("{}", images::agent(&cache)?.display());
    }
    if wanted(ImageName::Plant) {
        for need in images::guest_kernels().into_iter().chain([images::realtime_kernel()]) {
            println!("{}", images::plant(&cache, &kernels::find(&cache, &need)?)?.display());
        }
    }
    if wanted(ImageName::Holes) {
        let newest = kernels::find(&cache, &Need::newest(Series::V6_1, Flavour::Cloud))?;
        for kernel in kernels::find_if_offered(&cache, &images::vulnerable_kernel())?.iter().chain([&newest])
        {
            println!("{}", images::holes(&cache, kernel)?.display());
        }
    }
    if wanted(ImageName::Fixes) {
        for (_, path) in fixes::live_patches(&cache)?.into_iter().flatten() {
            println!("{}", path.display());
        }
    }
    if wanted(ImageName::Same) {
        for (_, path) in fixes::same_patches_of_all(&cache, true)? {
            println!("{}", path.display());
        }
    }
    if wanted(ImageName::Debian) {
        println!("{}", images::debian(&cache)?.display());
    }
    if wanted(ImageName::DebianLoad) {
        println!("{}", images::debian_load(&cache)?.display());
    }
    if wanted(ImageName::HostRoot) {
        println!("{}", images::host_root(&cache)?.display());
    }
    if wanted(ImageName::Initrd) {
        for need in images::guest_kernels() {
            let kernel = kernels::find(&cache, &need)?;
            println!("{}", images::initrd(&cache, &kernel)?.display());
        }
    }
    Ok(())
}
