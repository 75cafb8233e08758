//! A real KVM host to run a command on: this machine where it is one, else a machine made by an emulator.
//!
//! | host | made by | KVM | used when |
//! |---|---|---|---|
//! | [`local`] | nothing | this machine's | it has VMX or SVM, and `/dev/kvm` can be opened |
//! | [`amd`] | QEMU TCG | `kvm-amd`, nested paging | else: up in seconds, the everyday host |
//! | [`intel`] | Bochs | `kvm-intel`, EPT | asked for: the only place without Intel hardware where EPT is exercised |
//!
//! On every host the command finds the same things, by these variables and, on the emulated ones, these paths:
//!
//! | variable | path | what |
//! |---|---|---|
//! | `LUCOS_BIN` | `/lucos/bin` | the workspace's programs (in `PATH`) |
//! | `LUCOS_WITH` | `/lucos/with` | files named with `--with` (in `PATH`) |
//! | `LUCOS_IMAGES` | `/lucos/images` | guest kernels and images |
//! | `LUCOS_SCRATCH` | `/scratch` | an empty disk, the working directory, thrown away at the end |
//! | `LUCOS_OUT` | `/lucos/out` | the folder given with `--out`, for results |
//! | `LUCOS_EMULATED` | | set on an emulated host only |

mod amd;
pub mod cli;
mod detect;
mod emulator;
mod initramfs;
mod intel;
pub(crate) mod interrupt;
mod local;
mod machine;
mod quote;
mod scratch;
mod terminal;
pub(crate) mod vmlinux;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::cache::Cache;
use crate::kernels::Series;

/// Whose virtualisation extension a host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Cpu {
    /// SVM with nested paging.
    Amd,
    /// VMX with EPT.
    Intel,
}

/// Where a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// On this machine's own KVM.
    Local,
    /// In a machine that an emulator makes.
    Emulated(Cpu),
}

/// What the host and the command on it should be like.
#[derive(Debug, Clone)]
pub struct HostSpec {
    /// Which extension; `None` takes what this machine has, else AMD.
    pub cpu: Option<Cpu>,
    /// Which kernel the host runs; asking for one always means an emulated host.
    pub kernel: Option<Series>,
    /// Processors of an emulated host; `None` takes 1: see the two beds for why.
    pub smp: Option<u32>,
    /// Memory of an emulated host; `None` takes 4 GiB on AMD and 1 GiB on Intel.
    pub memory_mib: Option<u32>,
    /// Whether an AMD host's processor has five-level paging, which its guests then use, too.
    pub five_levels: bool,
    /// From the start of the machine; what happens before (fetching, building) is not counted.
    pub timeout: Duration,
    /// The folder below cargo's target folder whose programs are in `LUCOS_BIN`.
    pub profile: String,
    /// More files, found by their file names in `LUCOS_WITH`.
    pub with: Vec<PathBuf>,
    /// Guest kernels and images, found by these names in `LUCOS_IMAGES`.
    pub images: Vec<Image>,
    /// A folder of this machine that takes what the command leaves in `LUCOS_OUT`.
    pub out: Option<PathBuf>,
    /// What the command reads.
    pub input: Input,
    /// Where an emulated host's own kernel messages are kept after the end; else they are shown only on failure.
    pub console: Option<PathBuf>,
    /// What only the Intel host has.
    pub bochs: Bochs,
}

/// Settings of Bochs that change what is emulated.
#[derive(Debug, Clone)]
pub struct Bochs {
    /// Instructions per second of emulated time: Bochs derives its clock from it, whatever the real speed.
    pub ips: u64,
    /// One of `bochs --help cpu` that has VMX.
    pub cpu_model: String,
}

impl Default for Bochs {
    fn default() -> Self {
        Self { ips: 100_000_000, cpu_model: "corei7_skylake_x".to_owned() }
    }
}

/// A file that the command finds by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name in `LUCOS_IMAGES`.
    pub name: String,
    /// Where it is on this machine.
    pub path: PathBuf,
}

impl Image {
    /// Puts a link to it, by its name, into `folder`.
    pub(crate) fn link_in(&self, folder: &Path) -> Result<()> {
        link(&self.path, &folder.join(&self.name))
    }
}

/// Makes `to` a link to the file `from`.
fn link(from: &Path, to: &Path) -> Result<()> {
    let from = from.canonicalize().with_context(|| format!("cannot find {}", from.display()))?;
    std::os::unix::fs::symlink(from, to).with_context(|| format!("cannot link {}", to.display()))
}

/// What the command's standard input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Input {
    /// Empty.
    #[default]
    Nothing,
    /// Ours, as a stream of bytes.
    Ours,
    /// Our terminal: input, output and errors.
    Terminal,
}

impl Default for HostSpec {
    fn default() -> Self {
        Self {
            cpu: None,
            kernel: None,
            smp: None,
            memory_mib: None,
            five_levels: false,
            timeout: Duration::from_mins(15),
            profile: "debug".to_owned(),
            with: Vec::new(),
            images: Vec::new(),
            out: None,
            input: Input::Nothing,
            console: None,
            bochs: Bochs::default(),
        }
    }
}

/// Which of the command's two outputs something came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this status; 128 and the signal's number if by a signal, as in a shell.
    Exited(u8),
    /// The time limit ended it.
    TimedOut,
    /// Ctrl-C, or whoever ended us, ended it.
    Interrupted,
}

impl Ending {
    /// The status that a shell would report: 124 is what `timeout` says, 130 what Ctrl-C does.
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::TimedOut => 124,
            Self::Interrupted => 130,
        }
    }
}

/// Takes the command's output as it comes.
pub type Sink<'a> = dyn FnMut(Stream, &[u8]) -> io::Result<()> + 'a;

impl HostSpec {
    /// Where a command with this specification runs on this machine, and a word on why.
    pub fn host(&self) -> (Host, String) {
        match (detect::local(), self.kernel, self.cpu) {
            (detect::Local::Usable(cpu), None, wanted) if wanted.is_none_or(|wanted| wanted == cpu) => {
                (Host::Local, "this machine's own /dev/kvm is used".to_owned())
            }
            (detect::Local::Usable(_), _, wanted) => {
                (Host::Emulated(wanted.unwrap_or(Cpu::Amd)), "a certain host was asked for".to_owned())
            }
            (detect::Local::Unusable(why), _, wanted) => (
                Host::Emulated(wanted.unwrap_or(Cpu::Amd)),
                format!("this machine cannot be the host: {why}"),
            ),
        }
    }
}

/// Fetches the emulator that the AMD host needs and that is no package of this machine.
pub(crate) fn prepare(cache: &Cache) -> Result<()> {
    emulator::Emulator::fetch(cache).map(drop)
}

/// Runs `argv` on the host that `spec` asks for, handing every full line of its output to `on_line`.
pub fn run(spec: &HostSpec, argv: &[OsString], on_line: &mut dyn FnMut(&str)) -> Result<Ending> {
    // One buffer per stream: lines of the two may come in pieces that alternate.
    let mut halves = [Vec::new(), Vec::new()];
    let ending = run_streams(spec, argv, &mut |stream, bytes| {
        let half: &mut Vec<u8> = &mut halves[usize::from(stream == Stream::Err)];
        half.extend_from_slice(bytes);
        while let Some(end) = half.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = half.drain(..=end).collect();
            on_line(String::from_utf8_lossy(&line[..end]).trim_end_matches('\r'));
        }
        Ok(())
    })?;
    for rest in halves.iter().filter(|half| !half.is_empty()) {
        on_line(&String::from_utf8_lossy(rest));
    }
    Ok(ending)
}

/// Runs `argv` on the host that `spec` asks for, handing its output to `sink` byte by byte as it comes.
pub fn run_streams(spec: &HostSpec, argv: &[OsString], sink: &mut Sink) -> Result<Ending> {
    anyhow::ensure!(!argv.is_empty(), "there is no command to run on the KVM host");
    interrupt::watch()?;
    match spec.host().0 {
        Host::Local => local::run(spec, argv, sink),
        Host::Emulated(Cpu::Amd) => amd::run(spec, argv, sink),
        Host::Emulated(Cpu::Intel) => intel::run(spec, argv, sink),
    }
}

/// Cargo's target folder: the one that this program itself was built into.
pub(crate) fn target_folder() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    // Cargo puts this file into every target folder.
    let target = exe.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    target.map_or_else(|| crate::cache::workspace_root().join("target"), PathBuf::from)
}
