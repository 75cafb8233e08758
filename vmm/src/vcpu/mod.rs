//! Virtual processors: one thread each, their states, and how all of them are stopped at once.

mod caller;
mod cpuid;
mod exit;
mod msr;
mod pause;
mod regs;
mod serving;
mod snapshot;
mod thread;
mod tombstones;
mod unemulated;
mod watched;

pub use cpuid::CpuModel;
pub use exit::{ExitKind, VmExit};
pub use pause::{PauseError, Rendezvous};
pub(crate) use regs::set_boot_state;
pub use serving::PortsAndMemory;
pub use thread::{ExitCounters, GuestStop, VcpuThreads};
pub use tombstones::{Met, TOMBSTONE_PORT, Tombstones};
