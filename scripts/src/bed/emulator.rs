//! A QEMU for the AMD host, in a folder of its own.
//!
//! A machine's own QEMU may be any, and those of Debian's releases are no good here. 7.2 never lets KVM see a guest's XSETBV
//! (the intercept came with 8.2). In 10.0 too, VMRUN and #VMEXIT change the processor's pending interrupts without a lock
//! or an atomic operation (`target/i386/tcg/system/svm_helper.c`), and so now and then undo what a timer has just set: the
//! host halts with an interrupt pending in its APIC, and stands still until another one comes. This QEMU is the same on
//! every machine, and nothing of it is installed: it runs with its own C library, by that one's loader (ld.so(8)).

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::archive::{self, Archive, EMULATOR_SUITE};
use crate::cache::{Cache, Inputs};
use crate::progress::Step;

const PACKAGE: &str = "qemu-system-x86";
const PROGRAM: &str = "usr/bin/qemu-system-x86_64";
/// The loader and the libraries that [`PROGRAM`] was linked for.
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Where its firmware is.
const DATA: [&str; 3] = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];

/// The unpacked packages.
#[derive(Debug)]
pub(super) struct Emulator {
    root: PathBuf,
}

impl Emulator {
    /// Fetches it if it is not in the cache.
    pub(super) fn fetch(cache: &Cache) -> Result<Self> {
        let inputs = Inputs::new()
            .with("suite", EMULATOR_SUITE)
            .with("package", PACKAGE)
            .with("code", include_str!("emulator.rs"));
        let root = cache.entry("emulator/qemu", &inputs, |folder| {
            let step =
                Step::start(format!("fetching the emulator of the AMD host, {PACKAGE} of {EMULATOR_SUITE}"));
            let download = tempfile::tempdir_in(cache.root().join("tmp"))
                .context("cannot make a folder to download to")?;
            let archive = Archive::of_suite(cache, EMULATOR_SUITE)?;
            for package in archive.fetch_whole(PACKAGE, download.path())? {
                archive::unpack(&package, folder)?;
            }
            step.done();
            Ok(())
        })?;
        Ok(Self { root })
    }

    /// The program to start, and its first arguments.
    pub(super) fn command(&self) -> (PathBuf, Vec<OsString>) {
        let at = |part: &str| self.root.join(part).into_os_string();
        let mut arguments = vec!["--library-path".into(), at(LIBRARIES), at(PROGRAM)];
        arguments.extend(DATA.iter().flat_map(|folder| ["-L".into(), at(folder)]));
        (self.root.join(LOADER), arguments)
    }
}
