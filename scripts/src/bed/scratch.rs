//! The scratch disk: all that is new in each run goes in on it, and what the command writes can come out on it.
//!
//! One way for both emulators, although QEMU has others, so that the initramfs and the boot medium are the same in
//! every run and can be cached.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{HostSpec, Input, quote, terminal};
use crate::command::{command, path_with_sbin, run};

/// Bochs counts disks in cylinders of 16 heads and 63 sectors, and ignores a last one that is not full.
pub(super) const CYLINDER: u64 = 16 * 63 * 512;

/// What goes onto the disk, in the folder `.bed` of it.
#[derive(Debug)]
pub(super) struct Scratch {
    stage: PathBuf,
    image: PathBuf,
}

impl Scratch {
    /// Starts a disk in the run's folder with the command to run on it.
    pub(super) fn new(spec: &HostSpec, argv: &[OsString], run: &Path) -> Result<Self> {
        let scratch = Self { stage: run.join("stage"), image: run.join("scratch.img") };
        scratch.write("command", script(argv).as_bytes())?;
        match spec.input {
            Input::Nothing => {}
            Input::Ours => scratch.write("stdin", b"")?,
            Input::Terminal => scratch.write("terminal", terminal::size().as_bytes())?,
        }
        for file in &spec.with {
            let name = file.file_name().with_context(|| format!("{} names no file", file.display()))?;
            scratch.add(&Path::new("with").join(name), file)?;
        }
        Ok(scratch)
    }

    /// Adds a file with these contents.
    pub(super) fn write(&self, name: &str, contents: &[u8]) -> Result<()> {
        let place = self.place(Path::new(name))?;
        fs::write(&place, contents).with_context(|| format!("cannot write {}", place.display()))
    }

    /// Adds the file `from`, without copying it where that is possible.
    pub(super) fn add(&self, name: &Path, from: &Path) -> Result<()> {
        let place = self.place(name)?;
        // The link must be to the file itself: a symbolic link would be carried over as one.
        let from = from.canonicalize().with_context(|| format!("cannot find {}", from.display()))?;
        let add = fs::hard_link(&from, &place).or_else(|_| fs::copy(&from, &place).map(drop));
        add.with_context(|| format!("cannot copy {} to {}", from.display(), place.display()))
    }

    /// Adds a symbolic link, which is resolved in the host.
    pub(super) fn link(&self, name: &Path, target: &Path) -> Result<()> {
        let place = self.place(name)?;
        std::os::unix::fs::symlink(target, &place).with_context(|| format!("cannot link {}", place.display()))
    }

    /// Adds an empty folder.
    pub(super) fn folder(&self, name: &str) -> Result<()> {
        self.place(&Path::new(name).join("x")).map(drop)
    }

    fn place(&self, name: &Path) -> Result<PathBuf> {
        let place = self.stage.join(".bed").join(name);
        let folder = place.parent().unwrap_or(&self.stage);
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(place)
    }

    /// Makes the disk, a sparse file; ext4's own tables are left to be written when they are needed.
    pub(super) fn finish(&self, gib: u64) -> Result<&Path> {
        let size = ((gib << 30) / CYLINDER) * CYLINDER;
        let make = || File::create(&self.image)?.set_len(size);
        make().with_context(|| format!("cannot create {}", self.image.display()))?;
        let mut mke2fs = command("mke2fs");
        mke2fs.env("PATH", path_with_sbin()).args(["-q", "-F", "-t", "ext4", "-m", "0"]);
        mke2fs.args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", "-d"]);
        run(mke2fs.arg(&self.stage).arg(&self.image), "make the scratch disk")?;
        Ok(&self.image)
    }

    /// Copies what the command left in its results folder into `to`.
    pub(super) fn collect(&self, to: &Path) -> Result<()> {
        // debugfs makes a folder of the same name in the one that it is told.
        let place = self.image.with_file_name("results");
        fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
        let mut request = OsString::from("rdump /.bed/out ");
        request.push(quoted_for_debugfs(&place));
        let mut debugfs = command("debugfs");
        debugfs.env("PATH", path_with_sbin()).arg("-R").arg(request).arg(&self.image);
        run(&mut debugfs, "read the results from the scratch disk")?;
        let mut cp = command("cp");
        cp.args(["-r", "--"]).arg(place.join("out/.")).arg(to);
        run(&mut cp, "copy the results").map(drop)
    }
}

/// debugfs splits its requests at blanks; quotes keep a word whole, doubled ones stand for themselves.
fn quoted_for_debugfs(path: &Path) -> OsString {
    OsString::from(format!("\"{}\"", path.to_string_lossy().replace('"', "\"\"")))
}

/// The shell script that becomes the command.
fn script(argv: &[OsString]) -> OsString {
    let mut text = OsString::from(
        "export HOME=/root LANG=C.UTF-8 TERM=${TERM:-linux}\n\
         export PATH=/lucos/with:/lucos/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         export LUCOS_BIN=/lucos/bin LUCOS_WITH=/lucos/with LUCOS_IMAGES=/lucos/images\n\
         export LUCOS_OUT=/lucos/out LUCOS_SCRATCH=/scratch LUCOS_EMULATED=1\n\
         cd /scratch\n",
    );
    for name in PASSED_ON {
        if let Some(value) = std::env::var_os(name) {
            text.push(format!("export {name}="));
            text.push(quote::word(&value));
            text.push("\n");
        }
    }
    text.push("exec ");
    text.push(quote::words(argv));
    text.push("\n");
    text
}

/// Variables of ours that the command sees too.
const PASSED_ON: [&str; 4] = ["RUST_BACKTRACE", "RUST_LOG", "NO_COLOR", "LUCOS_LOG"];

/// The programs that a build left in `folder`: executable files, without the ones that only cargo uses.
pub(super) fn programs(folder: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let entries: Vec<fs::DirEntry> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
    let mut programs: Vec<PathBuf> = entries
        .iter()
        .filter(|entry| {
            entry.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
        })
        .map(fs::DirEntry::path)
        .filter(|path| path.extension().is_none() && path.file_name() != Some(OsStr::new("xtask")))
        .collect();
    programs.sort();
    programs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_are_taken_from_a_build_folder() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        for (name, mode) in [("lucos-vmm", 0o755), ("xtask", 0o755), ("lib.so", 0o755), ("notes", 0o644)] {
            let path = folder.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(folder.path().join("deps")).unwrap();
        assert_eq!(programs(folder.path()), [folder.path().join("lucos-vmm")]);
        assert!(programs(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn the_command_is_the_last_line_and_exact() {
        let script = script(&["echo".into(), "a  b".into(), "$c".into()]);
        assert!(script.to_str().unwrap().ends_with("exec 'echo' 'a  b' '$c'\n"));
    }
}
