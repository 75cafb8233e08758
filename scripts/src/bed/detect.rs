//! Whether this machine is itself a KVM host that can run stock guests.

use std::fs::{self, File};

use super::Cpu;

/// What this machine offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Local {
    /// Stock guests run here.
    Usable(Cpu),
    /// They do not, for this reason.
    Unusable(String),
}

/// Looks at this machine's processor and at `/dev/kvm`.
pub(super) fn local() -> Local {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let access = File::options().read(true).write(true).open("/dev/kvm").map(drop);
    judge(&cpuinfo, access.map_err(|error| error.to_string()))
}

/// Having `/dev/kvm` alone proves nothing: a software KVM has the device, but no VMX or SVM, and runs the kernel
/// of a stock guest at a crawl or not at all.
fn judge(cpuinfo: &str, access: Result<(), String>) -> Local {
    let Some(cpu) = vendor(cpuinfo) else {
        return Local::Unusable("its processor has neither VMX nor SVM".to_owned());
    };
    match access {
        Ok(()) => Local::Usable(cpu),
        Err(error) => Local::Unusable(format!("/dev/kvm cannot be opened ({error})")),
    }
}

/// Reads which of the two virtualisation extensions `/proc/cpuinfo` lists.
fn vendor(cpuinfo: &str) -> Option<Cpu> {
    let flags = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "flags").then_some(value)
    })?;
    flags.split_ascii_whitespace().find_map(|flag| match flag {
        "vmx" => Some(Cpu::Intel),
        "svm" => Some(Cpu::Amd),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpuinfo(flags: &str) -> String {
        format!(
            "processor\t: 0\nmodel name\t: svm vmx\nflags\t\t: fpu {flags} sse\nvmx flags\t: vnmi\nbugs\t\t:\n"
        )
    }

    #[test]
    fn the_flag_decides_not_the_vendor_or_another_line() {
        assert_eq!(vendor(&cpuinfo("svm")), Some(Cpu::Amd));
        assert_eq!(vendor(&cpuinfo("vmx")), Some(Cpu::Intel));
        assert_eq!(vendor(&cpuinfo("vmmcall svm_lock")), None);
        assert_eq!(vendor(""), None);
    }

    #[test]
    fn both_the_flag_and_the_device_are_needed() {
        assert_eq!(judge(&cpuinfo("svm"), Ok(())), Local::Usable(Cpu::Amd));
        assert!(matches!(judge(&cpuinfo(""), Ok(())), Local::Unusable(why) if why.contains("neither")));
        let refused = judge(&cpuinfo("vmx"), Err("Permission denied".to_owned()));
        assert!(matches!(refused, Local::Unusable(why) if why.contains("Permission denied")));
    }
}
