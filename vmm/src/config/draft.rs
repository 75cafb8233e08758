//! A machine as asked for so far: from a file, from flags, or from both.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::values::check_socket_path;
use super::{
    ConfigError, CpuCount, CpuProfile, DiskSpec, GuestPatches, LogLevel, MachineSpec, MemorySize, NetSpec,
    SerialSpec, Trapping, ValueError,
};

/// A configuration file is a screenful; this only keeps a mistaken `--config disk.img` out of memory.
const FILE_MAX: u64 = 1 << 20;

/// x86 Linux copies this many bytes, the closing NUL included (`COMMAND_LINE_SIZE`, arch/x86).
const CMDLINE_MAX: usize = 2047;

/// What was asked for; a field left out has its default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    /// See [`MachineSpec::kernel`].
    pub kernel: Option<PathBuf>,
    /// See [`MachineSpec::initrd`].
    pub initrd: Option<PathBuf>,
    /// See [`MachineSpec::cmdline`].
    pub cmdline: Option<String>,
    /// See [`MachineSpec::disks`].
    #[serde(rename = "disk", default)]
    pub disks: Vec<DiskSpec>,
    /// See [`MachineSpec::cpus`].
    pub cpus: Option<CpuCount>,
    /// See [`MachineSpec::memory`].
    pub memory: Option<MemorySize>,
    /// See [`MachineSpec::net`].
    #[serde(default)]
    pub net: Vec<NetSpec>,
    /// See [`MachineSpec::serial`].
    pub serial: Option<SerialSpec>,
    /// See [`MachineSpec::agent`].
    pub agent: Option<PathBuf>,
    /// See [`MachineSpec::api_socket`].
    #[serde(alias = "api-socket")]
    pub api_socket: Option<PathBuf>,
    /// See [`MachineSpec::patch_keys`].
    #[serde(rename = "patch_key", alias = "patch-key", default)]
    pub patch_keys: Vec<PathBuf>,
    /// See [`MachineSpec::guest_patches`].
    #[serde(alias = "guest-patches")]
    pub guest_patches: Option<GuestPatches>,
    /// See [`MachineSpec::traps`].
    pub traps: Option<Trapping>,
    /// See [`MachineSpec::cpu_profile`].
    #[serde(alias = "cpu-profile")]
    pub cpu_profile: Option<CpuProfile>,
    /// See [`MachineSpec::log_level`].
    #[serde(alias = "log-level")]
    pub log_level: Option<LogLevel>,
}

impl Draft {
    /// Reads a TOML file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let mut text = String::new();
        let read = |source: io::Error| ConfigError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > FILE_MAX {
            return Err(ConfigError::TooLong { path: path.to_owned(), most: FILE_MAX });
        }
        toml::from_str(&text)
            .map_err(|source| ConfigError::Toml { path: path.to_owned(), source: Box::new(source) })
    }

    /// Lays `over` (the flags) over this draft (the file).
    ///
    /// What can be given once replaces the file's value. Disks, network interfaces and keys are added after the
    /// file's, so that the file's first disk stays the guest's first; the kernel command line is added at
    /// the end of the file's, where it wins.
    #[must_use]
    pub fn overlaid_by(mut self, over: Self) -> Self {
        self.disks.extend(over.disks);
        self.net.extend(over.net);
        self.patch_keys.extend(over.patch_keys);
        let cmdline = match (self.cmdline, over.cmdline) {
            (Some(file), Some(flag)) => Some(format!("{file} {flag}")),
            (file, flag) => flag.or(file),
        };
        Self {
            kernel: over.kernel.or(self.kernel),
            initrd: over.initrd.or(self.initrd),
            cmdline,
            disks: self.disks,
            cpus: over.cpus.or(self.cpus),
            memory: over.memory.or(self.memory),
            net: self.net,
            serial: over.serial.or(self.serial),
            agent: over.agent.or(self.agent),
            api_socket: over.api_socket.or(self.api_socket),
            patch_keys: self.patch_keys,
            guest_patches: over.guest_patches.or(self.guest_patches),
            traps: over.traps.or(self.traps),
            cpu_profile: over.cpu_profile.or(self.cpu_profile),
            log_level: over.log_level.or(self.log_level),
        }
    }

    /// Checks the whole and fills in the defaults.
    pub fn build(self) -> Result<MachineSpec, ConfigError> {
        let kernel = self.kernel.ok_or(ConfigError::NoKernel)?;
        let spec = MachineSpec {
            kernel,
            initrd: self.initrd,
            cmdline: self.cmdline.unwrap_or_default(),
            disks: self.disks,
            cpus: self.cpus.unwrap_or_default(),
            memory: self.memory.unwrap_or_default(),
            net: self.net,
            serial: self.serial.unwrap_or_default(),
            agent: self.agent,
            api_socket: self.api_socket,
            patch_keys: self.patch_keys,
            guest_patches: self.guest_patches.unwrap_or_default(),
            traps: self.traps.unwrap_or_default(),
            cpu_profile: self.cpu_profile.unwrap_or_default(),
            log_level: self.log_level.unwrap_or_default(),
        };
        check(&spec)?;
        Ok(spec)
    }
}

impl TryFrom<Draft> for MachineSpec {
    type Error = ConfigError;

    fn try_from(draft: Draft) -> Result<Self, ConfigError> {
        draft.build()
    }
}

/// What no single value shows by itself.
fn check(spec: &MachineSpec) -> Result<(), ConfigError> {
    let refused = |option, value: &dyn ToString, source| {
        Err(ConfigError::Value { option, value: value.to_string(), source })
    };
    for (option, path) in paths(spec) {
        let problem = if path.as_os_str().is_empty() {
            Some(ValueError::Empty)
        } else if path.to_str().is_none() {
            Some(ValueError::NotUtf8)
        } else {
            None
        };
        if let Some(problem) = problem {
            return refused(option, &path.display(), problem);
        }
    }
    let sockets = [("--agent", &spec.agent), ("--api-socket", &spec.api_socket)];
    for (option, path) in sockets.into_iter().filter_map(|(option, path)| Some((option, path.as_ref()?))) {
        if let Err(problem) = check_socket_path(path) {
            return refused(option, &path.display(), problem);
        }
    }
    if spec.cmdline.len() > CMDLINE_MAX {
        let length = ValueError::CmdlineLength { most: CMDLINE_MAX, len: spec.cmdline.len() };
        return refused("--cmdline", &spec.cmdline, length);
    }
    if let Some(character) = spec.cmdline.chars().find(|character| character.is_control()) {
        let control = ValueError::Control { code: character.into() };
        return refused("--cmdline", &spec.cmdline.escape_default(), control);
    }
    for net in &spec.net {
        if let Err(problem) = net.check() {
            return refused("--net", net, problem);
        }
    }
    if spec.cpu_profile == CpuProfile::Host && spec.traps != Trapping::Best {
        return refused("--traps", &spec.traps, ValueError::Nests);
    }
    check_shared(spec)
}

/// Refuses two users for a file of which one writes.
fn check_shared(spec: &MachineSpec) -> Result<(), ConfigError> {
    let mut users: Vec<(&'static str, &Path, bool)> =
        spec.disks.iter().map(|disk| ("--disk", disk.path.as_path(), !disk.readonly)).collect();
    if let SerialSpec::File(path) = &spec.serial {
        users.push(("--serial", path, true));
    }
    users.extend(spec.agent.as_deref().map(|path| ("--agent", path, true)));
    users.extend(spec.api_socket.as_deref().map(|path| ("--api-socket", path, true)));
    for (index, &(option, path, writes)) in users.iter().enumerate() {
        if users[..index].iter().any(|&(_, other, also)| other == path && (writes || also)) {
            let value = path.display().to_string();
            return Err(ConfigError::Value { option, value, source: ValueError::Shared });
        }
    }
    for (index, net) in spec.net.iter().enumerate() {
        if spec.net[..index].iter().any(|other| other.tap == net.tap) {
            let value = net.to_string();
            return Err(ConfigError::Value { option: "--net", value, source: ValueError::Shared });
        }
    }
    Ok(())
}

/// Every path of the machine, with its flag.
fn paths(spec: &MachineSpec) -> impl Iterator<Item = (&'static str, &Path)> {
    let serial = match &spec.serial {
        SerialSpec::File(path) => Some(path.as_path()),
        SerialSpec::Tty | SerialSpec::Null => None,
    };
    let one = [
        ("--kernel", Some(spec.kernel.as_path())),
        ("--initrd", spec.initrd.as_deref()),
        ("--serial", serial),
        ("--agent", spec.agent.as_deref()),
        ("--api-socket", spec.api_socket.as_deref()),
    ];
    one.into_iter()
        .filter_map(|(option, path)| Some((option, path?)))
        .chain(spec.patch_keys.iter().map(|path| ("--patch-key", path.as_path())))
        .chain(spec.disks.iter().map(|disk| ("--disk", disk.path.as_path())))
}
