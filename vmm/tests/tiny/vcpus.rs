//! A program on the library's vCPU threads, with a port whose every access is looked at.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kvm_ioctls::Kvm;
use lucos_vmm::agent::{AgentEvents, AgentLink, HypercallPort};
use lucos_vmm::boot::{self, BootSource, KernelImage};
use lucos_vmm::config::{CpuProfile, Trapping};
use lucos_vmm::device::bus::{Bus, BusDevice};
use lucos_vmm::device::pci::PciBus;
use lucos_vmm::memory::GuestRam;
use lucos_vmm::sys::kick::install_kick_handler;
use lucos_vmm::sys::kvm::{GuestVm, Views};
use lucos_vmm::trap::Proof;
use lucos_vmm::vcpu::{CpuModel, GuestStop, Met, PortsAndMemory, Tombstones, VcpuThreads};
use vm_memory::{Bytes, GuestAddress};

use super::{Program, RESULT_PORT};

/// First port of the devices that count; each vCPU has its own, 8 ports apart.
const FIRST: u64 = 0x900;

/// A port of one vCPU: writes have to bring 1, 2, 3, …; reads give 1, 2, 3, ….
#[derive(Debug, Default)]
pub(crate) struct Port {
    pub(crate) written: AtomicU64,
    pub(crate) read: AtomicU64,
    pub(crate) wrong: Mutex<Vec<String>>,
}

impl BusDevice for Port {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        let next = self.read.fetch_add(1, Ordering::SeqCst) + 1;
        let len = data.len();
        data.copy_from_slice(&next.to_le_bytes()[..len]);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        let (value, next) = (u64::from_le_bytes(bytes), self.written.fetch_add(1, Ordering::SeqCst) + 1);
        let mut wrong = self.wrong.lock().unwrap();
        if value != next && wrong.len() < 10 {
            wrong.push(format!("write {next} brought {value}"));
        }
    }
}

/// Where a program says that something is not as it should be.
#[derive(Debug, Default)]
struct Results(Mutex<Vec<u32>>);

impl BusDevice for Results {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        bytes[..data.len()].copy_from_slice(data);
        self.0.lock().unwrap().push(u32::from_le_bytes(bytes));
    }
}

/// Counts how often the link to the agent calls.
#[derive(Debug, Default)]
pub(crate) struct Changes(AtomicU64);

impl Changes {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl AgentEvents for Changes {
    fn changed(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// vCPUs that run a program.
#[derive(Debug)]
pub(crate) struct Vcpus {
    pub(crate) threads: VcpuThreads,
    pub(crate) vm: Arc<GuestVm>,
    pub(crate) ports: Vec<Arc<Port>>,
    pub(crate) link: Arc<AgentLink>,
    pub(crate) changes: Arc<Changes>,
    pub(crate) tombstones: Arc<Tombstones>,
    met: Arc<Mutex<Vec<Met>>>,
    results: Arc<Results>,
    stops: Arc<Mutex<Vec<(u8, GuestStop)>>>,
}

impl Vcpus {
    pub(crate) fn start(program: &Program, cpus: u8) -> Self {
        Self::start_with(program, cpus, &[])
    }

    /// With more devices: first port, number of ports, device.
    pub(crate) fn start_with(
        program: &Program,
        cpus: u8,
        devices: &[(u64, u64, Arc<dyn BusDevice>)],
    ) -> Self {
        Self::start_as(program, cpus, devices, Trapping::Best)
    }

    /// With a way to carry out what is trapped.
    pub(crate) fn start_as(
        program: &Program,
        cpus: u8,
        devices: &[(u64, u64, Arc<dyn BusDevice>)],
        trapping: Trapping,
    ) -> Self {
        super::need_kvm();
        install_kick_handler().unwrap();
        let kvm = Kvm::new().unwrap();
        let means = Proof::of(&kvm, trapping).means();
        let views = means.as_ref().map_or(Views::First, |means| means.views());
        let vm = GuestVm::new(&kvm, GuestRam::new(64 << 20).unwrap(), views).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &program.vmlinux).unwrap();
        let kernel = KernelImage::open(file.path()).unwrap();
        let source = BootSource { kernel: &kernel, initrd: None, cmdline: "", cpus };
        let entry = boot::load(vm.ram(), &source).unwrap();
        let changes = Arc::new(Changes::default());
        let link = Arc::new(AgentLink::new(Arc::clone(&changes) as _));
        let hypercalls = HypercallPort::new(vm.ram().memory().clone(), Arc::clone(&link));
        let met: Arc<Mutex<Vec<Met>>> = Arc::default();
        let told = Arc::clone(&met);
        let tombstones = Arc::new(Tombstones::new(move |at| told.lock().unwrap().push(at)));
        let bus = PortsAndMemory {
            ports: Bus::new("I/O port"),
            pci: Arc::new(PciBus::new()),
            hypercalls,
            tombstones: Arc::clone(&tombstones),
            stubs: Arc::default(),
        };
        let ports: Vec<Arc<Port>> = (0..cpus).map(|_| Arc::default()).collect();
        for (id, port) in (0..).zip(&ports) {
            bus.ports.insert(FIRST + id * 8, 8, Arc::clone(port) as _).unwrap();
        }
        for (start, len, device) in devices {
            bus.ports.insert(*start, *len, Arc::clone(device)).unwrap();
        }
        let results = Arc::new(Results::default());
        bus.ports.insert(u64::from(RESULT_PORT), 4, Arc::clone(&results) as _).unwrap();
        let model = CpuModel::new(&kvm, CpuProfile::Stock, cpus).unwrap();
        let stops = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&stops);
        let on_stop = move |id, stop| heard.lock().unwrap().push((id, stop));
        let threads = VcpuThreads::start(&vm, &model, cpus, entry, Arc::new(bus), means, on_stop).unwrap();
        Self { threads, vm, ports, link, changes, tombstones, met, results, stops }
    }

    /// Who was told to have come to a tombstone.
    pub(crate) fn met(&self) -> Vec<Met> {
        self.met.lock().unwrap().clone()
    }

    pub(crate) fn word(&self, address: u64) -> u64 {
        self.vm.ram().memory().read_obj(GuestAddress(address)).unwrap()
    }

    pub(crate) fn set_word(&self, address: u64, value: u64) {
        self.vm.ram().memory().write_obj(value, GuestAddress(address)).unwrap();
    }

    /// What the vCPUs have done so far: reads, writes and `counters` words of memory for each.
    pub(crate) fn progress(&self, counters: u64) -> Vec<(u64, u64, u64)> {
        (0..)
            .zip(&self.ports)
            .map(|(id, port)| {
                let io = (port.read.load(Ordering::SeqCst), port.written.load(Ordering::SeqCst));
                (io.0, io.1, self.word(counters + id * 64))
            })
            .collect()
    }

    /// Who could not run on.
    pub(crate) fn stops(&self) -> Vec<(u8, GuestStop)> {
        self.stops.lock().unwrap().clone()
    }

    /// Fails if any of them found, or was found, something wrong.
    pub(crate) fn check(&self) {
        for port in &self.ports {
            let wrong = port.wrong.lock().unwrap();
            assert!(wrong.is_empty(), "{wrong:?}");
        }
        let results = self.results.0.lock().unwrap();
        assert!(results.is_empty(), "the guest found: {results:x?}");
        let stops = self.stops.lock().unwrap();
        assert!(stops.is_empty(), "{stops:?}");
    }
}
