//! `cargo xtask kvm-host`.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{Bochs, Cpu, Host, HostSpec, Image, Input, Stream, interrupt, run_streams};
use crate::cache::Cache;
use crate::cargo::build_programs;
use crate::images;
use crate::kernels::{self, Series};
use crate::progress;

/// Run a command on a real KVM host: this machine, or one made by QEMU or Bochs.
#[derive(Debug, Args)]
#[command(after_help = "\
The command finds the workspace's programs in $LUCOS_BIN (in PATH), guest kernels and images in $LUCOS_IMAGES, and
an empty disk in $LUCOS_SCRATCH. On a machine without VMX and SVM the host is made by QEMU (AMD, up in seconds) or
Bochs (Intel, half a minute); both are slow, and only ratios of times taken in one run mean anything.

The exit status is the command's; 124 when the time limit ended it, 130 after Ctrl-C.

Examples:
  cargo xtask kvm-host -- lucos-vmm doctor
  cargo xtask kvm-host --terminal -- bash
  cargo xtask kvm-host --cpu intel --host-kernel 6.12 -- sh -c 'dmesg | grep -i vmx'")]
pub struct KvmHost {
    /// The virtualisation extension [default: what this machine has, else AMD].
    #[arg(long)]
    cpu: Option<Cpu>,
    /// The kernel of the host; asking for one always makes an emulated host [default: 6.1].
    #[arg(long, value_name = "SERIES")]
    host_kernel: Option<Series>,
    /// Processors of an emulated host; more than 1 make the AMD host unreliable [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    smp: Option<u32>,
    /// Memory of an emulated host in MiB [default: AMD 4096, Intel 1024].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(256..))]
    memory: Option<u32>,
    /// Give the AMD host's processor five-level paging; guests use it, too.
    #[arg(long)]
    five_levels: bool,
    /// The time limit, from the start of the host.
    #[arg(long, value_name = "SECONDS", default_value = "900")]
    timeout: u64,
    /// The cargo profile whose programs the host sees; they are built first.
    #[arg(long, default_value = "dev")]
    profile: String,
    /// One more file for the host, found by its file name in `$LUCOS_WITH` (in PATH); may be repeated.
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
    /// A guest kernel or image, found by this name in `$LUCOS_IMAGES`; may be repeated [default: the small ones].
    #[arg(long, value_name = "NAME=FILE", value_parser = image)]
    image: Vec<Image>,
    /// A folder for what the command leaves in `$LUCOS_OUT`.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Keep the host kernel's own messages in this file.
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,
    /// Let the command read this program's standard input (not on Intel).
    #[arg(long, short)]
    input: bool,
    /// Give the command this terminal (not on Intel).
    #[arg(long, short, conflicts_with = "input")]
    terminal: bool,
    /// Instructions per second of the Intel host's clock.
    #[arg(long, default_value_t = Bochs::default().ips)]
    ips: u64,
    /// The Intel host's processor, one of `bochs --help cpu`.
    #[arg(long, value_name = "MODEL", default_value_t = Bochs::default().cpu_model)]
    cpu_model: String,
    /// The command and its arguments, passed on exactly as they are.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn image(text: &str) -> Result<Image> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !name.contains('/') => {
            Ok(Image { name: name.to_owned(), path: PathBuf::from(path) })
        }
        _ => bail!("write NAME=FILE, with a NAME without slashes"),
    }
}

impl KvmHost {
    fn spec(&self) -> Result<HostSpec> {
        let input = match (self.terminal, self.input) {
            (true, _) => Input::Terminal,
            (_, true) => Input::Ours,
            _ => Input::Nothing,
        };
        if self.terminal && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            bail!("--terminal needs a terminal as standard input and output; use --input for a stream");
        }
        Ok(HostSpec {
            cpu: self.cpu,
            kernel: self.host_kernel,
            smp: self.smp,
            memory_mib: self.memory,
            five_levels: self.five_levels,
            timeout: Duration::from_secs(self.timeout),
            // Cargo's two odd ones out.
            profile: match self.profile.as_str() {
                "dev" | "test" => "debug".to_owned(),
                "bench" => "release".to_owned(),
                other => other.to_owned(),
            },
            with: self.with.clone(),
            images: if self.image.is_empty() { small_images()? } else { self.image.clone() },
            out: self.out.clone(),
            input,
            console: self.console.clone(),
            bochs: Bochs { ips: self.ips, cpu_model: self.cpu_model.clone() },
        })
    }
}

/// What every guest test needs, and small enough to be copied to the Intel host.
pub fn small_images() -> Result<Vec<Image>> {
    let cache = Cache::open()?;
    let cloud = kernels::Need::newest(Series::V6_1, kernels::Flavour::Cloud);
    let image = |name: &str, path| Image { name: name.to_owned(), path };
    let cloud = kernels::find(&cache, &cloud)?;
    Ok(vec![
        image("plant-6.1-cloud.cpio", images::plant(&cache, &cloud)?),
        image("vmlinuz-6.1-cloud", cloud.vmlinuz),
        image("tiny.cpio", images::tiny_cpio(&cache)?),
        image("tiny.img", images::tiny(&cache)?),
    ])
}

/// Runs the command and passes on what it says and how it ends.
pub fn run(chore: &KvmHost) -> Result<ExitCode> {
    interrupt::watch()?;
    build_programs(&chore.profile)?;
    let spec = chore.spec()?;
    let (host, why) = spec.host();
    if host != Host::Local {
        progress::note(why);
    }
    let ending = run_streams(&spec, &chore.command, &mut |stream, bytes| match stream {
        Stream::Out => {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        }
        Stream::Err => io::stderr().lock().write_all(bytes),
    })
    .context("the command did not run to its end on the KVM host")?;
    Ok(ExitCode::from(ending.code()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        chore: KvmHost,
    }

    #[test]
    fn the_command_is_taken_as_it_is() {
        let line = Line::parse_from(["x", "--smp", "4", "--", "sh", "-c", "a  b", "--smp", "--"]);
        assert_eq!(line.chore.command, ["sh", "-c", "a  b", "--smp", "--"]);
        assert_eq!(line.chore.smp, Some(4));
        assert!(Line::try_parse_from(["x"]).is_err());
    }

    #[test]
    fn an_image_has_a_name_without_slashes() {
        assert_eq!(image("a=/b=c").unwrap(), Image { name: "a".to_owned(), path: "/b=c".into() });
        assert!(image("/b").is_err() && image("a/b=c").is_err() && image("=c").is_err());
    }
}
