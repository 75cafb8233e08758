//! Trapped accesses: exact for every kind of instruction, with several vCPUs, beside devices, events and a guest that fights back.
//!
//! Each in the second view, and with all other vCPUs held, unless it makes no difference or is of the second view alone. On an
//! emulated host the vCPUs share one processor or two: what is shown of their races is what their interleaving there shows.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod classes;
mod endings;
mod entries;
mod escapes;
mod exceptions;
mod fuzz;
mod heard;
mod hostile;
mod interrupts;
mod portions;
mod proven;
mod refused;
mod shadows;
mod sharing;
#[path = "../tiny/mod.rs"]
mod tiny;
mod unemulated;
mod untrapped;

use std::time::Duration;

use lucos_vmm::config::Trapping;

/// Both ways to carry out what is trapped.
const WAYS: [Trapping; 2] = [Trapping::SecondView, Trapping::HoldAll];
/// How long anything here may take on an emulated host.
const PATIENCE: Duration = Duration::from_mins(3);

/// An address of a program's data as a 32-bit operand.
fn low(address: u64) -> i32 {
    i32::try_from(address).unwrap()
}
