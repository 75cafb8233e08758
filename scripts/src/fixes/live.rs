//! Live patches of the fixes, made by `lucos-patch` for the kernel that holes are shown on.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::source::Source;
use super::stock::{self, Stock};
use super::{Fix, Patch};
use crate::cache::Cache;
use crate::command::run;
use crate::images;
use crate::kernels::{self, Kernel};
use crate::progress::{self, Step};

const NAME: &str = "fixes/live";

/// Makes all of them. `None` where Debian's archive has the kernel or its source no more; a note says which.
pub(super) fn all(cache: &Cache, patches: &[Patch]) -> Result<Option<Vec<(String, PathBuf)>>> {
    let Some(kernel) = kernels::find_if_offered(cache, &images::vulnerable_kernel())? else {
        return Ok(None);
    };
    let inputs = Stock::inputs(&kernel)?.with("code", include_str!("live.rs"));
    let inputs = patches.iter().try_fold(inputs, |inputs, patch| {
        let path = &patch.path;
        let diff = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        anyhow::Ok(inputs.with("fix", &patch.fix.text).with("diff", diff))
    })?;
    let place = cache.place(NAME, &inputs);
    if !cache.is_good(&place) {
        let package = &patches.first().context("the catalogue is empty")?.fix.source.package;
        let Some(source) = Source::find(cache, package, &kernel.version)? else {
            progress::note(format!(
                "Debian's archive has no {package} of version {} any more",
                kernel.version
            ));
            return Ok(None);
        };
        cache.entry(NAME, &inputs, |folder| {
            let step = Step::start(format!("making {} live patches for {}", patches.len(), kernel.release));
            let stock = Stock::prepare(cache, kernel, &source)?;
            for patch in patches {
                make(&stock, patch, &folder.join(file_name(&patch.fix)))?;
            }
            step.done();
            Ok(())
        })?;
    }
    let live = |patch: &Patch| (patch.fix.name.clone(), place.join(file_name(&patch.fix)));
    Ok(Some(patches.iter().map(live).collect()))
}

/// Live patches of our own code, which do no harm: names, what they say of themselves, and pairs of functions, old and new.
const HARMLESS: [(&str, &str, &[Pair]); 3] = [
    ("version", "/proc/version says that it is patched", &[("version_proc_show", "lucos_version_proc_show")]),
    ("getpid", "getpid does what it did", &[("__x64_sys_getpid", "lucos_sys_getpid")]),
    ("many", "system calls that hardly anybody makes are refused", &MANY),
];

/// A function, and the one that takes its place.
type Pair = (&'static str, &'static str);

/// Functions that nothing in a small guest calls.
const MANY: [Pair; 32] = [
    ("__x64_sys_acct", REFUSE),
    ("__x64_sys_add_key", REFUSE),
    ("__x64_sys_adjtimex", REFUSE),
    ("__x64_sys_fanotify_init", REFUSE),
    ("__x64_sys_fsconfig", REFUSE),
    ("__x64_sys_fsmount", REFUSE),
    ("__x64_sys_fsopen", REFUSE),
    ("__x64_sys_fspick", REFUSE),
    ("__x64_sys_get_mempolicy", REFUSE),
    ("__x64_sys_io_cancel", REFUSE),
    ("__x64_sys_io_destroy", REFUSE),
    ("__x64_sys_io_setup", REFUSE),
    ("__x64_sys_io_submit", REFUSE),
    ("__x64_sys_kcmp", REFUSE),
    ("__x64_sys_keyctl", REFUSE),
    ("__x64_sys_mbind", REFUSE),
    ("__x64_sys_migrate_pages", REFUSE),
    ("__x64_sys_mincore", REFUSE),
    ("__x64_sys_move_mount", REFUSE),
    ("__x64_sys_move_pages", REFUSE),
    ("__x64_sys_mq_open", REFUSE),
    ("__x64_sys_mq_unlink", REFUSE),
    ("__x64_sys_open_tree", REFUSE),
    ("__x64_sys_perf_event_open", REFUSE),
    ("__x64_sys_process_vm_readv", REFUSE),
    ("__x64_sys_quotactl", REFUSE),
    ("__x64_sys_request_key", REFUSE),
    ("__x64_sys_setns", REFUSE),
    ("__x64_sys_swapoff", REFUSE),
    ("__x64_sys_swapon", REFUSE),
    ("__x64_sys_userfaultfd", REFUSE),
    ("__x64_sys_vmsplice", REFUSE),
];
const REFUSE: &str = "lucos_sys_pause";

/// Makes live patches of our own code.
pub(super) fn harmless(cache: &Cache, kernel: &Kernel) -> Result<Vec<(&'static str, PathBuf)>> {
    let module = images::patch_module(cache, kernel)?;
    let inputs = Stock::inputs(kernel)?.with("code", include_str!("live.rs"));
    let inputs = inputs.with("module", fs::read(&module)?);
    let place = cache.entry("fixes/harmless", &inputs, |folder| {
        stock::build()?;
        for (name, summary, functions) in HARMLESS {
            let file = folder.join(format!("{name}.toml"));
            fs::write(&file, manifest(name, summary, functions))?;
            let mut pack = stock::program();
            pack.arg("pack").arg(&file).arg(&module).arg("--kernel").arg(&kernel.vmlinuz);
            pack.arg("--output").arg(folder.join(format!("{name}.lup")));
            run(&mut pack, &format!("make the live patch {name}"))?;
        }
        Ok(())
    })?;
    Ok(HARMLESS.map(|(name, _, _)| (name, place.join(format!("{name}.lup")))).to_vec())
}

/// A manifest that leaves out what the kernel says.
fn manifest(name: &str, summary: &str, functions: &[Pair]) -> String {
    let functions = functions.iter().map(|(old, new)| format!("{{ name = {old:?}, new = {new:?} }}"));
    let functions: Vec<String> = functions.collect();
    format!(
        "name = {name:?}\nsummary = {summary:?}\nfunctions = [{}]\n\n\
         [module]\nname = \"lucos_patch\"\n\
         symbols = [{{ name = \"linux_proc_banner\", source = {{ name = \"linux_proc_banner\" }} }}]\n\n\
         [policy]\nconsistency = \"coexist\"\ncoexist_is_safe = \"Neither version changes anything.\"\n",
        functions.join(", ")
    )
}

fn file_name(fix: &Fix) -> String {
    format!("{}.lup", fix.name)
}

/// Makes the live patch of one fix.
fn make(stock: &Stock, patch: &Patch, output: &Path) -> Result<()> {
    let Fix { name, summary, fixes, replaces, policy, .. } = &patch.fix;
    let mut make = stock.make();
    make.arg("--patch").arg(&patch.path).arg("--output").arg(output);
    make.args(["--name", name, "--summary", summary, "--consistency", &policy.consistency]);
    for (option, values) in
        [("--fixes", fixes), ("--function", &replaces.functions), ("--leave", &replaces.leaves)]
    {
        make.args(values.iter().flat_map(|value| [option, value]));
    }
    if let Some(why) = &policy.coexist_is_safe {
        make.args(["--coexist-is-safe", why]);
    }
    if let Some(module) = &replaces.module {
        let files = stock.kernel.module_files(&[module])?;
        make.arg("--ko").arg(files.last().with_context(|| format!("{module} is built into the kernel"))?);
    }
    run(&mut make, &format!("make the live patch {name}")).map(drop)
}
