//! Guests of a few instructions, and the two ways to run them: as a user does, with `lucos-vmm`, and on the
//! library's vCPU threads alone.
//!
//! They need a KVM that runs guests: `cargo xtask kvm-host -- …` makes one. Where there is none they fail.
#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod elf;
mod machine;
mod program;
mod real_mode;
mod vcpus;

pub(crate) use machine::{Ending, Machine, Setup};
pub(crate) use program::*;
pub(crate) use real_mode::real_mode;
pub(crate) use vcpus::Vcpus;

use std::time::{Duration, Instant};

/// Fails with a clear text unless guests can run here.
pub(crate) fn need_kvm() {
    let kvm = kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm().map(drop));
    if let Err(error) = kvm {
        panic!(
            "this test runs guests and /dev/kvm is not usable here ({error}); run it on a KVM host: cargo xtask \
             kvm-host -- PROGRAM"
        );
    }
}

/// A seed for one run, printed so that a failure can be repeated with `LUCOS_SEED`.
pub(crate) fn seed(test: &str) -> u64 {
    let given = std::env::var("LUCOS_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    });
    eprintln!("{test}: LUCOS_SEED={seed}");
    seed
}

/// Looks again and again until `done`, and fails after `limit`.
pub(crate) fn wait_until(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
