//! What machine to run: one [`MachineSpec`], validated once, whoever asked for it.
//!
//! Flags and the TOML file of `--config` both become a [`Draft`], the file's first and the flags' laid over
//! it; [`Draft::build`] is the one place where a draft becomes a [`MachineSpec`], so nothing behind it has to
//! check a value again. What only the host can tell (does the tap exist, how many vCPUs does KVM allow) is
//! checked where the thing is opened.

mod draft;
mod error;
mod keys;
mod values;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use draft::Draft;
pub use error::{ConfigError, ValueError};
pub use values::{
    CpuCount, CpuProfile, DiskSpec, GuestPatches, LogLevel, MacAddress, MemorySize, NetSpec, SerialSpec,
    Trapping, parse_socket_path,
};

/// A virtual machine, fully described. In JSON and TOML each field has the name of its flag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "Draft")]
pub struct MachineSpec {
    /// The guest's kernel: a bzImage or a vmlinux ELF.
    #[schema(value_type = String)]
    pub kernel: PathBuf,
    /// Initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub initrd: Option<PathBuf>,
    /// What the user adds to the default kernel command line; comes last, so that it wins.
    pub cmdline: String,
    /// NVMe disks, in the order in which the guest numbers them.
    #[serde(rename = "disk")]
    pub disks: Vec<DiskSpec>,
    /// Number of vCPUs.
    #[schema(value_type = u8, minimum = 1, maximum = 254)]
    pub cpus: CpuCount,
    /// Guest memory in bytes.
    #[schema(value_type = u64)]
    pub memory: MemorySize,
    /// Network interfaces.
    pub net: Vec<NetSpec>,
    /// Where the first serial port, the guest's console, leads: `tty`, `null` or `file=PATH`.
    #[schema(value_type = String)]
    pub serial: SerialSpec,
    /// Unix socket on which the host end of the guest agent's serial port is offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub agent: Option<PathBuf>,
    /// Unix socket of the control API.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub api_socket: Option<PathBuf>,
    /// Files of public keys: of these, one must have signed a patch.
    #[serde(rename = "patch_key", default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub patch_keys: Vec<PathBuf>,
    /// Whether signed patches are taken that somebody in the guest hands in.
    #[schema(value_type = String)]
    pub guest_patches: GuestPatches,
    /// How accesses to watched pages are carried out: `best`, `second-view` or `hold-all`.
    #[schema(value_type = String)]
    pub traps: Trapping,
    /// The CPU features that the guest sees: `stock` or `host`.
    #[schema(value_type = String)]
    pub cpu_profile: CpuProfile,
    /// How much the VMM logs: `error`, `warn`, `info`, `debug` or `trace`.
    #[schema(value_type = String)]
    pub log_level: LogLevel,
}

impl MachineSpec {
    /// A machine with every default: one vCPU, 512 MiB, the console on this terminal, no disk.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initrd: None,
            cmdline: String::new(),
            disks: Vec::new(),
            cpus: CpuCount::default(),
            memory: MemorySize::default(),
            net: Vec::new(),
            serial: SerialSpec::default(),
            agent: None,
            api_socket: None,
            patch_keys: Vec::new(),
            guest_patches: GuestPatches::default(),
            traps: Trapping::default(),
            cpu_profile: CpuProfile::default(),
            log_level: LogLevel::default(),
        }
    }
}
