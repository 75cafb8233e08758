//! The virtual machine as KVM knows it, tied to the memory that it runs on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_SET_GUEST_DEBUG2, KVM_CAP_X86_TRIPLE_FAULT_EVENT,
    KVM_CAP_X86_USER_SPACE_MSR, KVM_GUESTDBG_BLOCKIRQ, KVM_MEM_LOG_DIRTY_PAGES, KVM_MSR_EXIT_REASON_FILTER,
    KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_msi, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

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
        move |error| Self { call, source: error.into() }
    }
}

/// Which of KVM's memslot address spaces a machine's RAM is laid out in (KVM api.rst 4.35).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Views {
    /// The one that every vCPU uses.
    First,
    /// Also the one of a vCPU in system management mode, if KVM has it.
    ///
    /// Not for a guest that KVM runs on shadow pages, as it does all where there is no EPT or NPT, and guests of guests: many a kernel
    /// looks for them in one address space only, and comes to a `BUG` ("KVM: x86/mmu: Check write tracking in all address spaces",
    /// Linux commit 0f38453cdb2e).
    Both,
}

/// A virtual machine and its RAM, laid out in as many memslot address spaces as it is to have.
///
/// The RAM cannot be unmapped while KVM may still reach it: whoever holds a vCPU holds this.
#[derive(Debug)]
pub struct GuestVm {
    fd: VmFd,
    ram: GuestRam,
    second_view: bool,
    sync_regs: bool,
    leaves_unemulated: AtomicBool,
    traps: AtomicBool,
}

impl GuestVm {
    /// Creates a virtual machine with interrupt controllers, timer and `ram`, which each of `views` shows.
    pub fn new(kvm: &Kvm, ram: GuestRam, views: Views) -> Result<Arc<Self>, KvmError> {
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
        // Where KVM cannot, no shutdown is shown as being on its way (KVM api.rst 4.31).
        let shutdowns = kvm_enable_cap {
            cap: KVM_CAP_X86_TRIPLE_FAULT_EVENT,
            args: [1, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        let _ = fd.enable_cap(&shutdowns);
        let second_view = views == Views::Both && fd.check_extension_raw(CAP_MULTI_ADDRESS_SPACE) > 1;
        let sync_regs = fd.check_extension(Cap::SyncRegs);
        let (leaves_unemulated, traps) = <(AtomicBool, AtomicBool)>::default();
        let vm = Self { fd, ram, second_view, sync_regs, leaves_unemulated, traps };
        for (slot, region) in (0..).zip(vm.ram.regions()) {
            let start = vm_memory::GuestMemoryRegion::start_addr(region).0;
            vm.set_slot(slot, 0, start, region.protectable(), 0)?;
            if second_view {
                vm.set_slot(slot, 1, start, region.second(), 0)?;
            }
        }
        Ok(Arc::new(vm))
    }

    fn set_slot(
        &self,
        slot: u32,
        space: u32,
        start: u64,
        mapping: &View,
        flags: u32,
    ) -> Result<(), KvmError> {
        debug_assert!(mapping.host_address().is_multiple_of(HUGE_PAGE as u64));
        let region = kvm_userspace_memory_region {
            slot: slot | (space << ADDRESS_SPACE_SHIFT),
            flags,
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

    /// Whether a vCPU leaves the guest at an instruction that KVM cannot emulate, without any exception.
    pub fn leaves_unemulated(&self) -> bool {
        self.leaves_unemulated.load(Ordering::Relaxed)
    }

    /// Makes it so, where KVM can. Otherwise KVM raises an exception before it says so, or says nothing (KVM api.rst 7.29).
    pub fn leave_unemulated(&self) {
        let leave = kvm_enable_cap {
            cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
            args: [1, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        self.leaves_unemulated.store(self.fd.enable_cap(&leave).is_ok(), Ordering::Relaxed);
    }

    /// Whether guest memory is protected anywhere, so that a vCPU's whole state is asked for at each of its exits.
    pub fn traps(&self) -> bool {
        self.traps.load(Ordering::Relaxed)
    }

    /// Says so; a vCPU that is in the guest already still leaves without its state.
    pub fn set_traps(&self, traps: bool) {
        self.traps.store(traps, Ordering::Relaxed);
    }

    /// Whether KVM can keep interrupts from a vCPU while it carries out one instruction (`KVM_CAP_SET_GUEST_DEBUG2`, KVM api.rst
    /// 7.28).
    pub fn can_block_interrupts(&self) -> bool {
        let flags = self.fd.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into());
        u32::try_from(flags).is_ok_and(|flags| flags & KVM_GUESTDBG_BLOCKIRQ != 0)
    }

    /// Makes writes of the guest to these model-specific registers, 16 at most, leave to this VMM (KVM api.rst 4.97, 7.21).
    pub fn watch_msrs(&self, indices: &[u32]) -> Result<(), KvmError> {
        let enable = kvm_enable_cap {
            cap: KVM_CAP_X86_USER_SPACE_MSR,
            args: [u64::from(KVM_MSR_EXIT_REASON_FILTER), 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        self.fd.enable_cap(&enable).map_err(KvmError::of("KVM_ENABLE_CAP, user space MSRs"))?;
        // Each has a range of its own, with one bit that says "not allowed". KVM reads whole words.
        let bitmap = [0; 8];
        let range =
            |&base| MsrFilterRange { flags: MsrFilterRangeFlags::WRITE, base, msr_count: 1, bitmap: &bitmap };
        let ranges: Vec<MsrFilterRange<'_>> = indices.iter().map(range).collect();
        self.fd
            .set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
            .map_err(KvmError::of("KVM_X86_SET_MSR_FILTER"))
    }

    /// Makes KVM note which pages the guest writes to, or no longer (KVM api.rst 4.35, `KVM_MEM_LOG_DIRTY_PAGES`).
    pub fn log_writes(&self, on: bool) -> Result<(), KvmError> {
        let flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        for (slot, region) in (0..).zip(self.ram.regions()) {
            let start = vm_memory::GuestMemoryRegion::start_addr(region).0;
            self.set_slot(slot, 0, start, region.protectable(), flags)?;
        }
        Ok(())
    }

    /// The pages, by their number in the range of RAM `slot` with `len` bytes, that were written to since this was last asked (KVM
    /// api.rst 4.8).
    pub fn written_pages(&self, slot: u32, len: usize) -> Result<Vec<usize>, KvmError> {
        let words = self.fd.get_dirty_log(slot, len).map_err(KvmError::of("KVM_GET_DIRTY_LOG"))?;
        let of_word = |(index, word): (usize, u64)| {
            (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| index * 64 + bit)
        };
        Ok(words.into_iter().enumerate().filter(|(_, word)| *word != 0).flat_map(of_word).collect())
    }

    /// Whether the second view exists: a second memslot address space, backed by a mapping of its own.
    pub fn has_second_view(&self) -> bool {
        self.second_view
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
