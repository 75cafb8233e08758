//! Trapped accesses: pages of the guest are watched, and whoever watches hears of each access, in the one order in which they take
//! effect.
//!
//! A watched page is protected in *P*, on which the guest runs (`watching`). A vCPU that does what the protection forbids leaves
//! `KVM_RUN` with `EFAULT`, in front of its instruction or in the middle of delivering an event (`traps`). It is looked at what that
//! will access (`look`, from `decode`, `space` and `frame`). A plain or string store is carried out here, on *W* (`in_place`).
//! Anything else the vCPU carries out itself, alone (`stepping`, `trip`), where the page is open to it and to nobody else (`ground`): in the
//! second view, *V*, while all others run on; or with all others held (`doors`). Then what it has done is told (`finish`, `armed`).
//!
//! On which ground a step ends as it should on this host is shown beforehand, on a tiny guest (`proof`).
//!
//! Three more write to memory: KVM's emulator, whose access leaves as one to a device; devices, whose writes are marked
//! (`memory::Marks`); and KVM itself, whose pages are known (`hypervisor`) and never watched.

mod alarm;
mod armed;
mod decode;
mod doors;
mod finish;
mod frame;
mod ground;
mod handlers;
mod hypervisor;
mod in_place;
mod look;
mod order;
mod proof;
mod quiet;
mod ram;
mod space;
mod stepping;
mod tally;
mod traps;
mod trip;
mod watching;

pub use proof::{Means, Proof};
pub use tally::Tally;
pub use traps::{After, Traps};
pub use watching::MOST_PAGES;
