//! Kernel modules on their way into an image.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::command::{command, path_with_sbin, run};
use crate::kernels::Kernel;

/// Copies `modules` of `kernel`, and what they depend on, to `usr/lib/modules/RELEASE` below `tree`, indexed.
///
/// A module that this kernel does not have, whether built in or left out by Debian, is passed over.
pub(super) fn pick(kernel: &Kernel, modules: &[&str], tree: &Path) -> Result<()> {
    let source = kernel.modules.join("lib/modules").join(&kernel.release);
    let target = tree.join("usr/lib/modules").join(&kernel.release);
    let copy = |inner: &Path| -> Result<()> {
        let to = target.join(inner);
        fs::create_dir_all(to.parent().unwrap_or(&target))?;
        fs::copy(source.join(inner), &to).with_context(|| format!("cannot copy {}", inner.display()))?;
        Ok(())
    };
    // depmod takes the order of loading and the list of what is built in from these.
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        copy(Path::new(list))?;
    }
    for module in modules {
        for path in kernel.module_files(&[module]).unwrap_or_default() {
            copy(path.strip_prefix(&source).with_context(|| format!("{} is elsewhere", path.display()))?)?;
        }
    }
    let mut depmod = command("depmod");
    depmod.env("PATH", path_with_sbin()).arg("-b").arg(tree.join("usr")).arg(&kernel.release);
    run(&mut depmod, &format!("index the modules picked from {}", kernel.release))?;
    Ok(())
}

/// Puts everything below `tree` into the archive `tar`, owned by root.
pub(super) fn pack(tree: &Path, tar: &Path) -> Result<()> {
    let mut pack = command("tar");
    pack.arg("-C").arg(tree).args(["--owner=0", "--group=0", "--numeric-owner", "-cf"]).arg(tar).arg(".");
    run(&mut pack, &format!("pack {}", tree.display()))?;
    Ok(())
}
