//! What was seen of the host, before anybody judges it.

use crate::trap::Means;

/// The host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Version of the host's kernel, as `uname -r` has it.
    pub kernel_release: String,
    /// The processor.
    pub cpu: CpuFacts,
    /// The user who runs this, by name or number.
    pub user: String,
    /// Modules of the kernel that implement KVM: `kvm_intel`, `kvm_amd`, or a software one.
    pub kvm_modules: Vec<String>,
    /// Whether KVM uses the processor's second-level page tables; `None` if it does not say.
    pub nested_paging: Option<bool>,
    /// What /dev/kvm is and does.
    pub kvm: KvmState,
    /// How trapped accesses are carried out here, as shown on a tiny guest, or why they cannot be.
    pub traps: Result<Means, String>,
    /// Whether a page of a memfd became a huge page when asked to, and the host's answer if not.
    pub collapse: Result<(), String>,
    /// Whether /dev/net/tun can be opened, and the host's answer if not.
    pub tun: Result<(), String>,
    /// Memory that is free or can be freed, in bytes.
    pub memory_available: Option<u64>,
    /// How many mappings a process may have: `vm.max_map_count`.
    pub max_map_count: Option<u64>,
}

/// The processor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuFacts {
    /// Its model, as the kernel names it.
    pub model: String,
    /// What it has for virtual machines.
    pub virtualization: Option<Virtualization>,
    /// Whether this host is a virtual machine itself.
    pub is_guest: bool,
}

/// A processor's support for virtual machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Virtualization {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
}

/// What /dev/kvm is and does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmState {
    /// There is none.
    Missing,
    /// This user may not open it.
    Denied {
        /// The group that may, if the file is open to one.
        group: Option<String>,
    },
    /// It cannot be opened for another reason.
    Broken {
        /// The host's answer.
        error: String,
    },
    /// It is open.
    Open(KvmFacts),
}

/// KVM, opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmFacts {
    /// Version of its interface.
    pub api_version: i32,
    /// A VM that was made to ask it, or why it could not be.
    pub vm: Result<VmFacts, VmError>,
}

/// Why KVM made no VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmError {
    /// Whether something else holds the processor's virtualisation.
    pub busy: bool,
    /// The host's answer.
    pub error: String,
}

/// What a VM, made for the question, can do.
#[expect(clippy::struct_excessive_bools, reason = "each is one independent capability of KVM")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VmFacts {
    /// A vCPU could be made.
    pub vcpu: bool,
    /// Most vCPUs of one VM.
    pub max_vcpus: u64,
    /// Interrupt controllers in the kernel.
    pub irqchip: bool,
    /// A vCPU can be kept from entering the guest without a race.
    pub immediate_exit: bool,
    /// Interrupts and doorbells by file descriptor.
    pub eventfds: bool,
    /// The local APIC's timer can be set by time stamp.
    pub tsc_deadline: bool,
    /// Registers are exchanged without system calls.
    pub sync_regs: bool,
    /// Address spaces of memory slots: the second one is the second view.
    pub address_spaces: u64,
    /// System management mode, whose flag selects the second view.
    pub smm: bool,
    /// A vCPU can take single steps.
    pub single_step: bool,
    /// ... with interrupts held back meanwhile.
    pub step_without_interrupts: bool,
}
