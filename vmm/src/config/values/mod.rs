//! The parts of a machine's description: each parses one flag's value and one TOML value.

mod cpus;
mod disk;
mod memory;
mod net;
mod serial;
mod socket;
mod wire;
mod words;

pub use cpus::CpuCount;
pub use disk::DiskSpec;
pub use memory::MemorySize;
pub use net::{MacAddress, NetSpec};
pub use serial::SerialSpec;
pub(super) use socket::check_socket_path;
pub use socket::parse_socket_path;
pub use words::{CpuProfile, GuestPatches, LogLevel, Trapping};
