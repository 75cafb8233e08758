//! The programs that are compared, and how each is asked for the same machine.

use std::path::PathBuf;
use std::process::Command;

/// What the guest's kernel is told on each VMM; lucos-vmm says the first part by itself.
const CMDLINE: &str = "console=ttyS0 panic=-1 reboot=panic_warm";

/// A VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vmm {
    /// Ours.
    Lucos,
    /// Debian's QEMU with its usual machine for PCI Express.
    Q35,
    /// Debian's QEMU with its small machine, which needs ACPI and PCI Express for an NVMe disk.
    Microvm,
}

/// The machine that a guest runs on.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) kernel: PathBuf,
    pub(crate) cpus: u8,
    pub(crate) memory_mib: u32,
    /// The first is the root file system.
    pub(crate) disks: Vec<Disk>,
    /// An initramfs, which is then the root file system.
    pub(crate) initrd: Option<PathBuf>,
    /// Added to the kernel's command line.
    pub(crate) cmdline: String,
    /// A Unix socket for the VMM's control protocol.
    pub(crate) control: Option<PathBuf>,
    /// How lucos-vmm carries trapped accesses out, if not as well as it can.
    pub(crate) traps: Option<&'static str>,
}

/// A raw image, shown to the guest as an NVMe disk.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) readonly: bool,
}

impl Vmm {
    /// In figures.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lucos => "lucos-vmm",
            Self::Q35 => "qemu q35",
            Self::Microvm => "qemu microvm",
        }
    }

    /// The command that runs `machine` with its console on standard output.
    pub(crate) fn command(self, machine: &Machine) -> Command {
        match self {
            Self::Lucos => lucos(machine),
            Self::Q35 => qemu("q35", machine),
            Self::Microvm => qemu("microvm,acpi=on,pcie=on", machine),
        }
    }
}

fn lucos(machine: &Machine) -> Command {
    let mut command = Command::new("lucos-vmm");
    command.arg("--kernel").arg(&machine.kernel);
    command.args(["--cpus", &machine.cpus.to_string()]);
    command.args(["--memory", &format!("{}M", machine.memory_mib)]);
    for disk in &machine.disks {
        let readonly = if disk.readonly { "on" } else { "off" };
        command.args(["--disk", &format!("path={},readonly={readonly}", disk.path.display())]);
    }
    if let Some(initrd) = &machine.initrd {
        command.arg("--initrd").arg(initrd);
    }
    command.args(["--cmdline", &machine.cmdline]);
    if let Some(socket) = &machine.control {
        command.arg("--api-socket").arg(socket);
    }
    command.args(machine.traps.iter().flat_map(|traps| ["--traps", traps]));
    command
}

/// No firmware menus, screens or network cards, and images through the host's page cache as lucos-vmm has them.
fn qemu(kind: &str, machine: &Machine) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "kvm", "-machine", kind, "-cpu", "host"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.args(["-smp", &machine.cpus.to_string(), "-m", &machine.memory_mib.to_string()]);
    command.arg("-kernel").arg(&machine.kernel);
    let mode = if machine.disks.first().is_some_and(|root| root.readonly) { "ro" } else { "rw" };
    command.args(["-append", &format!("{CMDLINE} root=/dev/nvme0n1 {mode} {}", machine.cmdline)]);
    for (number, disk) in machine.disks.iter().enumerate() {
        let readonly = if disk.readonly { "on" } else { "off" };
        let options = "if=none,format=raw,cache=writeback,aio=threads";
        let drive = format!("{options},id=d{number},readonly={readonly},file={}", disk.path.display());
        command.args(["-drive", &drive, "-device", &format!("nvme,drive=d{number},serial=bench{number}")]);
    }
    if let Some(socket) = &machine.control {
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vmm_gets_the_same_machine() {
        let machine = Machine {
            kernel: "k".into(),
            cpus: 2,
            memory_mib: 512,
            disks: vec![Disk { path: "d.img".into(), readonly: true }],
            cmdline: "LUCOS_RUN=poweroff".into(),
            initrd: None,
            control: None,
            traps: None,
        };
        let words = |vmm: Vmm| {
            let command = vmm.command(&machine);
            command.get_args().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert!(words(Vmm::Lucos).contains("--cpus 2 --memory 512M --disk path=d.img,readonly=on"));
        for vmm in [Vmm::Q35, Vmm::Microvm] {
            assert!(words(vmm).contains("-smp 2 -m 512"));
            assert!(words(vmm).contains("root=/dev/nvme0n1 ro LUCOS_RUN=poweroff"));
        }
    }
}
