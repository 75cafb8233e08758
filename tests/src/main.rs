//! System tests: the real `lucos-vmm` with stock guests, on a real KVM host.
//!
//! This program runs on the host itself (`cargo xtask kvm-host -- lucos-tests` puts it there) and finds what it
//! needs by the variables that the test bed sets: `LUCOS_BIN`, `LUCOS_IMAGES`, `LUCOS_SCRATCH` and `LUCOS_OUT`.
//!
//! | file | its noun |
//! |---|---|
//! | [`vm`] | a running `lucos-vmm`: start, expect, run, pause, end |
//! | [`embedded`] | a machine in this very process, for what only an embedder of the library can do |
//! | [`transcript`] | what a guest has said so far |
//! | [`pty`] | a terminal with nobody in front of it |
//! | [`images`] | the guest kernels and disks |
//! | [`initramfs`] | an initramfs that a test puts together |
//! | [`deadlines`] | how long things may take, and why |
//! | [`lup`] | patches that a test puts together |
//! | [`traps`] | what is said of watched pages |
//! | [`kernel_log`] | what a guest's kernel must not say |
//! | [`harness`] | tiers, filters and the report |
//! | [`cases`] | the tests |
//!
//! A test that fails shows the end of the console of each guest it started; all consoles are left in `LUCOS_OUT`,
//! which `cargo xtask kvm-host --out FOLDER` brings out of the host.

mod cases;
mod deadlines;
mod embedded;
mod harness;
mod images;
mod initramfs;
mod kernel_log;
mod lup;
mod process;
mod pty;
mod transcript;
mod traps;
mod vm;

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::main(&cases::all())
}
