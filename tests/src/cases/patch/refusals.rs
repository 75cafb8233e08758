//! Bad patches: each ends with a reason on the host, and not a byte of the guest is changed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lucos_lup::manifest::{Code, Kernel};

use super::{Bench, patch};
use crate::images;
use crate::lup::Lup;
use crate::process;

/// Runs `lucos-patch` in a folder.
pub(super) fn lucos_patch(folder: &Path, words: &[&str]) -> Result<()> {
    let mut command = Command::new(images::program("lucos-patch")?);
    let output = process::run(command.current_dir(folder).args(words), crate::deadlines::COMMAND)?;
    ensure!(output.code == 0, "lucos-patch {words:?} ended with {}: {}", output.code, output.err);
    Ok(())
}

/// Hands a file over that must be refused with `code` and a message that has `word` in it.
fn refused(bench: &Bench, file: &Path, more: &[&str], code: &str, word: &str) -> Result<()> {
    let output = bench.vm.try_lucos_with("apply", file, more)?;
    ensure!(output.code == 4, "{}: {output:?}", file.display());
    let error: serde_json::Value = serde_json::from_str(&output.out)?;
    let message = error["message"].as_str().unwrap_or_default();
    ensure!(error["code"] == code && message.contains(word), "{error} and not {code}, {word}");
    ensure!(error["next_step"].as_str().is_some_and(|step| !step.is_empty()), "no next step: {error}");
    Ok(())
}

/// What the guest's kernel itself holds against its own: it says what it was built with.
fn break_version(module: &mut [u8]) -> Result<()> {
    const WORD: &[u8] = b" mod_unload ";
    let at = module.windows(WORD.len()).position(|bytes| bytes == WORD).context("no version magic")?;
    module[at + 1] = b'X';
    Ok(())
}

pub(super) fn refusals(kind: &'static str) -> Result<()> {
    let folder = images::folder()?;
    lucos_patch(folder.path(), &["keygen", "--no-password", "me"])?;
    let builder = Bench::builder(kind, &folder)?.cpus(2).patch_key(&folder.path().join("me.pub"));
    let mut bench = Bench::of(kind, folder, builder)?;
    let good = bench.version()?.bytes()?;
    let put = |bench: &Bench, name: &str, bytes: &[u8]| -> Result<PathBuf> {
        let path = bench.folder.path().join(name);
        std::fs::write(&path, bytes)?;
        Ok(path)
    };
    let unsigned = &["--unsigned"][..];

    // What is no patch.
    for (name, bytes, word) in [
        ("empty", Vec::new(), "cut off"),
        ("elf", b"\x7fELF and so on".to_vec(), "no .lup file"),
        ("cut", good[..good.len() / 2].to_vec(), "cut off"),
        ("longer", [&good[..], b"more"].concat(), "no signature"),
    ] {
        let file = put(&bench, name, &bytes)?;
        refused(&bench, &file, unsigned, "bad_patch", word)?;
    }
    let mut corrupt = good.clone();
    let last = corrupt.len() - good.len() / 3;
    corrupt[44] ^= 0x40;
    let file = put(&bench, "manifest", &corrupt)?;
    refused(&bench, &file, unsigned, "bad_patch", "manifest")?;
    corrupt.clone_from(&good);
    corrupt[last..].fill(0xff);
    let file = put(&bench, "module", &corrupt)?;
    refused(&bench, &file, unsigned, "bad_patch", "module")?;

    // Nobody's, somebody else's, and a trusted one's that was changed afterwards.
    let file = put(&bench, "version.lup", &good)?;
    refused(&bench, &file, &[], "not_trusted", "not signed")?;
    lucos_patch(bench.folder.path(), &["keygen", "--no-password", "other"])?;
    lucos_patch(bench.folder.path(), &["sign", "--key", "other.key", "version.lup"])?;
    refused(&bench, &file, &[], "not_trusted", "not trusted here")?;
    let file = put(&bench, "version.lup", &good)?;
    lucos_patch(bench.folder.path(), &["sign", "--key", "me.key", "version.lup"])?;
    let trusted = std::fs::read(&file)?;
    let mut signed = trusted.clone();
    signed[last] ^= 1;
    let changed = put(&bench, "changed.lup", &signed)?;
    refused(&bench, &changed, &[], "not_trusted", "does not fit")?;

    // Other kernels, other code, and functions that cannot be replaced.
    let lup =
        |change: &dyn Fn(&mut lucos_lup::Manifest)| -> Result<Lup> { Ok(bench.version()?.with(change)) };
    let other = lup(&|manifest| {
        let release = manifest.kernels[0].release.clone();
        manifest.kernels = vec![Kernel { release, build_id: [7; 20].into() }];
    })?;
    refused(&bench, &other.write(bench.folder.path())?, unsigned, "other_kernel", "build-id")?;
    let other = lup(&|manifest| {
        let mut code = manifest.functions[0].code.as_bytes().to_vec();
        code[12] ^= 0x10;
        manifest.functions[0].code = Code::from(code);
    })?;
    refused(&bench, &other.write(bench.folder.path())?, unsigned, "not_applicable", "differs at +0xc")?;
    for (function, word) in [("entry_SYSCALL_64", "entry"), ("__x86_return_thunk", "")] {
        let other = Lup::new(kind, "bad")?.replace(function, "lucos_sys_pause")?;
        refused(&bench, &other.write(bench.folder.path())?, unsigned, "not_applicable", word)?;
    }
    let other = Lup::of_trial(kind, "trial")?.tombstones();
    refused(&bench, &other.write(bench.folder.path())?, unsigned, "not_applicable", "of module lucos_trial")?;

    // What the guest's kernel refuses, and a patch that is not there yet.
    let other = lup(&|manifest| manifest.requires = vec!["absent".parse().expect("this is a name")])?;
    let output = patch(&bench.apply(&other, unsigned)?, 5)?;
    ensure!(output["why"].as_str().is_some_and(|why| why.contains("built upon absent")), "{output}");
    let failing = bench.version()?.with_module(break_version)?;
    let output = patch(&bench.apply(&failing, unsigned)?, 5)?;
    ensure!(output["why"].as_str().is_some_and(|why| why.contains("refuses module lucos_patch")), "{output}");
    let output = patch(&bench.apply(&Lup::unwilling(kind, "unwilling")?, unsigned)?, 5)?;
    let why = output["why"].as_str().unwrap_or_default();
    ensure!(why.contains("refuses module lucos_unwilling: No such device"), "{output}");
    let output = patch(&bench.apply(&Lup::unpinned(kind, "unpinned")?, unsigned)?, 5)?;
    let why = output["why"].as_str().unwrap_or_default();
    ensure!(why.contains("module lucos_unpinned does not pin itself"), "{output}");

    ensure!(!bench.is_patched()?, "new code runs");
    bench.text_is_the_images()?;
    // After all that, the good one goes in, with its signature and without being told to ignore it.
    let file = put(&bench, "good.lup", &trusted)?;
    let info = patch(&bench.vm.try_lucos_with("apply", &file, &["--wait"])?, 0)?;
    ensure!(info["signed_by"].is_string() && bench.is_patched()?, "{info}");
    bench.vm.power_off()
}
