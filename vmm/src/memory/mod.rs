//! Guest memory: one memfd, mapped twice, and the gate that devices write through.
//!
//! *P* backs KVM's memory slots of address space 0; later its pages are write-protected one by one to trap
//! guest writes. *W* is always writable: it backs address space 1 (the second view) and is what the VMM and
//! its devices read and write. Both start at a multiple of 2 MiB, so that both can be mapped by huge pages.

mod gate;
mod huge;
mod layout;
mod ram;

pub use gate::{DeviceMemory, DmaAccess, DmaGate, GateError};
pub use huge::{HugePages, collapse_range};
pub use layout::{MMIO_HOLE, MemoryLayout, RamRange};
pub use ram::{GuestMemory, GuestRam, RamError, RamRegion};
