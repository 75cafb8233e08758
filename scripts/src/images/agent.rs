//! The guest's agent: one static program that runs in any guest, and the unit that has systemd start it.

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::bed;
use crate::cache::{Cache, Inputs, workspace_root};
use crate::cargo::cargo;
use crate::command::{command, run};
use crate::cpio;
use crate::progress::Step;

/// Rust's targets that it can be built for, the better one first: a C library that is made for static programs, and the one
/// that every toolchain here has.
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-musl", "x86_64-unknown-linux-gnu"];
const PROGRAM: &str = "lucos-agent";
const UNIT: &str = "lucos-agent.service";
/// All that it is built from.
const SOURCES: [&str; 5] = ["Cargo.lock", "Cargo.toml", "abi", "guest-agent", "rust-toolchain.toml"];

/// An archive with it. The kernel unpacks archives that are one behind the other (`init/initramfs.c`), so it is put behind
/// that of a guest.
pub(super) fn initramfs(cache: &Cache) -> Result<PathBuf> {
    Ok(entry(cache)?.join("agent.cpio"))
}

/// A tar archive with it and its unit, enabled, to be unpacked over a userland with systemd.
pub(super) fn tar(cache: &Cache) -> Result<PathBuf> {
    Ok(entry(cache)?.join("agent.tar"))
}

fn entry(cache: &Cache) -> Result<PathBuf> {
    let root = workspace_root();
    let target = target()?;
    let mut inputs = Inputs::new().with("target", target).with("code", include_str!("agent.rs"));
    for source in SOURCES {
        inputs = inputs.with_files(&root, Path::new(source))?;
    }
    cache.entry("images/agent", &inputs, |folder| {
        let step = Step::start(format!("building {PROGRAM} for guests"));
        let program = build(target)?;
        install(&program, &root.join("guest-agent").join(UNIT), &folder.join("agent.tar"))?;
        let mut archive = cpio::Archive::new(BufWriter::new(File::create(folder.join("agent.cpio"))?));
        archive.file(&format!("bin/{PROGRAM}"), 0o755, &fs::read(&program)?)?;
        archive.finish()?;
        step.done();
        Ok(())
    })
}

/// The first target that the toolchain has a standard library for.
fn target() -> Result<&'static str> {
    let installed = |target: &&str| {
        let mut rustc = command("rustc");
        rustc.current_dir(workspace_root()).args(["--print", "target-libdir", "--target", target]);
        run(&mut rustc, "ask rustc for its targets").is_ok_and(|folder| Path::new(folder.trim()).exists())
    };
    TARGETS
        .into_iter()
        .find(installed)
        .context("rustc has a standard library for none of the agent's targets")
}

fn build(target: &str) -> Result<PathBuf> {
    let folder = bed::target_folder().join("agent");
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "--quiet", "--package", PROGRAM, "--target", target]);
    // With a target named, these are not those of build scripts.
    build.arg("--target-dir").arg(&folder).env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    run(&mut build, "build the agent")?;
    let program = folder.join(target).join("release").join(PROGRAM);
    ensure!(program.exists(), "cargo has not put the agent at {}", program.display());
    Ok(program)
}

/// Packs what is installed: the files alone, so that no folder of a userland gets the owner or mode of one of ours.
fn install(program: &Path, unit: &Path, tar: &Path) -> Result<()> {
    let tree = tempfile::tempdir().context("cannot make a folder for the agent")?;
    let place = |path: &str| -> Result<PathBuf> {
        let path = tree.path().join(path);
        fs::create_dir_all(path.parent().unwrap_or(tree.path()))?;
        Ok(path)
    };
    let (program_place, unit_place) =
        (format!("usr/sbin/{PROGRAM}"), format!("usr/lib/systemd/system/{UNIT}"));
    let enabled = format!("etc/systemd/system/multi-user.target.wants/{UNIT}");
    fs::copy(program, place(&program_place)?).context("cannot copy the agent")?;
    fs::copy(unit, place(&unit_place)?).context("cannot copy the agent's unit")?;
    symlink(format!("/{unit_place}"), place(&enabled)?).context("cannot enable the agent's unit")?;
    let mut pack = command("tar");
    pack.arg("-C").arg(tree.path()).args(["--owner=0", "--group=0", "--numeric-owner", "-cf"]).arg(tar);
    run(pack.args([program_place, unit_place, enabled]), "pack the agent")?;
    Ok(())
}
