//! The running kernel, as the image says it must be and the guest's memory says it is.

pub mod bpf;
pub mod generation;
pub mod hooks;
pub(crate) mod layout;
pub mod list;
pub mod livepatches;
pub mod locate;
pub mod lockdown;
pub mod model;
pub mod module_sites;
pub mod modules;
pub mod paging;
pub mod probe_owners;
pub mod probes;
pub mod running;
pub mod sections;
pub mod space;
mod text;
pub mod text_locks;
pub mod trampolines;
mod translations;
