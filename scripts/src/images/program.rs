//! Programs in C for guests, which need nothing of the guest's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::{command, run};

/// Builds the program `name` from sources, names with their texts, in `folder`.
pub(super) fn build(folder: &Path, name: &str, sources: &[(&str, &str)]) -> Result<PathBuf> {
    let program = folder.join(name);
    let mut gcc = command("gcc");
    gcc.args(["-static", "-O2", "-s", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program);
    for (file, text) in sources {
        let path = folder.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {file}"))?;
        if path.extension().is_some_and(|extension| extension == "c") {
            gcc.arg(&path);
        }
    }
    run(&mut gcc, &format!("build {name} for guests"))?;
    Ok(program)
}
