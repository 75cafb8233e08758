//! One life of a guest, from reset to reset.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use update_server::addr::Gpa;
use update_server::guest::Vcpu;
use update_server::watch::Watched;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::MachineError;
use super::attached::Attached;
use super::events::Events;
use super::host::HostSide;
use super::trapping::{self, LostPages};
use crate::agent::HypercallPort;
use crate::boot::{self, BootSource, KernelImage, REBOOT_MODE};
use crate::config::{CpuProfile, MacAddress, MachineSpec};
use crate::control::model::TrapReport;
use crate::control::{Arming, ControlError};
use crate::device::acpi_pm::{self, AcpiPm, InterruptLine, SCI};
use crate::device::bus::Bus;
use crate::device::i8042::{self, I8042};
use crate::device::nvme::Disk;
use crate::device::pci::{CONFIG_PORTS, PciBus};
use crate::device::serial::{self, COM1, COM2};
use crate::device::virtio::Tap;
use crate::memory::{DmaGate, GateError, GuestMemory, GuestRam, HugePages, collapse_range};
use crate::sys::kvm::{GuestVm, KvmError, Views};
use crate::trap::Proof;
use crate::vcpu::{CpuModel, ExitKind, PauseError, PortsAndMemory, VcpuThreads};

/// What every command line begins with: the console, a restart at once after a panic, and a mark that tells
/// such a restart from a reboot (see [`REBOOT_MODE`]).
const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1 reboot=panic_warm";
/// The mark: a warm reboot (arch/x86/kernel/reboot.c).
const WARM: u16 = 0x1234;

/// What is opened once and used by every instance.
#[derive(Debug)]
pub(super) struct Parts {
    kvm: Kvm,
    disks: Vec<Arc<Disk>>,
    nets: Vec<(Tap, MacAddress)>,
    /// How trapped accesses can be carried out here.
    traps: Proof,
    /// Which pages were given up, a restart of the guest among the reasons.
    lost_pages: Arc<LostPages>,
}

impl Parts {
    pub(super) fn open(spec: &MachineSpec) -> Result<Self, MachineError> {
        let kvm = Kvm::new().map_err(|error| MachineError::NoKvm { source: error.into() })?;
        // One is made that never runs, for traps.
        let max = kvm.get_max_vcpus().saturating_sub(1);
        if usize::from(spec.cpus.get()) > max {
            return Err(MachineError::TooManyCpus { wanted: spec.cpus.get(), max });
        }
        check_memory(spec.memory.bytes(), host_memory())?;
        let disks = spec
            .disks
            .iter()
            .map(|disk| Disk::open(&disk.path, disk.readonly).map(Arc::new))
            .collect::<Result<_, _>>()?;
        let nets = spec
            .net
            .iter()
            .map(|net| Ok((Tap::open(&net.tap)?, net.mac.map_or_else(random_mac, Ok)?)))
            .collect::<Result<_, MachineError>>()?;
        let traps = Proof::of(&kvm, spec.traps);
        match traps.means() {
            Ok(_) => tracing::debug!("{traps}"),
            Err(why) => tracing::warn!("no access to guest memory can be trapped: {why}"),
        }
        Ok(Self { kvm, disks, nets, traps, lost_pages: Arc::default() })
    }
}

impl Parts {
    /// The disk images, locked as long as this lives.
    pub(super) fn disks(&self) -> &[Arc<Disk>] {
        &self.disks
    }

    /// The taps with the addresses of the guest's interfaces, which stay the same when it reboots.
    pub(super) fn nets(&self) -> &[(Tap, MacAddress)] {
        &self.nets
    }
}

/// Refuses a guest that could never have all its memory. Linux hands out more than there is, and would kill the
/// VMM, or somebody else, at some later time.
fn check_memory(wanted: u64, host: u64) -> Result<(), MachineError> {
    if wanted > host {
        return Err(MachineError::MoreMemoryThanHost { wanted: wanted >> 20, available: host >> 20 });
    }
    Ok(())
}

/// Bytes of RAM in this host, used or not (sysinfo(2)).
fn host_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

fn random_mac() -> Result<MacAddress, MachineError> {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes).map_err(|error| MachineError::Host {
        what: "make up a MAC address (give one with --net mac=)".into(),
        source: io::Error::other(error),
    })?;
    Ok(MacAddress::from_random(bytes))
}

/// How an instance ended, as far as its memory tells.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remains {
    /// The guest marked its restart as one after a panic.
    pub(super) after_panic: bool,
}

/// A running guest.
#[derive(Debug)]
pub(super) struct Instance {
    vcpus: VcpuThreads,
    vm: Arc<GuestVm>,
    gate: Arc<DmaGate>,
    pm: Arc<AcpiPm>,
    attached: Attached,
    lost_pages: Arc<LostPages>,
    _huge_pages: HugePages,
}

struct SciLine(Arc<GuestVm>);

impl InterruptLine for SciLine {
    fn set(&self, active: bool) {
        if let Err(error) = self.0.fd().set_irq_line(u32::from(SCI), active) {
            tracing::error!("KVM_IRQ_LINE {SCI}: {error}");
        }
    }
}

impl Instance {
    /// Builds a machine and starts its vCPUs.
    pub(super) fn start(
        spec: &MachineSpec,
        kernel: &KernelImage,
        parts: &Parts,
        host: &HostSide,
        events: &Events,
    ) -> Result<Arc<Self>, MachineError> {
        // 1. Memory, and the machine that runs on it.
        let ram = GuestRam::new(spec.memory.bytes())?;
        // A step throws a nested guest away: the second view is not for those (arch/x86/kvm/x86.c, `kvm_leave_nested`).
        let means = match spec.cpu_profile {
            CpuProfile::Stock => parts.traps.means(),
            CpuProfile::Host => Err("`--cpu-profile host` lets the guest have guests of its own, \
                                     which traps would disturb; use `stock`"
                .to_owned()),
        };
        let views = means.as_ref().map_or(Views::First, |means| means.views());
        let vm = GuestVm::new(&parts.kvm, ram, views)?;
        let gate = Arc::new(DmaGate::default());

        // 2. Devices.
        host.link().reset();
        let hypercalls = HypercallPort::new(vm.ram().memory().clone(), Arc::clone(host.link()));
        let bus = PortsAndMemory {
            ports: Bus::new("I/O port"),
            pci: Arc::new(PciBus::new()),
            hypercalls,
            tombstones: Arc::clone(host.tombstones()),
            stubs: Arc::clone(host.stubs()),
        };
        let power = events.power();
        for (port, uart) in [(COM1, host.console()), (COM2, host.agent())] {
            uart.reset().map_err(MachineError::host("reset a serial port"))?;
            connect_irq(&vm, uart.irq(), port.irq)?;
            bus.ports.insert(u64::from(port.base), serial::PORTS, Arc::clone(uart) as _)?;
        }
        let pm = Arc::new(AcpiPm::new(Box::new(SciLine(Arc::clone(&vm))), power.clone()));
        bus.ports.insert(acpi_pm::PORTS.0, acpi_pm::PORTS.1, Arc::clone(&pm) as _)?;
        bus.ports.insert(i8042::PORTS.0, i8042::PORTS.1, Arc::new(I8042::new(power)))?;
        bus.ports.insert(
            CONFIG_PORTS.start,
            CONFIG_PORTS.end - CONFIG_PORTS.start,
            Arc::clone(&bus.pci) as _,
        )?;

        let attached = Attached::new(spec, parts, &vm, &gate, &bus.pci)?;

        // 3. The kernel.
        let cmdline = cmdline(spec);
        let source =
            BootSource { kernel, initrd: spec.initrd.as_ref(), cmdline: &cmdline, cpus: spec.cpus.get() };
        // The kernel's own memory is used at once and by every vCPU: huge pages before the first access.
        collapse_range(vm.ram().memory(), 0, kernel.memory_end());
        let entry = boot::load(vm.ram(), &source)?;
        // Without KASLR it unpacks itself to where it was loaded, which consists of huge pages already.
        let elsewhere = !cmdline.split_whitespace().any(|word| word == "nokaslr");
        let unpacking = kernel.unpacking().filter(|_| elsewhere);
        let huge_pages = HugePages::start(vm.ram().memory().clone(), unpacking)
            .map_err(MachineError::host("start the huge-page thread"))?;

        // 4. vCPUs: from here on the guest runs.
        let model = CpuModel::new(&parts.kvm, spec.cpu_profile, spec.cpus.get())?;
        let sender = events.sender();
        let on_stop = move |vcpu, stop| sender.send((vcpu, stop).into());
        let vcpus = VcpuThreads::start(&vm, &model, spec.cpus.get(), entry, Arc::new(bus), means, on_stop)?;
        let lost_pages = Arc::clone(&parts.lost_pages);
        vcpus.set_watcher(Arc::clone(&lost_pages) as _);
        Ok(Arc::new(Self { vcpus, vm, gate, pm, attached, lost_pages, _huge_pages: huge_pages }))
    }

    /// Stops every vCPU and every device's access to guest memory, or nothing. Returns since when vCPUs stop.
    pub(super) fn pause(&self) -> Result<Instant, ControlError> {
        let timed_out = |limit: Duration, holder: String| ControlError::TimedOut {
            limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            holder,
        };
        // The guest runs on while a slow device is waited for. No vCPU waits for a device.
        self.gate.close().map_err(|GateError { inside, limit }| {
            timed_out(limit, format!("{inside} device accesses to guest memory"))
        })?;
        let since = Instant::now();
        self.vcpus.pause().map_err(|PauseError { missing, total, limit }| {
            self.gate.open();
            timed_out(limit, format!("{missing} of {total} vCPUs"))
        })?;
        Ok(since)
    }

    /// Lets them go on.
    pub(super) fn resume(&self) {
        self.vcpus.resume();
        self.gate.open();
    }

    /// What every vCPU was doing; only while this is paused.
    pub(super) fn snapshots(&self) -> Result<Vec<Vcpu>, KvmError> {
        self.vcpus.snapshots()
    }

    /// The guest's RAM.
    pub(super) fn memory(&self) -> &GuestMemory {
        self.vm.ram().memory()
    }

    /// Presses the guest's power button; `false` when the guest does not listen to it.
    pub(super) fn press_power_button(&self) -> bool {
        self.pm.press_power_button()
    }

    /// Exits of all vCPUs together, by kind.
    pub(super) fn exits(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        ExitKind::NAMES.iter().map(|&(kind, name)| {
            (name.to_owned(), self.vcpus.counters().iter().map(|counters| counters.get(kind)).sum())
        })
    }

    /// What the devices have counted, by device.
    pub(super) fn device_counters(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        self.attached.counters()
    }

    /// Watches pages while the guest runs.
    pub(super) fn arm(&self, arming: &Arming) -> Result<TrapReport, ControlError> {
        let failed = |error: KvmError| ControlError::Host { why: error.to_string() };
        let busiest =
            if arming.busiest > 0 { trapping::busiest(&self.vm).map_err(failed)? } else { Vec::new() };
        self.vcpus.watch(&arming.pages, &busiest, arming.busiest, arming.access)?;
        Ok(self.traps())
    }

    /// What is watched.
    pub(super) fn traps(&self) -> TrapReport {
        trapping::report(self.vcpus.traps(), &self.lost_pages)
    }

    /// Watches these pages no longer, or none at all without them.
    pub(super) fn disarm(&self, pages: Option<&[Gpa]>) -> Result<TrapReport, ControlError> {
        match pages {
            Some(pages) => self.vcpus.set_access(pages, None)?,
            None => self.vcpus.set_access(&self.vcpus.traps().pages(), None)?,
        }
        Ok(self.traps())
    }

    /// Ends the vCPUs for good and reads what the guest left behind.
    pub(super) fn stop(&self) -> Remains {
        self.vcpus.stop();
        self.gate.abandon();
        let mode: u16 = self.vm.ram().memory().read_obj(GuestAddress(REBOOT_MODE)).unwrap_or_default();
        Remains { after_panic: mode == WARM }
    }
}

fn connect_irq(vm: &GuestVm, event: &EventFd, irq: u8) -> Result<(), KvmError> {
    vm.fd().register_irqfd(event, u32::from(irq)).map_err(KvmError::of("KVM_IRQFD"))
}

/// The whole command line: ours, then the root disk, then the operator's, which wins where they disagree.
fn cmdline(spec: &MachineSpec) -> String {
    let mut cmdline = DEFAULT_CMDLINE.to_string();
    if let Some(root) = spec.disks.first() {
        cmdline.push_str(" root=/dev/nvme0n1 ");
        cmdline.push_str(if root.readonly { "ro" } else { "rw" });
    }
    if !spec.cmdline.is_empty() {
        cmdline.push(' ');
        cmdline.push_str(&spec.cmdline);
    }
    cmdline
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_memory_than_the_host_has_is_refused_with_both_numbers() {
        check_memory(4 << 30, 4 << 30).unwrap();
        let error = check_memory(8 << 30, 4 << 30).unwrap_err();
        assert!(error.is_refusal());
        let text = error.to_string();
        assert!(text.contains("--memory 8192 MiB") && text.contains("4096 MiB"), "{text}");
        assert!(host_memory() > 64 << 20);
    }
}
