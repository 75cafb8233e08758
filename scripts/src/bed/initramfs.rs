//! The initramfs of an emulated host: BusyBox, the modules that the host needs, and `init.sh`.
//!
//! Debian's own initramfs would do, and take three times as long: it looks for disks and waits for udev.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::Cpu;
use crate::cache::Inputs;
use crate::command::{command, path_with_sbin};
use crate::cpio::Archive;
use crate::kernels::Kernel;

/// The first process of the host.
const INIT: &str = include_str!("init.sh");

/// What an initramfs is for.
#[derive(Debug)]
pub(super) struct Recipe<'a> {
    /// Which of the two hosts.
    pub(super) machine: Cpu,
    /// Its kernel.
    pub(super) kernel: &'a Kernel,
    /// Modules to load, besides those that every host needs.
    pub(super) modules: &'a [&'a str],
    /// 9p shares that every run has.
    pub(super) tags: &'a [&'a str],
}

/// Needed on both hosts. `crc32c` is not seen by depmod: ext4 asks for it by its algorithm's name.
const COMMON: [&str; 4] = ["crc32c_generic", "ext4", "overlay", "tun"];

impl Recipe<'_> {
    fn machine_name(&self) -> &'static str {
        match self.machine {
            Cpu::Amd => "amd",
            Cpu::Intel => "intel",
        }
    }

    fn kvm(&self) -> &'static str {
        match self.machine {
            Cpu::Amd => "kvm_amd",
            Cpu::Intel => "kvm_intel",
        }
    }

    /// All that the result depends on, for the cache.
    pub(super) fn inputs(&self) -> Result<Inputs> {
        let busybox = fs::metadata(BUSYBOX).with_context(|| format!("cannot find {BUSYBOX}"))?;
        Ok(Inputs::new()
            .with("init", INIT)
            .with("machine", self.machine_name())
            .with("kernel", format!("{} {}", self.kernel.release, self.kernel.version))
            .with("modules", self.modules.join(" "))
            .with("tags", self.tags.join(" "))
            .with("busybox", format!("{} {:?}", busybox.len(), busybox.modified().ok())))
    }

    /// Builds the archive.
    pub(super) fn build(&self) -> Result<Vec<u8>> {
        let busybox = fs::read(BUSYBOX).with_context(|| format!("cannot read {BUSYBOX}"))?;
        if is_dynamic(&busybox) {
            bail!(
                "{BUSYBOX} needs shared libraries, which the host's initramfs has not; install busybox-static"
            );
        }
        let mut archive = Archive::new(Vec::new());
        for folder in ["bin", "dev", "bed", "bed/modules"] {
            archive.folder(folder)?;
        }
        // The console is opened before init runs and could make it itself.
        archive.character_device("dev/console", 0o600, 5, 1)?;
        archive.file("bin/busybox", 0o755, &busybox)?;
        archive.file("init", 0o755, INIT.as_bytes())?;
        archive.file("bed/machine", 0o644, self.machine_name().as_bytes())?;
        let tags = self.tags.join("\n") + "\n";
        archive.file("bed/tags", 0o644, tags.as_bytes())?;
        let mut there = Vec::new();
        for (list, names) in
            [("order", [&COMMON[..], self.modules].concat()), ("order.kvm", vec![self.kvm()])]
        {
            let mut order = String::new();
            for path in self.kernel.module_files(&names)? {
                let (name, contents) = read_module(&path)?;
                order.push_str(&name);
                order.push('\n');
                if !there.contains(&name) {
                    archive.file(&format!("bed/modules/{name}"), 0o644, &contents)?;
                    there.push(name);
                }
            }
            archive.file(&format!("bed/{list}"), 0o644, order.as_bytes())?;
        }
        archive.finish()
    }
}

const BUSYBOX: &str = "/bin/busybox";

/// Whether a 64-bit ELF program has an interpreter (`PT_INTERP`, elf(5)), that is, shared libraries.
fn is_dynamic(elf: &[u8]) -> bool {
    const PT_INTERP: [u8; 4] = 3_u32.to_le_bytes();
    let half = |at: usize| {
        elf.get(at..at + 2).map_or(0, |bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])))
    };
    // The table is where e_phoff says; its low half is enough for any real program.
    let (table, size, count) = (half(0x20) | half(0x22) << 16, half(0x36), half(0x38));
    (0..count)
        .any(|index| elf.get(table + index * size..).is_some_and(|header| header.starts_with(&PT_INTERP)))
}

/// A module's name and unpacked contents: BusyBox cannot load the packed modules of 6.12.
fn read_module(path: &Path) -> Result<(String, Vec<u8>)> {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let program = match path.extension().and_then(OsStr::to_str) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => {
            return Ok((
                name.to_owned(),
                fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
            ));
        }
    };
    let output = command(program).env("PATH", path_with_sbin()).arg("-dc").arg(path).output();
    let output = output.with_context(|| format!("cannot start {program}, which unpacks modules"))?;
    if !output.status.success() {
        bail!(
            "{program} cannot unpack {}: {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok((name.trim_end_matches(".xz").trim_end_matches(".zst").to_owned(), output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_an_interpreter_is_dynamic() {
        assert!(is_dynamic(&fs::read("/proc/self/exe").unwrap()));
        assert!(!is_dynamic(b"\x7fELF"));
    }
}
