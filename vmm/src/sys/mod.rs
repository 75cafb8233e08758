//! The one home of `unsafe`: system calls that the libraries do not wrap.
//!
//! Everything else in the workspace is compiled with `unsafe_code` denied. A type in here keeps its safety
//! contract to itself, so that callers need none.
#![allow(unsafe_code, reason = "this module is where the workspace keeps its unsafe blocks")]

pub mod kick;
pub mod kvm;
mod mapping;
mod memfd;
mod nested_paging;
mod positioned;
mod tap;
pub mod vcpu;

pub use mapping::{HUGE_PAGE, Mapping, PAGE, Protection, Span, View};
pub use memfd::memfd;
pub use nested_paging::nested_paging;
pub use positioned::{read_at, write_at};
pub use tap::{TapFlags, attach_tap, interface_exists, set_tap_offloads, set_tap_vnet_header};
