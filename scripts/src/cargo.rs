//! Cargo, for this workspace.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::workspace_root;

/// This workspace's cargo, the one that runs us where there are more.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace_root());
    // `cargo run` tells the program it starts of its own package; another cargo need not know.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// Builds every program of the workspace, for a command that runs one. Cargo shows its own progress.
pub(crate) fn build_programs(profile: &str) -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--workspace", "--locked", "--profile", profile]);
    let status = build.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the workspace does not build; cargo says why above");
    }
    Ok(())
}
