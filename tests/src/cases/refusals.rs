//! Machines that cannot be: each is refused with a message to act on, and nothing is left behind.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::deadlines::{BOOT, REFUSAL};
use crate::harness::{Test, Tier};
use crate::images;
use crate::process::{self, Output};
use crate::vm::Vm;

pub(super) const TESTS: &[Test] = &[
    Test::new("refusals::what_is_no_kernel", Tier::Gate, kernels),
    Test::new("refusals::what_is_no_initramfs", Tier::Gate, initramfs),
    Test::new("refusals::what_is_no_disk", Tier::Gate, disks),
    Test::new("refusals::a_disk_that_may_not_be_written", Tier::Gate, unwritable_disk),
    Test::new("refusals::a_disk_that_another_vmm_uses", Tier::Gate, locked_disk),
    Test::new("refusals::memory_and_vcpus_that_cannot_be", Tier::Gate, sizes),
    Test::new("refusals::a_tap_that_is_missing", Tier::Gate, taps),
    Test::new("refusals::sockets_that_cannot_be_made", Tier::Gate, sockets),
    Test::new("refusals::configuration_files_with_mistakes", Tier::Gate, files),
    Test::new("refusals::no_access_to_kvm", Tier::Gate, no_kvm),
];

/// The configuration was refused (`lucos-vmm --help`).
const REFUSED: i32 = 2;
/// The host cannot do it.
const HOST: i32 = 1;

/// A folder to refuse things in: what is in it before a refusal must be there after it, unchanged.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        Ok(Self { folder: images::folder()? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<PathBuf> {
        fs::write(self.path(name), bytes)?;
        Ok(self.path(name))
    }

    /// Names, sizes and times of everything in it.
    fn inventory(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.folder.path())? {
            let entry = entry?;
            let data = entry.metadata()?;
            all.push(format!("{} {} {:?}", entry.file_name().display(), data.len(), data.modified()?));
        }
        all.sort();
        Ok(all)
    }

    /// Starts a VMM that must end by itself with `code`, naming all of `words`, and leaving nothing behind.
    fn refuse(&self, code: i32, args: &[&dyn AsArgument], words: &[&str]) -> Result<()> {
        let args: Vec<OsString> = args.iter().map(|arg| arg.argument()).collect();
        let mut vmm = Command::new(images::program("lucos-vmm")?);
        vmm.args(&args).current_dir(self.folder.path());
        self.refuse_command(code, &mut vmm, words).with_context(|| format!("lucos-vmm {args:?}"))
    }

    fn refuse_command(&self, code: i32, command: &mut Command, words: &[&str]) -> Result<()> {
        let before = self.inventory()?;
        let Output { code: found, out, err } = process::run(command, REFUSAL)?;
        ensure!(found == code, "it ended with {found}, not {code}: {out}{err}");
        for word in words {
            ensure!(err.contains(word), "the message lacks {word:?}: {err}");
        }
        ensure!(!err.contains("panicked") && !err.contains("bug"), "this is no message for a user: {err}");
        ensure!(out.is_empty(), "standard output belongs to the guest: {out}");
        let after = self.inventory()?;
        ensure!(before == after, "it left something behind: {before:?} became {after:?}");
        Ok(())
    }
}

/// Texts and paths alike.
trait AsArgument {
    fn argument(&self) -> OsString;
}

impl AsArgument for &str {
    fn argument(&self) -> OsString {
        self.into()
    }
}

impl AsArgument for String {
    fn argument(&self) -> OsString {
        self.into()
    }
}

impl AsArgument for PathBuf {
    fn argument(&self) -> OsString {
        self.into()
    }
}

fn kernel() -> Result<PathBuf> {
    images::image("vmlinuz-6.1-cloud")
}

fn kernels() -> Result<()> {
    let place = Place::new()?;
    let stock = fs::read(kernel()?)?;
    let changed = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = stock.clone();
        change(&mut bytes);
        place.write(name, bytes)
    };
    // Offsets: Documentation/arch/x86/boot.rst (xloadflags), arch/arm64/booting.rst (magic), ELF-64 (e_machine).
    let truncated = changed("cut", &|bytes| bytes.truncate(bytes.len() / 2))?;
    let narrow = changed("narrow", &|bytes| bytes[0x236] &= !1)?;
    let mut arm = vec![0; 4096];
    arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
    let arm = place.write("arm", arm)?;
    let mut elf = vec![0; 4096];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 183;
    let elf = place.write("elf", elf)?;
    let text = place.write("text", "this is no kernel, only some lines of text\n".repeat(50))?;
    let vmlinux = fs::read(images::image("vmlinux-6.1-cloud")?)?;
    let half = place.write("half", &vmlinux[..vmlinux.len() / 2])?;

    let refuse = |path: &PathBuf, words: &[&str]| {
        let shown = path.display().to_string();
        let words: Vec<&str> = words.iter().copied().chain([shown.as_str(), "kernel"]).collect();
        place.refuse(REFUSED, &[&"--kernel", path], &words)
    };
    refuse(&text, &["--kernel takes", "bzImage"])?;
    refuse(&images::image("tiny.img")?, &["--kernel takes"])?;
    refuse(&images::image("tiny.cpio")?, &["--initrd"])?;
    refuse(&images::program("lucos-vmm")?, &["--kernel takes"])?;
    refuse(&truncated, &["truncated", "copy it again"])?;
    refuse(&half, &["truncated", "copy it again"])?;
    refuse(&narrow, &["32-bit"])?;
    refuse(&arm, &["ARM64"])?;
    refuse(&elf, &["another architecture"])?;
    refuse(&place.path("missing"), &["No such file", "--kernel"])?;
    refuse(&place.folder.path().to_path_buf(), &["directory"])?;
    place.refuse(REFUSED, &[], &["--kernel"])
}

fn initramfs() -> Result<()> {
    let place = Place::new()?;
    let kernel = kernel()?;
    let folder = place.folder.path().to_path_buf();
    let empty = place.write("empty", "")?;
    let large = place.path("large");
    File::create(&large)?.set_len(1 << 30)?;
    let api = ["--api-socket", "api.sock"];
    let refuse = |initrd: &PathBuf, words: &[&str]| {
        place.refuse(REFUSED, &[&"--kernel", &kernel, &"--initrd", initrd, &api[0], &api[1]], words)
    };
    refuse(&place.path("missing"), &["missing", "No such file", "--initrd"])?;
    refuse(&folder, &["--initrd", "regular file"])?;
    refuse(&empty, &["empty", "--initrd"])?;
    refuse(&large, &["needs at least", "initramfs", "--memory"])
}

fn disks() -> Result<()> {
    let place = Place::new()?;
    let kernel = kernel()?;
    let odd = place.write("odd.img", [0; 1000])?;
    let empty = place.write("empty.img", "")?;
    let refuse = |disk: &PathBuf, words: &[&str]| {
        place.refuse(REFUSED, &[&"--kernel", &kernel, &"--disk", disk, &"--api-socket", &"api.sock"], words)
    };
    refuse(&place.path("none.img"), &["none.img", "no such file", "truncate -s"])?;
    refuse(&place.folder.path().to_path_buf(), &["is a directory", "image file"])?;
    refuse(&odd, &["odd.img", "no multiple of 512"])?;
    refuse(&empty, &["empty.img", "is empty", "truncate -s"])?;
    refuse(&PathBuf::from("/dev/null"), &["/dev/null", "character device"])
}

fn unwritable_disk() -> Result<()> {
    let place = Place::new()?;
    let kernel = kernel()?;
    let disk = place.write("fixed.img", vec![7; 1 << 20])?;
    // Root may write whatever the mode says, but not to what is immutable (chattr(1)).
    fs::set_permissions(&disk, Permissions::from_mode(0o444))?;
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        process::host("chattr", ["+i".as_ref(), disk.as_os_str()])?;
    }
    let refused = place.refuse(
        REFUSED,
        &[&"--kernel", &kernel, &"--disk", &disk, &"--api-socket", &"api.sock"],
        &["fixed.img", "not permitted", "readonly=on"],
    );
    if is_root {
        process::host("chattr", ["-i".as_ref(), disk.as_os_str()])?;
    }
    refused?;
    ensure!(fs::read(&disk)? == vec![7; 1 << 20], "the disk has changed");
    Ok(())
}

fn locked_disk() -> Result<()> {
    let place = Place::new()?;
    let disk = place.write("busy.img", vec![7; 1 << 20])?;
    let vm = Vm::builder("vmlinuz-6.1-cloud")?.disk(&disk).start()?;
    vm.expect("Linux version", BOOT)?;
    let kernel = kernel()?;
    let read_only = format!("path={},readonly=on", disk.display());
    for disk in [disk.display().to_string(), read_only] {
        place.refuse(
            REFUSED,
            &[&"--kernel", &kernel, &"--disk", &disk, &"--api-socket", &"api.sock"],
            &["busy.img", "another VMM", "stop that one first"],
        )?;
    }
    let state = vm.lucos("info")?;
    ensure!(state["state"] == "running", "the first VMM is disturbed: {state}");
    drop(vm);
    // A lock must not outlive even a VMM that was killed.
    let vm = Vm::builder("vmlinuz-6.1-cloud")?.disk(&disk).start()?;
    vm.wait_api().context("the lock is left behind")?;
    ensure!(fs::read(&disk)? == vec![7; 1 << 20], "the disk has changed");
    Ok(())
}

fn sizes() -> Result<()> {
    let place = Place::new()?;
    let kernel = kernel()?;
    let refuse = |flag: &str, value: &str, words: &[&str]| {
        let mut all = vec![flag];
        all.extend(words);
        place.refuse(REFUSED, &[&"--kernel", &kernel, &flag, &value, &"--api-socket", &"api.sock"], &all)
    };
    refuse("--memory", "16M", &["too little", "32M"])?;
    // Enough for any kernel's first byte, but not for this one's.
    refuse("--memory", "32M", &["needs at least", "has 32 MiB", "raise"])?;
    refuse("--memory", "1T", &["1048576 MiB", "this host has", "lower it"])?;
    refuse("--memory", "65T", &["at most 64T"])?;
    refuse("--memory", "33M", &["multiple of 2 MiB", "32M and 34M"])?;
    refuse("--memory", "much", &["no size", "512M"])?;
    refuse("--cpus", "0", &["1 to 254"])?;
    refuse("--cpus", "255", &["1 to 254"])?;
    refuse("--cpus", "-1", &["1 to 254"])?;
    refuse("--memory", "-1", &["no size"])?;
    refuse("--cpus", "two", &["1 to 254"])
}

fn taps() -> Result<()> {
    let place = Place::new()?;
    let kernel = kernel()?;
    let refuse = |net: &str, words: &[&str]| {
        place.refuse(REFUSED, &[&"--kernel", &kernel, &"--net", &net, &"--api-socket", &"api.sock"], words)
    };
    refuse("tap=lucos-none", &["lucos-none", "does not exist", "ip tuntap add"])?;
    // Every host has this one.
    refuse("tap=lo", &["lo", "not a tap", "ip tuntap add"])?;
    let devices = process::host("ip", ["link"])?;
    ensure!(!devices.contains("lucos-none"), "an interface was made: {devices}");
    Ok(())
}

fn sockets() -> Result<()> {
    let place = Place::new()?;
    let kernel = kernel()?;
    let _listener = UnixListener::bind(place.path("busy.sock"))?;
    place.write("file.sock", "a file")?;
    for flag in ["--api-socket", "--agent"] {
        let refuse = |path: &str, words: &[&str]| {
            let mut all = vec![flag, path];
            all.extend(words);
            place.refuse(REFUSED, &[&"--kernel", &kernel, &flag, &path], &all)
        };
        refuse("busy.sock", &["listens there", "choose another path"])?;
        refuse("file.sock", &["choose another path"])?;
        refuse("no/folder.sock", &["No such file"])?;
        place.refuse(REFUSED, &[&"--kernel", &kernel, &flag, &"x".repeat(200)], &[flag, "shorter"])?;
    }
    // The socket that could be made is taken away when the other one cannot.
    let both = ["--api-socket", "new.sock", "--agent", "busy.sock"];
    place.refuse(REFUSED, &[&"--kernel", &kernel, &both[0], &both[1], &both[2], &both[3]], &["busy.sock"])?;
    let both = ["--agent", "new.sock", "--api-socket", "busy.sock"];
    place.refuse(REFUSED, &[&"--kernel", &kernel, &both[0], &both[1], &both[2], &both[3]], &["busy.sock"])
}

fn files() -> Result<()> {
    let place = Place::new()?;
    let refuse = |text: &str, words: &[&str]| {
        place.write("vm.toml", text)?;
        let mut all = vec!["vm.toml"];
        all.extend(words);
        place.refuse(REFUSED, &[&"--config", &"vm.toml"], &all)
    };
    refuse("kernel = \"k\"\nkernle = \"k\"\n", &["line 2", "kernle", "--help"])?;
    refuse("kernel = \"k\"\ncpus = 0\n", &["line 2", "1 to 254"])?;
    refuse("kernel = \"k\"\nmemory = [1]\n", &["line 2"])?;
    refuse("kernel =\n", &["line 1"])?;
    place.refuse(REFUSED, &[&"--config", &"missing.toml"], &["missing.toml", "No such file", "check"])?;
    place.refuse(REFUSED, &[&"--kernle", &"k"], &["--kernle", "--kernel"])
}

fn no_kvm() -> Result<()> {
    let place = Place::new()?;
    if !rustix::process::geteuid().is_root() {
        // Only root can become somebody without access; on the emulated hosts, we are root.
        return Ok(());
    }
    // `nobody` must reach the programs and the images, but not KVM.
    let mode = fs::metadata("/dev/kvm")?.permissions();
    fs::set_permissions("/dev/kvm", Permissions::from_mode(0o600))?;
    let mut vmm = Command::new("setpriv");
    vmm.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(images::program("lucos-vmm")?);
    vmm.arg("--kernel").arg(kernel()?);
    let refused = place.refuse_command(HOST, &mut vmm, &["/dev/kvm", "sudo"]);
    fs::set_permissions("/dev/kvm", mode)?;
    refused
}
