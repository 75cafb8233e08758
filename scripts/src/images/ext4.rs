//! Makes ext4 images from folders and tar archives, without mounting anything.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::command::{command, path_with_sbin, run};
use crate::packages::is_root;

/// Fixed, so that equal contents give equal images as far as mke2fs can.
const UUID: &str = "6c75636f-7300-4000-8000-000000000001";

/// `$1` the folder, `$2` the image, `$3` its size.
///
/// Blocks of 4 KiB as on any real disk, although mke2fs takes 1 KiB for a small one.
const MAKE: &str = r#"
set -e
mke2fs -q -F -t ext4 -b 4096 -m 0 -L lucos -U "$UUID" -E "root_owner=0:0,hash_seed=$UUID" -d "$1" "$2" "$3"
"#;

/// Everything in `folder` belongs to root in the image, and `/dev` has a console. The kernel finds one of its own
/// even without that; programs that look before they mount `/dev` do not.
const FROM_FOLDER: &str = r#"
chown -R 0:0 "$1"
mkdir -p "$1/dev"
mknod -m 600 "$1/dev/console" c 5 1 2> /dev/null || true
mknod -m 666 "$1/dev/null" c 1 3 2> /dev/null || true
"#;

/// `$4` and so on are tar archives, unpacked one over the other; owners and modes are those in them.
const FROM_TARS: &str = r#"
mkdir "$1"
root=$1 image=$2 size=$3
shift 3
for tar in "$@"; do tar --numeric-owner -C "$root" -xpf "$tar"; done
set -- "$root" "$image" "$size"
"#;

/// Makes `image`, of `size` (as mke2fs reads it: `32M`), from `folder`, which it changes.
pub(super) fn from_folder(folder: &Path, image: &Path, size: &str) -> Result<()> {
    let mut shell = shell(&format!("set -e\n{FROM_FOLDER}{MAKE}"));
    shell.arg(folder).arg(image).arg(size);
    run(&mut shell, &format!("make the disk image {}", image.display()))?;
    Ok(())
}

/// Makes `image`, of `size`, from the archive `tar`; `scratch` is a folder that does not exist yet.
pub(super) fn from_tar(tar: &Path, scratch: &Path, image: &Path, size: &str) -> Result<()> {
    from_tars(&[tar], scratch, image, size)
}

/// Makes `image`, of `size`, from the archives `tars`; `scratch` is a folder that does not exist yet.
pub(super) fn from_tars(tars: &[&Path], scratch: &Path, image: &Path, size: &str) -> Result<()> {
    let mut shell = shell(&format!("set -e\n{FROM_TARS}{MAKE}rm -rf \"$1\"\n"));
    shell.arg(scratch).arg(image).arg(size).args(tars);
    run(&mut shell, &format!("make the disk image {}", image.display()))?;
    Ok(())
}

/// A shell that is root, or that at least sees its files as root would.
fn shell(script: &str) -> Command {
    let mut shell = if is_root() {
        command("sh")
    } else {
        let mut fakeroot = command("fakeroot");
        fakeroot.args(["--", "sh"]);
        fakeroot
    };
    shell.env("PATH", path_with_sbin()).env("UUID", UUID).args(["-c", script, "sh"]);
    shell
}
