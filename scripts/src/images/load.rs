//! What puts the full Debian guest under load that checks itself (`scripts/guest/load`): fsx, stress-ng, and a compilation.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::holes;
use crate::cache::{Cache, Inputs};
use crate::cargo::cargo;
use crate::command::{command, run};
use crate::progress::Step;

/// The File System eXerciser: Debian has no package of it. It is used as it is on the registry of Rust's crates, under the Apple
/// Public Source License 2.0, and is part of nothing but the guest's disk.
const FSX: (&str, &str) = ("fsx", "0.3.2");
/// Of the C library that every toolchain here has; a program for guests needs nothing of theirs.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC: &str = "-C target-feature=+crt-static -C strip=symbols";

/// Files with their modes.
const FILES: [(&str, u32, &str); 3] = [
    ("usr/bin/load", 0o755, include_str!("../../guest/load/load")),
    ("usr/share/load/fsx.toml", 0o644, include_str!("../../guest/load/fsx.toml")),
    ("usr/src/load/Makefile", 0o644, include_str!("../../guest/load/Makefile")),
];

/// A tar archive with it, to be unpacked over a userland that has stress-ng, make and gcc.
pub(super) fn tar(cache: &Cache) -> Result<PathBuf> {
    let fsx = fs::read(fsx(cache)?).context("cannot read fsx")?;
    let mut inputs = Inputs::new().with("fsx", &fsx).with("code", include_str!("load.rs"));
    for (name, text) in FILES.iter().map(|(name, _, text)| (name, text)).chain(source()) {
        inputs = inputs.with(name, text);
    }
    let place = cache.entry("images/load", &inputs, |folder| {
        let scratch =
            tempfile::tempdir_in(cache.root().join("tmp")).context("cannot make a folder to build in")?;
        let tree = scratch.path().join("tree");
        install(&tree, "usr/bin/fsx", 0o755, &fsx)?;
        for (path, mode, text) in FILES {
            install(&tree, path, mode, text.as_bytes())?;
        }
        for (name, text) in source() {
            install(&tree, &format!("usr/src/load/{name}"), 0o644, text.as_bytes())?;
        }
        pack(&tree, &folder.join("load.tar"))
    })?;
    Ok(place.join("load.tar"))
}

/// What is compiled.
fn source() -> impl Iterator<Item = (&'static &'static str, &'static &'static str)> {
    holes::SOURCES.iter().map(|(name, text)| (name, text))
}

/// The program, by itself: it takes longer to build than all else, and changes with nothing here.
fn fsx(cache: &Cache) -> Result<PathBuf> {
    let (name, version) = FSX;
    let inputs = Inputs::new().with(name, version).with("target", TARGET).with("flags", STATIC);
    let place = cache.entry("images/fsx", &inputs, |folder| {
        let step = Step::start(format!("building {name} for guests"));
        let scratch =
            tempfile::tempdir_in(cache.root().join("tmp")).context("cannot make a folder to build in")?;
        let mut install = cargo();
        install.args(["install", "--locked", "--quiet", "--target", TARGET, "--version", version, name]);
        install.arg("--root").arg(scratch.path()).arg("--target-dir").arg(scratch.path().join("target"));
        // With a target named, these are not those of build scripts.
        install.env("RUSTFLAGS", STATIC);
        run(&mut install, &format!("build {name} for guests"))?;
        let program = scratch.path().join("bin").join(name);
        ensure!(program.exists(), "cargo has not put {name} at {}", program.display());
        fs::copy(program, folder.join(name)).with_context(|| format!("cannot copy {name}"))?;
        step.done();
        Ok(())
    })?;
    Ok(place.join(name))
}

fn install(tree: &Path, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
    let place = tree.join(path);
    fs::create_dir_all(place.parent().unwrap_or(tree))?;
    fs::write(&place, contents).with_context(|| format!("cannot write {path}"))?;
    fs::set_permissions(&place, Permissions::from_mode(mode))?;
    Ok(())
}

/// Packs what is installed: the files alone, so that no folder of a userland gets the owner or mode of one of ours.
fn pack(tree: &Path, tar: &Path) -> Result<()> {
    let files = run(command("find").current_dir(tree).args(["usr", "-type", "f"]), "list what loads guests")?;
    let mut pack = command("tar");
    pack.arg("-C").arg(tree).args(["--owner=0", "--group=0", "--numeric-owner", "-cf"]).arg(tar);
    run(pack.args(files.lines()), "pack what loads guests")?;
    Ok(())
}
