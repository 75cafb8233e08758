//! What puts tasks and processors of a guest into known places (`scripts/guest/plant`): a module, and programs that use BPF,
//! start other kernels, sleep, and load every processor; a module that does nothing, to be loaded; two with new versions of
//! functions; a livepatch of the guest's own; one with a probe; one that lies to whoever looks at the guest; and one that goes on
//! in the middle of a function.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::program;
use crate::cache::{Cache, Inputs};
use crate::command::{command, run};
use crate::cpio;
use crate::kernels::{Headers, Kernel};
use crate::packages::{self, Group};
use crate::progress::Step;

const SOURCES: [(&str, &str); 22] = [
    ("Kbuild", include_str!("../../guest/plant/Kbuild")),
    ("plant.h", include_str!("../../guest/plant/plant.h")),
    ("plant.c", include_str!("../../guest/plant/plant.c")),
    ("processor.c", include_str!("../../guest/plant/processor.c")),
    ("threads.c", include_str!("../../guest/plant/threads.c")),
    ("probes.c", include_str!("../../guest/plant/probes.c")),
    ("forge.c", include_str!("../../guest/plant/forge.c")),
    ("trial.c", include_str!("../../guest/plant/trial.c")),
    ("patch.c", include_str!("../../guest/plant/patch.c")),
    ("answer.c", include_str!("../../guest/plant/answer.c")),
    ("kept.c", include_str!("../../guest/plant/kept.c")),
    ("livepatch.c", include_str!("../../guest/plant/livepatch.c")),
    ("probe.c", include_str!("../../guest/plant/probe.c")),
    ("hostile.h", include_str!("../../guest/plant/hostile.h")),
    ("hostile.c", include_str!("../../guest/plant/hostile.c")),
    ("hostile_text.c", include_str!("../../guest/plant/hostile_text.c")),
    ("hostile_lists.c", include_str!("../../guest/plant/hostile_lists.c")),
    ("late.c", include_str!("../../guest/plant/late.c")),
    ("stale.c", include_str!("../../guest/plant/stale.c")),
    ("unwilling.c", include_str!("../../guest/plant/unwilling.c")),
    ("unpinned.c", include_str!("../../guest/plant/unpinned.c")),
    ("functions.S", include_str!("../../guest/plant/functions.S")),
];
const MODULES: [&str; 12] = [
    "lucos_plant.ko",
    "lucos_trial.ko",
    PATCH,
    "lucos_answer.ko",
    "lucos_kept.ko",
    "lucos_livepatch.ko",
    "lucos_probe.ko",
    "lucos_hostile.ko",
    "lucos_late.ko",
    "lucos_stale.ko",
    "lucos_unwilling.ko",
    "lucos_unpinned.ko",
];
const PATCH: &str = "lucos_patch.ko";
/// Programs, which are put where a guest's shell finds them.
const PROGRAMS: [(&str, &str); 6] = [
    ("bpf", include_str!("../../guest/plant/bpf.c")),
    ("kexec", include_str!("../../guest/plant/kexec.c")),
    ("caller", include_str!("../../guest/plant/caller.c")),
    ("pauser", include_str!("../../guest/plant/pauser.c")),
    ("sleeper", include_str!("../../guest/plant/sleeper.c")),
    ("workload", include_str!("../../guest/plant/workload.c")),
];

/// An archive with all of it. The kernel unpacks archives that are one behind the other
/// (`init/initramfs.c`), so it is put behind that of a guest.
pub(super) fn initramfs(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    Ok(place(cache, kernel)?.join("plant.cpio"))
}

/// The module with new versions of functions, by itself.
pub(super) fn patch_module(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    Ok(place(cache, kernel)?.join(PATCH))
}

fn place(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let inputs = Inputs::new().with("kernel", &kernel.version).with("code", include_str!("plant.rs"));
    let inputs = SOURCES.iter().chain(&PROGRAMS).fold(inputs, |inputs, (name, text)| inputs.with(name, text));
    let release = &kernel.release;
    cache.entry(&format!("images/plant/{release}"), &inputs, |folder| {
        packages::ensure(&[Group::Modules])?;
        let headers = Headers::of(cache, kernel)?;
        let step = Step::start(format!("building {} for {release}", MODULES.join(" and ")));
        let scratch =
            tempfile::tempdir_in(cache.root().join("tmp")).context("cannot make a folder to build in")?;
        build(&headers, scratch.path())?;
        let mut archive = cpio::Archive::new(BufWriter::new(File::create(folder.join("plant.cpio"))?));
        for module in MODULES {
            archive.file(module, 0o644, &fs::read(scratch.path().join(module))?)?;
        }
        for (name, source) in PROGRAMS {
            let program = program::build(scratch.path(), name, &[(&format!("{name}.c"), source)])?;
            archive.file(&format!("bin/{name}"), 0o755, &fs::read(program)?)?;
        }
        archive.finish()?;
        fs::copy(scratch.path().join(PATCH), folder.join(PATCH))?;
        step.done();
        Ok(())
    })
}

/// Builds the modules in `folder`; nobody in a guest reads their debug information, which is nearly all of them.
fn build(headers: &Headers, folder: &Path) -> Result<()> {
    for (name, text) in SOURCES {
        fs::write(folder.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    headers.make_modules(folder)?;
    for module in MODULES {
        run(command("strip").arg("--strip-debug").arg(folder.join(module)), &format!("strip {module}"))?;
    }
    Ok(())
}
