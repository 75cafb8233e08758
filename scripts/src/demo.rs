//! `cargo xtask demo`: from a bare machine to a stock Debian that is patched while it runs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::bed::{self, Cpu, Ending, Host, HostSpec, Image, Stream};
use crate::cache::Cache;
use crate::cargo::build_programs;
use crate::fixes;
use crate::images;
use crate::kernels::{self, Flavour, Kernel, Need, Series};
use crate::packages::{self, Group};
use crate::progress::note;

/// What runs beside the VMM.
const PLAY: &str = include_str!("demo/play.sh");
/// More than ten times what a boot takes on an emulated processor.
const PATIENCE: Duration = Duration::from_mins(15);

/// Boot a stock Debian in lucos-vmm, close a hole of its kernel while it runs, open it again, and switch it off.
#[derive(Debug, Args)]
#[command(after_help = "\
Fetches and builds what is missing: some minutes and 1 GiB of downloads the first time. On a machine without VMX and
SVM the KVM host is made by QEMU, and the guest boots some thirty times slower than on a real one.

Once Debian's archive has no kernel with a known hole any more, a patch that closes none is shown. To see that now:
LUCOS_VULNERABLE_KERNEL=none cargo xtask demo")]
pub struct Demo {
    /// vCPUs of the guest.
    #[arg(long, default_value = "2", value_parser = clap::value_parser!(u8).range(1..=16))]
    cpus: u8,
    /// Memory of the guest, as lucos-vmm reads it.
    #[arg(long, default_value = "1G")]
    memory: String,
}

/// Runs it; the exit code is success only if the guest booted, answered, and powered off cleanly.
pub fn run(demo: &Demo) -> Result<ExitCode> {
    let started = Instant::now();
    bed::interrupt::watch()?;
    packages::ensure(&[Group::Images])?;
    build_programs("dev")?;
    let cache = Cache::open()?;
    let (kernel, patch) = kernel_and_patch(&cache)?;
    let image = |name: &str, path| Image { name: name.to_owned(), path };
    let lup = image(&format!("{}.lup", patch.name), patch.path.clone());
    let spec = HostSpec {
        images: vec![
            image("vmlinuz", kernel.vmlinuz.clone()),
            image("debian.img", images::debian(&cache)?),
            lup,
        ],
        timeout: PATIENCE + Duration::from_mins(5),
        ..HostSpec::default()
    };
    let (host, why) = spec.host();
    let host = describe(host);
    note(format!("The KVM host: {host}; {why}."));
    note(format!("The guest: Debian 12 with its kernel {}, both as Debian ships them.", kernel.release));
    let patience = PATIENCE.as_secs().to_string();
    note(format!("The patch: {}.", patch.what));
    let words = ["sh", "-c", PLAY, "demo", &demo.cpus.to_string(), &demo.memory, &patience, patch.name];
    let argv: Vec<OsString> = words.map(OsString::from).to_vec();

    let mut notes = Notes::default();
    let ending = bed::run_streams(&spec, &argv, &mut |stream, bytes| match stream {
        Stream::Out => show(bytes),
        Stream::Err => {
            notes.take(bytes);
            Ok(())
        }
    })
    .context("the demo did not run to its end on the KVM host")?;
    if ending != Ending::Exited(0) {
        note(format!("\nThe demo failed, with status {}.", ending.code()));
        return Ok(ExitCode::from(ending.code().max(1)));
    }
    println!("\n{}", summary(demo, &host, &kernel, &patch, &notes.facts, started.elapsed()));
    Ok(ExitCode::SUCCESS)
}

/// What is shown: a name that the script knows, and a file.
#[derive(Debug)]
struct Patch {
    name: &'static str,
    what: &'static str,
    path: PathBuf,
}

/// The patch that closes none.
const HARMLESS: &str = "version";

/// A kernel with a hole, and the patch that closes it. Where Debian has dropped that kernel, or its source, the newest one and a
/// patch that changes nothing but what /proc/version says.
fn kernel_and_patch(cache: &Cache) -> Result<(Kernel, Patch)> {
    const FIX: &str = "ipc-next-id";
    if let Some(kernel) = kernels::find_if_offered(cache, &images::vulnerable_kernel())?
        && let Some(patches) = fixes::live_patches(cache)?
    {
        let path = patches.into_iter().find(|(name, _)| name == FIX).map(|(_, path)| path);
        let path = path.with_context(|| format!("the catalogue has no {FIX}"))?;
        let what = "Debian's own fix of CVE-2026-52923, out of the source of a later kernel";
        return Ok((kernel, Patch { name: FIX, what, path }));
    }
    note("Debian has no kernel with a known hole, or not its source: a patch is shown that closes none.");
    let kernel = kernels::find(cache, &Need::newest(Series::V6_1, Flavour::Cloud))?;
    let path = fixes::harmless(cache, &kernel)?.into_iter().find(|(name, _)| *name == HARMLESS);
    let (_, path) = path.context("there is no harmless patch")?;
    let what = "/proc/version says that it is patched; no hole is closed";
    Ok((kernel, Patch { name: HARMLESS, what, path }))
}

/// Microseconds as milliseconds.
fn milliseconds(text: &str) -> String {
    text.parse::<f64>().map_or_else(|_| "?".to_owned(), |us| format!("{:.1}", us / 1000.0))
}

fn show(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

fn describe(host: Host) -> String {
    match host {
        Host::Local => "this machine".to_owned(),
        Host::Emulated(Cpu::Amd) => "an AMD machine made by QEMU".to_owned(),
        Host::Emulated(Cpu::Intel) => "an Intel machine made by Bochs".to_owned(),
    }
}

/// What the script says on standard error.
#[derive(Debug, Default)]
struct Notes {
    half: Vec<u8>,
    facts: BTreeMap<String, String>,
}

impl Notes {
    fn take(&mut self, bytes: &[u8]) {
        self.half.extend_from_slice(bytes);
        while let Some(end) = self.half.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.half.drain(..=end).collect();
            self.line(String::from_utf8_lossy(&line).trim_end());
        }
    }

    fn line(&mut self, line: &str) {
        match line.split_once(' ') {
            Some(("fact", fact)) => {
                let (name, value) = fact.split_once(' ').unwrap_or((fact, ""));
                self.facts.insert(name.to_owned(), value.to_owned());
            }
            Some(("say", text)) => note(format!("demo: {text}")),
            // The VMM's own messages.
            _ => note(line),
        }
    }
}

fn summary(
    demo: &Demo,
    host: &str,
    kernel: &Kernel,
    patch: &Patch,
    facts: &BTreeMap<String, String>,
    took: Duration,
) -> String {
    let fact = |name: &str| facts.get(name).map_or("?", String::as_str);
    format!(
        "A stock Debian was patched while it ran in lucos-vmm, and is none the worse for it.\n\n  \
         host    {host}\n  \
         guest   Debian 12, kernel {} ({}), unmodified, no initramfs\n  \
         patch   {}: applied, rolled back, applied again; {} ms without a vCPU running, the last time\n  \
         has     {} vCPUs, {} of memory, its root on NVMe; the file system is clean\n  \
         took    {} s to the login prompt, {} s from `poweroff` to the end, {:.0} s in all",
        kernel.release,
        kernel.version,
        patch.what,
        milliseconds(fact("paused")),
        demo.cpus,
        demo.memory,
        fact("boot"),
        fact("off"),
        took.as_secs_f64()
    )
}

#[cfg(test)]
mod tests;
