//! The virtual machine as KVM knows it, tied to the memory that it runs on.

use std::io;
use std::sync::Arc;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_msi, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::vcpu::VcpuRun;
use super::{HUGE_PAGE, View};
use crate::memory::GuestRam;

/// Three pages that KVM needs on Intel hosts without unrestricted guest (KVM api.rst 4.33), in the MMIO hole.
const TSS_PAGES: usize = 0xfffb_d000;
/// One page of identity mapping for the same hosts (KVM api.rst 4.45).
const IDENTITY_MAP_PAGE: u64 = 0xfffb_c000;
/// `KVM_CAP_MULTI_ADDRESS_SPACE` (include/uapi/linux/kvm.h).
const CAP_MULTI_ADDRESS_SPACE: libc::c_ulong = 118;
/// `KVM_CAP_X86_SMM` (include/uapi/linux/kvm.h).
const CAP_X86_SMM: libc::c_ulong = 117;
/// Bits 16 and up of a slot number name its address space (KVM api.rst 4.35).
const ADDRESS_SPACE_SHIFT: u32 = 16;

/// Why KVM would not make a virtual machine: which call, and what it said.
#[derive(Debug, thiserror::Error)]
#[error("KVM refused {call}: {source}")]
pub struct KvmError {
    /// The ioctl.
    pub call: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

impl KvmError {
    /// For `map_err` on a KVM call.
    pub fn of(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self { call, source: io::Error::from_raw_os_error(error.errno()) }
    }
}

/// A virtual machine and its RAM, laid out in every memslot address space that KVM has.
///
/// The RAM cannot be unmapped while KVM may still reach it: whoever holds a vCPU holds this.
#[derive(Debug)]
pub struct GuestVm {
    fd: VmFd,
    ram: GuestRam,
    address_spaces: u32,
    sync_regs: bool,
}

impl GuestVm {
    /// Creates a virtual machine with interrupt controllers, timer and `ram`.
    pub fn new(kvm: &Kvm, ram: GuestRam) -> Result<Arc<Self>, KvmError> {
        let fd = kvm.create_vm().map_err(KvmError::of("KVM_CREATE_VM"))?;
        fd.set_tss_address(TSS_PAGES).map_err(KvmError::of("KVM_SET_TSS_ADDR"))?;
        if fd.check_extension(Cap::SetIdentityMapAddr) {
            fd.set_identity_map_address(IDENTITY_MAP_PAGE)
                .map_err(KvmError::of("KVM_SET_IDENTITY_MAP_ADDR"))?;
        }
        fd.create_irq_chip().map_err(KvmError::of("KVM_CREATE_IRQCHIP"))?;
        // The speaker port is answered in the kernel: Linux reads it while it calibrates its clock.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
        fd.create_pit2(pit).map_err(KvmError::of("KVM_CREATE_PIT2"))?;
        let address_spaces =
            u32::try_from(fd.check_extension_raw(CAP_MULTI_ADDRESS_SPACE)).unwrap_or(0).max(1);
        let sync_regs = fd.check_extension(Cap::SyncRegs);
        let vm = Self { fd, ram, address_spaces, sync_regs };
        for (slot, region) in (0..).zip(vm.ram.regions()) {
            let start = vm_memory::GuestMemoryRegion::start_addr(region).0;
            vm.add_slot(slot, 0, start, region.protectable())?;
            if address_spaces > 1 {
                vm.add_slot(slot, 1, start, region.second())?;
            }
        }
        Ok(Arc::new(vm))
    }

    fn add_slot(&self, slot: u32, space: u32, start: u64, mapping: &View) -> Result<(), KvmError> {
        debug_assert!(mapping.host_address().is_multiple_of(HUGE_PAGE as u64));
        let region = kvm_userspace_memory_region {
            slot: slot | (space << ADDRESS_SPACE_SHIFT),
            flags: 0,
            guest_phys_addr: start,
            memory_size: mapping.len() as u64,
            userspace_addr: mapping.host_address(),
        };
        // SAFETY: the mapping is `len` bytes long and lives as long as `self.ram`, which outlives every vCPU
        // because each holds an `Arc` of `self`.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(KvmError::of("KVM_SET_USER_MEMORY_REGION"))
    }

    /// Creates vCPU `id`, which keeps this machine alive.
    pub fn create_vcpu(self: &Arc<Self>, id: u8) -> Result<VcpuRun, KvmError> {
        let fd = self.fd.create_vcpu(u64::from(id)).map_err(KvmError::of("KVM_CREATE_VCPU"))?;
        Ok(VcpuRun::new(fd, Arc::clone(self)))
    }

    /// The RAM.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The descriptor, for the calls that need no more than it.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Whether KVM emulates system management mode.
    pub fn has_system_management(&self) -> bool {
        self.fd.check_extension_raw(CAP_X86_SMM) > 0
    }

    /// Whether KVM can leave a vCPU's registers in shared memory when the vCPU leaves the guest.
    pub fn has_sync_regs(&self) -> bool {
        self.sync_regs
    }

    /// Whether the second view exists: a second memslot address space, backed by a mapping of its own.
    pub fn has_second_view(&self) -> bool {
        self.address_spaces > 1
    }
}

impl crate::device::pci::MsiSender for GuestVm {
    fn send(&self, address: u64, data: u32) {
        let [low, high] = [address & 0xffff_ffff, address >> 32].map(u64::to_le_bytes);
        let word = |half: [u8; 8]| u32::from_le_bytes([half[0], half[1], half[2], half[3]]);
        let msi = kvm_msi { address_lo: word(low), address_hi: word(high), data, ..kvm_msi::default() };
        // The guest chose address and data; an interrupt that nobody accepts is lost, as on a real bus.
        if let Err(error) = self.fd.signal_msi(msi) {
            tracing::debug!("MSI to {address:#x} with {data:#x}: {error}");
        }
    }
}
