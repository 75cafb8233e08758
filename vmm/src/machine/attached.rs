//! The PCI devices of one instance.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::MachineError;
use super::instance::Parts;
use crate::config::MachineSpec;
use crate::device::nvme::NvmeController;
use crate::device::pci::PciBus;
use crate::device::virtio::{self, NetDevice, RngDevice};
use crate::memory::{DeviceMemory, DmaGate};
use crate::sys::kvm::GuestVm;

/// Disks, network interfaces and the source of entropy, in the order of their PCI slots.
#[derive(Debug)]
pub(super) struct Attached {
    disks: Vec<Arc<NvmeController>>,
    nets: Vec<Arc<NetDevice>>,
    rng: Arc<RngDevice>,
}

impl Attached {
    /// Makes them and puts them on `pci`.
    pub(super) fn new(
        spec: &MachineSpec,
        parts: &Parts,
        vm: &Arc<GuestVm>,
        gate: &Arc<DmaGate>,
        pci: &PciBus,
    ) -> Result<Self, MachineError> {
        let memory = DeviceMemory::new(vm.ram().memory().clone(), Arc::clone(gate));
        let msi = || Arc::clone(vm) as _;
        let mut disks = Vec::new();
        for (number, disk) in parts.disks().iter().enumerate() {
            let queues = u16::from(spec.cpus.get());
            let serial = format!("lucos-disk-{number}");
            let disk = NvmeController::new(Arc::clone(disk), memory.clone(), msi(), queues, &serial)?;
            pci.add(Arc::clone(&disk) as _)?;
            disks.push(disk);
        }
        let mut nets = Vec::new();
        for (tap, mac) in parts.nets() {
            let device = virtio::net(tap.try_clone()?, *mac, memory.clone(), msi())?;
            pci.add(Arc::clone(&device) as _)?;
            nets.push(device);
        }
        let rng = virtio::rng(memory, msi())?;
        pci.add(Arc::clone(&rng) as _)?;
        Ok(Self { disks, nets, rng })
    }

    /// What each has counted, by name.
    pub(super) fn counters(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let mut all = BTreeMap::new();
        for (number, disk) in self.disks.iter().enumerate() {
            all.insert(format!("disk{number}"), by_name(&disk.counters()));
        }
        for (number, net) in self.nets.iter().enumerate() {
            all.insert(format!("net{number}"), by_name(&net.counters().snapshot()));
        }
        all.insert("rng".into(), by_name(&self.rng.counters().snapshot()));
        all
    }
}

/// The fields of a snapshot; they are all unsigned numbers.
fn by_name(snapshot: &impl Serialize) -> BTreeMap<String, u64> {
    let fields = serde_json::to_value(snapshot).unwrap_or_default();
    let fields = fields.as_object().into_iter().flatten();
    fields.filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect()
}
