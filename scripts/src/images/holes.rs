//! What shows holes of a kernel from inside (`scripts/guest/holes`), with the kernel's own modules that it needs.

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{modules, program};
use crate::cache::{Cache, Inputs};
use crate::cpio;
use crate::kernels::Kernel;
use crate::packages::{self, Group};
use crate::progress::Step;

const PROGRAM: &str = "holes";
pub(super) const SOURCES: [(&str, &str); 9] = [
    ("holes.h", include_str!("../../guest/holes/holes.h")),
    ("holes.c", include_str!("../../guest/holes/holes.c")),
    ("bpf.c", include_str!("../../guest/holes/bpf.c")),
    ("io_uring.c", include_str!("../../guest/holes/io_uring.c")),
    ("ipc.c", include_str!("../../guest/holes/ipc.c")),
    ("iso.c", include_str!("../../guest/holes/iso.c")),
    ("multiport.c", include_str!("../../guest/holes/multiport.c")),
    ("nexthop.c", include_str!("../../guest/holes/nexthop.c")),
    ("time.c", include_str!("../../guest/holes/time.c")),
];
/// What the program has loaded, by `modprobe`. Other modules come with them.
const MODULES: [&str; 5] = ["ip_tables", "iptable_filter", "isofs", "loop", "xt_multiport"];

/// An archive with all of it. The kernel unpacks archives that are one behind the other
/// (`init/initramfs.c`), so it is put behind that of a guest.
pub(super) fn initramfs(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let inputs = Inputs::new().with("kernel", &kernel.version).with("code", include_str!("holes.rs"));
    let inputs = SOURCES.iter().fold(inputs, |inputs, (name, text)| inputs.with(name, text));
    let release = &kernel.release;
    let place = cache.entry(&format!("images/holes/{release}"), &inputs, |folder| {
        packages::ensure(&[Group::Images, Group::Modules])?;
        let step = Step::start(format!("building what shows the holes of {release}"));
        let scratch =
            tempfile::tempdir_in(cache.root().join("tmp")).context("cannot make a folder to build in")?;
        let program = program::build(scratch.path(), PROGRAM, &SOURCES)?;
        let tree = scratch.path().join("tree");
        install(kernel, &tree)?;
        let mut archive = cpio::Archive::new(BufWriter::new(File::create(folder.join("holes.cpio"))?));
        archive.tree(&tree)?;
        archive.file(&format!("bin/{PROGRAM}"), 0o755, &fs::read(program)?)?;
        archive.finish()?;
        step.done();
        Ok(())
    })?;
    Ok(place.join("holes.cpio"))
}

/// Puts the modules where `modprobe` looks for them.
fn install(kernel: &Kernel, tree: &Path) -> Result<()> {
    modules::pick(kernel, &MODULES, tree)?;
    symlink("usr/lib", tree.join("lib")).context("cannot link to the modules")
}
