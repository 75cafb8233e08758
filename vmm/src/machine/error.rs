//! How a machine ends.

use std::io;

use crate::boot::BootError;
use crate::console::AgentError;
use crate::control::ServerError;
use crate::device::bus::BusError;
use crate::device::nvme::{DiskError, NvmeError};
use crate::device::pci::PciBusError;
use crate::device::virtio::{TapError, VirtioError};
use crate::memory::RamError;
use crate::sys::kvm::KvmError;
use crate::update::KeyFileError;

/// The end of a machine that ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestExit {
    /// The guest switched itself off.
    PowerOff,
    /// The guest's kernel panicked and restarted.
    Panic,
    /// A triple fault reset the processor.
    TripleFault,
    /// The operator stopped the machine.
    Stopped,
    /// A signal told the VMM to stop.
    Signal(i32),
}

impl std::fmt::Display for GuestExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => write!(f, "the guest switched itself off"),
            Self::Panic => write!(f, "the guest's kernel panicked; its console has the reason"),
            Self::TripleFault => write!(f, "the guest's CPU shut down after a triple fault"),
            Self::Stopped => write!(f, "the machine was stopped"),
            Self::Signal(signal) => write!(f, "signal {signal} stopped the machine"),
        }
    }
}

/// Why a machine could not run, or not run on.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Kernel, initramfs, command line or memory size do not work together.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Guest memory could not be made.
    #[error("{0}; lower --memory or free memory on the host")]
    Memory(#[from] RamError),
    /// More memory than the host has.
    #[error("--memory {wanted} MiB is more than the {available} MiB that this host has; lower it")]
    MoreMemoryThanHost {
        /// MiB asked for.
        wanted: u64,
        /// MiB in the host.
        available: u64,
    },
    /// More vCPUs than KVM takes.
    #[error("--cpus {wanted} is more than the {max} that KVM supports on this host; lower it")]
    TooManyCpus {
        /// vCPUs asked for.
        wanted: u8,
        /// KVM's maximum.
        max: usize,
    },
    /// KVM is not there or not usable.
    #[error("cannot open /dev/kvm: {source}")]
    NoKvm {
        /// What the host said.
        source: io::Error,
    },
    /// A KVM call failed.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A device could not be placed.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A disk image that cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A disk controller could not be made.
    #[error(transparent)]
    Nvme(#[from] NvmeError),
    /// A tap that cannot be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A virtio device could not be made.
    #[error(transparent)]
    Virtio(#[from] VirtioError),
    /// More devices than the PCI bus has places.
    #[error("{0}; use fewer --disk and --net")]
    Pci(#[from] PciBusError),
    /// The control API.
    #[error(transparent)]
    ApiServer(#[from] ServerError),
    /// A key for patches.
    #[error(transparent)]
    PatchKey(#[from] KeyFileError),
    /// The agent's socket.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Something of the host.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: String,
        /// What the host said.
        source: io::Error,
    },
    /// A vCPU entered system management mode.
    #[error(
        "vCPU {vcpu} entered system management mode (SMM): the guest sent itself an SMI, and there is no firmware \
         to serve it; run a guest that does not"
    )]
    SystemManagement {
        /// Its number.
        vcpu: u8,
    },
    /// A vCPU cannot go on.
    #[error("the guest cannot go on: {0}")]
    GuestStuck(String),
}

impl MachineError {
    /// Whether the operator's configuration is to blame, and not the host.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Boot(_)
            | Self::MoreMemoryThanHost { .. }
            | Self::TooManyCpus { .. }
            | Self::Disk(_)
            | Self::Tap(_)
            | Self::Pci(_)
            | Self::ApiServer(_)
            | Self::PatchKey(_)
            | Self::Agent(_) => true,
            Self::Memory(_)
            | Self::NoKvm { .. }
            | Self::Kvm(_)
            | Self::Bus(_)
            | Self::Nvme(_)
            | Self::Virtio(_)
            | Self::Host { .. }
            | Self::SystemManagement { .. }
            | Self::GuestStuck(_) => false,
        }
    }

    /// For `map_err` on a host call.
    pub fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Host { what, source }
    }
}
