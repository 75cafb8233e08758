//! Guest memory: one memfd, mapped three times, and the gate that devices write through.
//!
//! *P* backs KVM's memory slots of address space 0; its pages are protected one by one to trap what the guest does to them.
//! *V* backs address space 1, the second view, in which one vCPU carries out what was trapped while all others run on in *P*.
//! *W* is what the VMM and its devices read and write. All start at a multiple of 2 MiB, so that they can be mapped by huge pages.

mod gate;
mod huge;
mod layout;
mod marks;
mod ram;

pub use gate::{DeviceMemory, DmaAccess, DmaGate, GateError};
pub(crate) use huge::collapse_used;
pub use huge::{HugePages, collapse_range};
pub use layout::{MMIO_HOLE, MemoryLayout, RamRange};
pub use marks::{Marks, MarksFrom};
pub use ram::{GuestMemory, GuestRam, GuestSlice, RamError, RamRegion};
