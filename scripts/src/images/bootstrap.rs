//! Debian userlands, put together by mmdebstrap: as root where that is what we are, else in a user namespace.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::archive::{Archive, SUITE};
use crate::cache::Cache;
use crate::command::{command, path_with_sbin, run};
use crate::packages::{self, Group, is_root};

/// Documentation and translations; nobody reads them in a test guest.
const LEFT_OUT: [&str; 4] =
    ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*"];

/// The mirror of the machine that built the image means nothing to a guest; neither do its name and name servers.
const FORGET: &str = r#"
rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/apt/sources.list "$1"/etc/resolv.conf "$1"/etc/hostname
rm -rf "$1"/var/log/apt "$1"/var/log/dpkg.log "$1"/var/log/alternatives.log "$1"/var/log/bootstrap.log
"#;

/// A userland in the making.
#[derive(Debug)]
pub(super) struct Bootstrap<'a> {
    cache: &'a Cache,
    arguments: Vec<OsString>,
}

impl<'a> Bootstrap<'a> {
    /// Debian's base system and `packages`, without what they only recommend.
    pub(super) fn of(cache: &'a Cache, packages: &[&str]) -> Self {
        let bootstrap = Self { cache, arguments: Vec::new() };
        let mut bootstrap =
            bootstrap.with("--variant=minbase").with(format!("--include={}", packages.join(",")));
        for pattern in LEFT_OUT {
            bootstrap = bootstrap.with(format!("--dpkgopt=path-exclude={pattern}"));
        }
        bootstrap.script(FORGET)
    }

    /// The userland in the archive `base`, which an earlier bootstrap made.
    pub(super) fn again(cache: &'a Cache, base: &Path) -> Self {
        let bootstrap = Self { cache, arguments: Vec::new() };
        // mmdebstrap fills /dev if there is one.
        bootstrap
            .with("--variant=custom")
            .with("--skip=update")
            .with(hook("setup", "tar-in", base, "/"))
            .with("--setup-hook=mkdir -p \"$1/dev\"")
    }

    /// Leaves `/dev` empty, for a userland to start [`Bootstrap::again`] from: only real root makes device nodes.
    pub(super) fn without_devices(self) -> Self {
        self.with("--skip=output/dev")
    }

    /// Unpacks the archive `tar` into the finished userland.
    pub(super) fn add(self, tar: &Path) -> Self {
        self.with(hook("customize", "tar-in", tar, "/"))
    }

    /// Runs a shell script on the finished userland, whose folder is `$1`.
    pub(super) fn script(self, script: &str) -> Self {
        self.with(format!("--customize-hook={script}"))
    }

    /// Copies the file `inner` of the finished userland to `outer`.
    pub(super) fn take(self, inner: &str, outer: &Path) -> Self {
        let mut argument = OsString::from(format!("--customize-hook=download {inner} '"));
        argument.push(outer);
        argument.push("'");
        self.with(argument)
    }

    /// Makes the userland as a tar archive, or only for what is taken out of it.
    pub(super) fn run(self, what: &str, tar: Option<&Path>) -> Result<()> {
        packages::ensure(&[Group::Images])?;
        let archive = Archive::open(self.cache)?;
        let mut mmdebstrap = mmdebstrap(self.cache);
        mmdebstrap.env("PATH", path_with_sbin()).args(["--architectures=amd64", "--quiet"]);
        for option in archive.acquire_options() {
            mmdebstrap.arg(format!("--aptopt={}", option.trim_end_matches(';')));
        }
        mmdebstrap.args(&self.arguments);
        match tar {
            Some(tar) => mmdebstrap.arg("--format=tar").arg(SUITE).arg(tar),
            None => mmdebstrap.arg("--format=null").args([SUITE, "/dev/null"]),
        };
        mmdebstrap.arg(archive.sources());
        // The apt of mmdebstrap keeps its state in the userland, so other xtasks may use ours meanwhile.
        drop(archive);
        run(&mut mmdebstrap, what)?;
        Ok(())
    }

    fn with(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }
}

/// mmdebstrap in the mode that fits our rights.
///
/// As root it mounts `/proc`, `/sys` and the machine's own `/dev/shm` into the userland. A mount namespace keeps
/// these from the machine: if mmdebstrap is killed they are gone with it, where otherwise whoever deletes its folder
/// next (`cargo clean`) would delete through them.
fn mmdebstrap(cache: &Cache) -> Command {
    if !is_root() {
        let mut mmdebstrap = command("mmdebstrap");
        mmdebstrap.arg("--mode=unshare");
        return mmdebstrap;
    }
    let namespace = ["--mount", "--propagation=private", "--"];
    // Where even root may not have one (a container), mmdebstrap cannot mount anything either and does without.
    let has_namespaces =
        run(command("unshare").args(namespace).arg("true"), "make a mount namespace").is_ok();
    let mut mmdebstrap = if has_namespaces {
        let mut unshare = command("unshare");
        unshare.args(namespace).arg("mmdebstrap");
        unshare
    } else {
        command("mmdebstrap")
    };
    mmdebstrap.arg("--mode=root");
    // In a user namespace the folder must be open to all, which a cache in a home folder is not.
    mmdebstrap.env("TMPDIR", cache.root().join("tmp"));
    mmdebstrap
}

/// A special hook of mmdebstrap with one file of ours, quoted for the words that mmdebstrap splits it into.
fn hook(stage: &str, verb: &str, file: &Path, place: &str) -> OsString {
    let mut argument = OsString::from(format!("--{stage}-hook={verb} '"));
    argument.push(file);
    argument.push(format!("' {place}"));
    argument
}
