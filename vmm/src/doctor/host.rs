//! What /proc, /sys and a few attempts say about the host.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::facts::{CpuFacts, Facts, Virtualization};
use super::kvm;
use crate::memory::GuestRam;
use crate::sys::{HUGE_PAGE, nested_paging};

pub(super) fn observe() -> Facts {
    Facts {
        kernel_release: line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned()),
        cpu: cpu(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        user: user(),
        kvm_modules: kvm_modules(),
        nested_paging: nested_paging(),
        kvm: kvm::observe(),
        traps: kvm::traps(),
        collapse: collapse(),
        tun: tun(),
        memory_available: memory_available(),
        max_map_count: line("/proc/sys/vm/max_map_count").and_then(|count| count.parse().ok()),
    }
}

pub(super) fn has_hardware_kvm() -> bool {
    ["/sys/module/kvm_intel", "/sys/module/kvm_amd"].iter().any(|module| Path::new(module).exists())
}

fn line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Reads the first processor of /proc/cpuinfo; all are alike in what matters here.
fn cpu(cpuinfo: &str) -> CpuFacts {
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
    };
    let flags: Vec<&str> = field("flags").split_whitespace().collect();
    let virtualization = if flags.contains(&"vmx") {
        Some(Virtualization::Vmx)
    } else if flags.contains(&"svm") {
        Some(Virtualization::Svm)
    } else {
        None
    };
    CpuFacts {
        model: field("model name").to_owned(),
        virtualization,
        is_guest: flags.contains(&"hypervisor"),
    }
}

/// The effective user's name.
fn user() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Real, effective, saved, file system (proc_pid_status(5)).
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1))
        .unwrap_or("?");
    name_of(uid, "/etc/passwd").unwrap_or_else(|| format!("user {uid}"))
}

/// The name that /etc/passwd or /etc/group has for an id.
fn name_of(id: &str, file: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let entry = text.lines().map(|line| line.split(':')).find(|entry| entry.clone().nth(2) == Some(id));
    entry?.next().map(str::to_owned)
}

/// The group that may use a device file, if its mode opens it to one.
pub(super) fn group_of(path: &str) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    // Reading and writing for the group (inode(7)).
    (metadata.mode() & 0o060 == 0o060 && metadata.gid() != 0)
        .then(|| name_of(&metadata.gid().to_string(), "/etc/group"))
        .flatten()
}

/// Modules whose name begins with kvm_; built-in ones with parameters are in /sys as well.
fn kvm_modules() -> Vec<String> {
    let entries = fs::read_dir("/sys/module").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut modules: Vec<String> = names.filter(|name| name.starts_with("kvm_")).collect();
    modules.sort();
    modules
}

/// Makes one huge page, as guest memory is made of.
fn collapse() -> Result<(), String> {
    let ram = GuestRam::new(HUGE_PAGE as u64).map_err(|error| error.to_string())?;
    ram.regions().try_for_each(|region| region.protectable().collapse(0)).map_err(|error| error.to_string())
}

fn tun() -> Result<(), String> {
    let path = Path::new("/dev/net/tun");
    OpenOptions::new().read(true).write(true).open(path).map(drop).map_err(|error| error.to_string())
}

fn memory_available() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let value = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_told_apart_by_their_flags() {
        let text = |flags: &str| format!("processor\t: 0\nmodel name\t: A: B\nflags\t\t: {flags}\n");
        assert_eq!(cpu(&text("fpu vmx")).virtualization, Some(Virtualization::Vmx));
        assert_eq!(cpu(&text("fpu svm hypervisor")).virtualization, Some(Virtualization::Svm));
        assert!(cpu(&text("fpu svm hypervisor")).is_guest);
        // A flag that only contains the name is another flag.
        assert_eq!(cpu(&text("fpu vmx_flags svm_lock")).virtualization, None);
        assert_eq!(cpu(&text("fpu")).model, "A: B");
        assert_eq!(cpu(""), CpuFacts::default());
    }

    #[test]
    fn ids_have_names() {
        assert_eq!(name_of("0", "/etc/passwd").as_deref(), Some("root"));
        assert_eq!(name_of("4294967294", "/etc/passwd"), None);
    }
}
