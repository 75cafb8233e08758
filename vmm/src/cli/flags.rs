//! The flags that describe a machine.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::config::{
    ConfigError, CpuCount, CpuProfile, DiskSpec, Draft, GuestPatches, LogLevel, MemorySize, NetSpec,
    SerialSpec, Trapping, parse_socket_path,
};

/// Each flag is also a key of the file that `--config` names.
#[derive(Debug, Args)]
pub struct MachineFlags {
    /// The guest's kernel: a bzImage or a vmlinux ELF
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    kernel: Option<PathBuf>,

    /// NVMe disk, a raw image; may be repeated: PATH or path=PATH[,readonly=on|off]
    #[arg(long = "disk", value_name = "DISK", num_args = 1.., value_hint = ValueHint::FilePath)]
    disks: Vec<DiskSpec>,

    /// Initial RAM disk, as the distribution ships it
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    initrd: Option<PathBuf>,

    /// Added at the end of the default kernel command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,

    /// Number of vCPUs, 1 to 254: N or boot=N [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    cpus: Option<CpuCount>,

    /// Guest memory, a multiple of 2 MiB: 512M, 2G, or size=2G [default: 512M]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    memory: Option<MemorySize>,

    /// Network interface on a tap that exists; may be repeated: tap=NAME[,mac=MAC]
    #[arg(long, value_name = "NET", num_args = 1..)]
    net: Vec<NetSpec>,

    /// The guest's console: tty (this terminal), file=PATH or null [default: tty]
    #[arg(long, value_name = "WHERE")]
    serial: Option<SerialSpec>,

    /// Offer the serial port of the agent in the guest on this Unix socket
    #[arg(long, value_name = "SOCKET", value_parser = parse_socket_path)]
    agent: Option<PathBuf>,

    /// Offer the control API on this Unix socket, to its owner only; `lucos` is its client
    #[arg(long, value_name = "SOCKET", value_parser = parse_socket_path)]
    api_socket: Option<PathBuf>,

    /// File of a public key (minisign's format); a patch must be signed by one of them. May be repeated
    #[arg(long = "patch-key", value_name = "FILE", num_args = 1.., value_hint = ValueHint::FilePath)]
    patch_keys: Vec<PathBuf>,

    /// Patches that are handed in from inside the guest: refuse, or signed to take those with a good signature [default: refuse]
    #[arg(long, value_name = "POLICY")]
    guest_patches: Option<GuestPatches>,

    /// How accesses to watched pages are carried out: best, second-view or hold-all [default: best]
    #[arg(long, value_name = "WAY")]
    traps: Option<Trapping>,

    /// CPU features: stock (what is safe to patch under) or host (all that KVM offers) [default: stock]
    #[arg(long, value_name = "PROFILE")]
    cpu_profile: Option<CpuProfile>,

    /// Messages on standard error: error, warn, info, debug or trace [default: warn]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,

    /// Read the machine from a TOML file whose keys are the names of these flags
    ///
    /// Flags replace what the file says. Four add to it: --disk, --net and --patch-key come after the file's,
    /// and --cmdline at the end of the file's. Paths are relative to the working directory.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
}

impl MachineFlags {
    /// What the flags ask for, laid over the file if one is named.
    pub fn into_draft(self) -> Result<Draft, ConfigError> {
        let file = self.config.as_deref().map(Draft::read).transpose()?.unwrap_or_default();
        Ok(file.overlaid_by(Draft {
            kernel: self.kernel,
            initrd: self.initrd,
            cmdline: self.cmdline,
            disks: self.disks,
            cpus: self.cpus,
            memory: self.memory,
            net: self.net,
            serial: self.serial,
            agent: self.agent,
            api_socket: self.api_socket,
            patch_keys: self.patch_keys,
            guest_patches: self.guest_patches,
            traps: self.traps,
            cpu_profile: self.cpu_profile,
            log_level: self.log_level,
        }))
    }
}
