//! The Debian packages that this machine itself needs, installed only when they are missing.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::command::{command, is_installed, path_with_sbin, run};
use crate::progress::Step;

/// What the packages are for; a user of one part does not need those of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Group {
    /// Fetching kernels and building guest images.
    Images,
    /// Building modules for guest kernels, and patches of their source.
    Modules,
    /// Making live patches of fixes.
    Fixes,
    /// Building libFuzzer.
    Fuzz,
    /// Signing by somebody else's program, which tests hold ours against.
    Signing,
    /// The AMD host, but for its QEMU, which is not installed.
    Amd,
    /// The Intel host: Bochs.
    Intel,
}

/// A package, and the program by which a machine without dpkg shows that it has the same thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Requirement {
    package: &'static str,
    program: &'static str,
}

const fn requirement(package: &'static str, program: &'static str) -> Requirement {
    Requirement { package, program }
}

const IMAGES: [Requirement; 6] = [
    requirement("mmdebstrap", "mmdebstrap"),
    requirement("e2fsprogs", "mke2fs"),
    requirement("kmod", "depmod"),
    // Kernels and modules are packed in three ways.
    requirement("xz-utils", "xz"),
    requirement("lz4", "lz4"),
    requirement("zstd", "zstd"),
];

/// Without root, owners and device nodes of the images are kept by fakeroot, and mmdebstrap needs a user namespace.
const IMAGES_UNPRIVILEGED: [Requirement; 2] =
    [requirement("fakeroot", "fakeroot"), requirement("uidmap", "newuidmap")];

const MODULES: [Requirement; 4] = [
    requirement("gcc", "gcc"),
    requirement("make", "make"),
    requirement("patch", "patch"),
    // The kernel's objtool is linked to libelf. The package of that has two names, this one needs the right one.
    requirement("elfutils", "eu-readelf"),
];

/// A patch is compiled by what the kernel was compiled by.
const FIXES: [Requirement; 1] = [requirement("gcc-12", "gcc-12")];

const FUZZ: [Requirement; 2] = [requirement("gcc", "gcc"), requirement("g++", "g++")];

const SIGNING: [Requirement; 1] = [requirement("minisign", "minisign")];

const AMD: [Requirement; 2] = [requirement("busybox-static", "busybox"), requirement("kmod", "modprobe")];

const INTEL: [Requirement; 9] = [
    requirement("bochs", "bochs"),
    requirement("bochs-term", "bochs"),
    requirement("bochsbios", "bochs"),
    requirement("vgabios", "bochs"),
    requirement("grub-pc-bin", "grub-mkrescue"),
    requirement("grub-common", "grub-mkrescue"),
    requirement("xorriso", "xorriso"),
    requirement("mtools", "mformat"),
    requirement("busybox-static", "busybox"),
];

impl Group {
    fn requirements(self, is_root: bool) -> Vec<Requirement> {
        match self {
            Self::Images if is_root => IMAGES.to_vec(),
            Self::Images => IMAGES.iter().chain(&IMAGES_UNPRIVILEGED).copied().collect(),
            Self::Modules => MODULES.to_vec(),
            Self::Fixes => MODULES.iter().chain(&FIXES).copied().collect(),
            Self::Fuzz => FUZZ.to_vec(),
            Self::Signing => SIGNING.to_vec(),
            Self::Amd => AMD.to_vec(),
            Self::Intel => INTEL.to_vec(),
        }
    }
}

/// Makes sure that everything in `groups` is installed; does nothing, quickly, when it is.
pub fn ensure(groups: &[Group]) -> Result<()> {
    let mut wanted: Vec<Requirement> = Vec::new();
    for requirement in groups.iter().flat_map(|group| group.requirements(is_root())) {
        if !wanted.contains(&requirement) {
            wanted.push(requirement);
        }
    }
    let missing = missing(&wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|requirement| requirement.package).collect();
    let list = names.join(" ");
    if !is_installed("apt-get") {
        let programs: Vec<&str> = missing.iter().map(|requirement| requirement.program).collect();
        bail!(
            "this machine lacks programs that the test bed needs: {}; without apt-get they cannot be installed from \
             here. On Debian they are in the packages {list}",
            programs.join(", ")
        );
    }
    if !is_root() && run(&mut sudo("true"), "become root").is_err() {
        bail!(
            "packages are missing, and installing them needs root; run:\n  sudo apt-get install --no-install-recommends {list}"
        );
    }
    install(&names)
}

fn install(names: &[&str]) -> Result<()> {
    let step = Step::start(format!("installing {}", names.join(" ")));
    let hint = format!("install {}; try `apt-get install --no-install-recommends` by hand", names.join(" "));
    let mut install = as_root("apt-get");
    install
        .args(["install", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"])
        .args(names);
    // Lists that are missing (a fresh container) or outdated fail here: fetch them, then try once more.
    if run(&mut install, &hint).is_err() {
        run(
            as_root("apt-get").args(["update", "-o", "DPkg::Lock::Timeout=300"]),
            "update this machine's package lists",
        )?;
        run(&mut install, &hint)?;
    }
    step.done();
    Ok(())
}

fn missing(wanted: &[Requirement]) -> Vec<Requirement> {
    if !is_installed("dpkg-query") {
        return wanted.iter().filter(|requirement| !is_installed(requirement.program)).copied().collect();
    }
    let mut query = command("dpkg-query");
    query.args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"]);
    query.args(wanted.iter().map(|requirement| requirement.package));
    // It fails when a package is unknown, and still reports the others.
    let output = query.output().map(|output| output.stdout).unwrap_or_default();
    not_installed(&String::from_utf8_lossy(&output), wanted)
}

fn not_installed(status: &str, wanted: &[Requirement]) -> Vec<Requirement> {
    let has = |requirement: &Requirement| {
        status.lines().any(|line| line.split_once(' ') == Some((requirement.package, "installed")))
    };
    wanted.iter().filter(|requirement| !has(requirement)).copied().collect()
}

/// Whether this process runs as root, told by the owner of its own entry in `/proc`.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    Path::new("/proc/self").metadata().is_ok_and(|metadata| metadata.uid() == 0)
}

fn as_root(program: &str) -> Command {
    if is_root() { command(program) } else { sudo(program) }
}

fn sudo(program: &str) -> Command {
    let mut sudo = command("sudo");
    sudo.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive"])
        .arg(format!("PATH={}", path_with_sbin()))
        .arg(program);
    sudo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_and_unknown_packages_are_missing() {
        let wanted = [requirement("a", "a"), requirement("b", "b"), requirement("c", "c")];
        let missing = not_installed("a installed\nb config-files\n", &wanted);
        assert_eq!(missing, wanted[1..]);
    }

    #[test]
    fn the_amd_host_does_not_need_bochs() {
        let names: Vec<_> = Group::Amd.requirements(true).iter().map(|r| r.package).collect();
        assert!(names.contains(&"busybox-static") && !names.iter().any(|name| name.contains("bochs")));
    }
}
