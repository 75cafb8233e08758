//! The lucos virtual machine monitor: boots an unmodified Linux on KVM, and patches its kernel
//! while it runs.
//!
//! ARCHITECTURE.md at the top of the repository is the map; this page only lists the rooms.
//!
//! | module | noun |
//! |---|---|
//! | [`cli`] | the command line of `lucos-vmm` and its exit codes |
//! | [`client`] | `lucos`, the client of the control API |
//! | [`config`] | the machine to run: flags and TOML to one validated `MachineSpec` |
//! | [`control`] | the control API: HTTP and JSON on a Unix socket |
//! | [`machine`] | a machine from its description to its end |
//! | [`boot`] | kernel images, and what a boot loader leaves in memory |
//! | [`vcpu`] | vCPU threads, their exits and pauses, the guest's processor |
//! | [`update`] | patches of the guest's kernel, from a file to code that runs |
//! | [`inspect`] | the guest's kernel, looked into from outside |
//! | [`console`] | the host's ends of the serial ports |
//! | [`socket`] | Unix sockets: made for their owner, replaced when nobody listens |
//! | [`doctor`] | what this host can run, and what to do about what is missing |
//! | [`agent`] | the way to the agent in the guest: hypercalls, requests, patches from inside |
//! | [`sys`] | every `unsafe` block: mappings and the ioctls the libraries lack |
//! | [`trap`] | watched pages of the guest, and every access to them |
//! | [`memory`] | guest RAM (three mappings of one memfd) and the gate that devices write through |
//! | [`device`] | what Linux needs to boot: buses, serial ports, PCI, NVMe, virtio, ACPI registers |

pub mod agent;
pub mod boot;
pub mod cli;
pub mod client;
pub mod config;
pub mod console;
pub mod control;
pub mod device;
pub mod doctor;
pub mod inspect;
mod log_limit;
pub mod machine;
pub mod memory;
pub mod socket;
pub mod sys;
pub mod trap;
pub mod update;
pub mod vcpu;
