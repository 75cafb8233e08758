//! The CPU that the guest sees.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use crate::config::CpuProfile;
use crate::sys::kvm::KvmError;

/// A bit of a CPUID output that the default profile hides, and why.
struct Hidden {
    leaf: u32,
    subleaf: u32,
    register: Register,
    bits: u32,
}

#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
}

/// KVM's paravirtual features (Documentation/virt/kvm/x86/cpuid.rst).
const KVM_FEATURES: u32 = 0x4000_0001;

/// What [`CpuProfile::Stock`] takes away from what KVM offers.
///
/// A live patch needs to know everybody who can run guest code or write guest memory, and be able to take a
/// vCPU one instruction further; each of these gets in the way of that.
const HIDDEN: [Hidden; 5] = [
    // VMX (Intel SDM vol. 3C, 24.6): a nested guest leaves no way to use the second view, and its stacks are
    // not the kernel's.
    Hidden { leaf: 1, subleaf: 0, register: Register::Ecx, bits: 1 << 5 },
    // SVM (AMD APM vol. 3, appendix E.4.2), for the same reason.
    Hidden { leaf: 0x8000_0001, subleaf: 0, register: Register::Ecx, bits: 1 << 2 },
    // FRED (Intel FRED specification 3.0, 2): other event frames than every unwinder here knows, and other
    // MSRs than the one that the kernel is found by.
    Hidden { leaf: 7, subleaf: 1, register: Register::Eax, bits: 1 << 17 },
    // Pages that KVM writes behind the VMM's back: async page fault (bits 4, 10, 14), PV EOI (bit 6); and PV
    // unhalt (bit 7), which hashes contended locks by address.
    Hidden {
        leaf: KVM_FEATURES,
        subleaf: 0,
        register: Register::Eax,
        bits: (1 << 4) | (1 << 10) | (1 << 14) | (1 << 6) | (1 << 7),
    },
    // SGX (Intel SDM vol. 3D, 34.7): enclave memory is no memory slot of ours.
    Hidden { leaf: 7, subleaf: 0, register: Register::Ebx, bits: 1 << 2 },
];

/// `KVM_CAP_ENFORCE_PV_FEATURE_CPUID` and `KVM_CAP_HYPERV_ENFORCE_CPUID` (KVM api.rst 8.27 and 8.29): KVM
/// refuses what CPUID hides. Without them, a guest that does not look at CPUID could still switch on an
/// asynchronous page fault or Hyper-V's pages through their MSRs.
const ENFORCING: [u32; 2] =
    [kvm_bindings::KVM_CAP_ENFORCE_PV_FEATURE_CPUID, kvm_bindings::KVM_CAP_HYPERV_ENFORCE_CPUID];
/// SVM features (AMD APM vol. 3, appendix E.4.9): all hidden with SVM itself.
const SVM_FEATURES: u32 = 0x8000_000a;
/// Leaf 1 ECX (Intel SDM vol. 2A, CPUID): TSC-deadline timer, and "there is a hypervisor".
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: EBX\[23:16\] holds the number of logical processors.
const MULTI_THREADING: u32 = 1 << 28;
/// Topology leaves (Intel SDM vol. 2A, CPUID leaf 0bh and 1fh): level types.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The CPU of one machine: what KVM supports on this host, as a profile shows it.
#[derive(Debug)]
pub struct CpuModel {
    profile: CpuProfile,
    /// The same for each vCPU but for the APIC ID.
    entries: Vec<kvm_cpuid_entry2>,
}

impl CpuModel {
    /// Asks KVM what it supports and shapes it for a guest of `cpus` processors.
    pub fn new(kvm: &Kvm, profile: CpuProfile, cpus: u8) -> Result<Self, KvmError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::of("KVM_GET_SUPPORTED_CPUID"))?;
        let mut entries = supported.as_slice().to_vec();
        // Older kernels leave the bit out of what they report although the timer is there (KVM api.rst 4.46).
        let tsc_deadline = if kvm.check_extension(Cap::TscDeadlineTimer) { TSC_DEADLINE } else { 0 };
        if profile == CpuProfile::Stock {
            hide(&mut entries);
        }
        set_topology(&mut entries, cpus);
        for entry in entries.iter_mut().filter(|entry| entry.function == 1) {
            entry.ecx |= HYPERVISOR | tsc_deadline;
        }
        Ok(Self { profile, entries })
    }

    /// Gives a vCPU with APIC ID `id` this CPU; before its MSRs are set and before it runs.
    pub(crate) fn apply(&self, vm: &VmFd, vcpu: &VcpuFd, id: u8) -> Result<(), KvmError> {
        let entries = for_vcpu(&self.entries, id)?;
        vcpu.set_cpuid2(&entries).map_err(KvmError::of("KVM_SET_CPUID2"))?;
        if self.profile == CpuProfile::Host {
            return Ok(());
        }
        for cap in ENFORCING {
            if vm.check_extension_raw(cap.into()) > 0 {
                let enable = kvm_enable_cap { cap, args: [1, 0, 0, 0], ..kvm_enable_cap::default() };
                vcpu.enable_cap(&enable).map_err(KvmError::of("KVM_ENABLE_CAP"))?;
            }
        }
        Ok(())
    }
}

fn hide(entries: &mut Vec<kvm_cpuid_entry2>) {
    entries.retain(|entry| entry.function != SVM_FEATURES);
    for hidden in &HIDDEN {
        for entry in entries.iter_mut().filter(|e| e.function == hidden.leaf && e.index == hidden.subleaf) {
            match hidden.register {
                Register::Eax => entry.eax &= !hidden.bits,
                Register::Ebx => entry.ebx &= !hidden.bits,
                Register::Ecx => entry.ecx &= !hidden.bits,
            }
        }
    }
}

/// One socket of `cpus` cores with one thread each.
fn set_topology(entries: &mut Vec<kvm_cpuid_entry2>, cpus: u8) {
    let count = u32::from(cpus);
    // Bits of an APIC ID that number the cores.
    let core_bits = count.next_power_of_two().trailing_zeros();
    let has = |leaf| entries.iter().any(|entry| entry.function == leaf);
    let extended: Vec<u32> = [0xb, 0x1f].into_iter().filter(|&leaf| has(leaf)).collect();
    entries.retain(|entry| !extended.contains(&entry.function));
    for leaf in extended {
        let levels = [(0, 1, LEVEL_THREAD), (core_bits, count, LEVEL_CORE), (0, 0, 0)];
        for (index, (shift, processors, level)) in (0..).zip(levels) {
            entries.push(kvm_cpuid_entry2 {
                function: leaf,
                index,
                flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: shift,
                ebx: processors,
                ecx: (level << 8) | index,
                ..kvm_cpuid_entry2::default()
            });
        }
    }
    for entry in entries.iter_mut() {
        match entry.function {
            1 => {
                entry.ebx = (entry.ebx & 0xff00_ffff) | (count << 16);
                entry.edx = if cpus > 1 { entry.edx | MULTI_THREADING } else { entry.edx & !MULTI_THREADING };
            }
            // Deterministic cache parameters: no thread shares an L1 or L2, every core shares the L3.
            4 if entry.eax & 0x1f != 0 => {
                let sharing = if (entry.eax >> 5) & 7 >= 3 { count } else { 1 };
                entry.eax = (entry.eax & 0x3fff) | ((sharing - 1) << 14) | ((count - 1).min(63) << 26);
            }
            // Number of cores and APIC ID bits (AMD APM vol. 3, appendix E.4.7).
            0x8000_0008 => entry.ecx = (core_bits << 12) | (count - 1),
            // Cache topology (AMD APM vol. 3, appendix E.4.15), as in leaf 4.
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let sharing = if (entry.eax >> 5) & 7 >= 3 { count } else { 1 };
                entry.eax = (entry.eax & 0x3fff) | ((sharing - 1) << 14);
            }
            _ => {}
        }
    }
}

/// The entries for the vCPU with APIC ID `id`.
fn for_vcpu(entries: &[kvm_cpuid_entry2], id: u8) -> Result<CpuId, KvmError> {
    let apic_id = u32::from(id);
    let mut own = entries.to_vec();
    for entry in &mut own {
        match entry.function {
            1 => entry.ebx = (entry.ebx & 0x00ff_ffff) | (apic_id << 24),
            0xb | 0x1f => entry.edx = apic_id,
            // Extended APIC ID, core ID, one thread per core, node 0 of 1 (AMD APM vol. 3, E.4.16).
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (apic_id, apic_id, 0),
            _ => {}
        }
    }
    CpuId::from_entries(&own).map_err(|error| KvmError {
        call: "KVM_SET_CPUID2",
        source: std::io::Error::other(format!("{} CPUID entries: {error:?}", own.len())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..kvm_cpuid_entry2::default()
        }
    }

    #[test]
    fn the_stock_profile_hides_what_gets_in_the_way() {
        let mut entries = vec![entry(1, 0), entry(7, 0), entry(7, 1), entry(KVM_FEATURES, 0)];
        entries.extend([entry(0x8000_0001, 0), entry(SVM_FEATURES, 0)]);
        hide(&mut entries);
        assert_eq!(entries[0].ecx, !(1 << 5));
        assert_eq!(entries[1].ebx, !(1 << 2));
        assert_eq!(entries[2].eax, !(1 << 17));
        assert_eq!(entries[3].eax & 0b100_0100_1101_0000, 0);
        assert_eq!(entries[3].eax & 1, 1, "kvmclock stays");
        assert_eq!(entries[4].ecx, !(1 << 2));
        assert_eq!(entries.len(), 5);
    }

    #[test]
    fn topology_has_one_core_for_each_vcpu() {
        let mut entries = vec![entry(1, 0), entry(0xb, 0), entry(0xb, 1), entry(0x8000_0008, 0)];
        set_topology(&mut entries, 3);
        let own = for_vcpu(&entries, 2).unwrap();
        let find =
            |leaf, index| *own.as_slice().iter().find(|e| e.function == leaf && e.index == index).unwrap();
        assert_eq!(find(1, 0).ebx >> 16, 0x0203);
        assert_eq!((find(0xb, 1).eax, find(0xb, 1).ebx, find(0xb, 1).edx), (2, 3, 2));
        assert_eq!(find(0xb, 2).ecx, 2);
        assert_eq!(find(0x8000_0008, 0).ecx, (2 << 12) | 2);
    }
}
