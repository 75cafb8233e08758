//! What the kernel says of itself.

use std::fs;
use std::path::{Path, PathBuf};

use lucos_abi::{Hello, Known, Lockdown, padded};

/// How far it is locked down (security/lockdown/lockdown.c): all levels, the one that holds in brackets.
const LOCKDOWN: &str = "sys/kernel/security/lockdown";
/// Whether it wants signatures on modules (kernel/module/signing.c).
const SIG_ENFORCE: &str = "sys/module/module/parameters/sig_enforce";
/// Whether it loads modules at all (Documentation/admin-guide/sysctl/kernel.rst, `modules_disabled` and `tainted`).
const MODULES_DISABLED: &str = "proc/sys/kernel/modules_disabled";
const TAINTED: &str = "proc/sys/kernel/tainted";

/// Taints that say something of patching, by bit (Documentation/admin-guide/tainted-kernels.rst).
const TAINTS: [(u32, &str); 6] = [
    (1, "a module was loaded by force"),
    (7, "it has oopsed"),
    (9, "it has warned of a fault"),
    (12, "a module that is not of its source was loaded"),
    (13, "a module without a trusted signature was loaded"),
    (15, "its own live patching was used"),
];

/// The running kernel, by the files below `root`.
#[derive(Debug)]
pub(crate) struct Kernel {
    root: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

impl Kernel {
    /// How far it is locked down; without securityfs nobody can tell.
    pub(crate) fn lockdown(&self) -> Lockdown {
        let text = self.read(LOCKDOWN);
        let level = text.as_deref().and_then(|text| text.split_once('[')?.1.split_once(']'));
        match level {
            Some(("none", _)) => Lockdown::None,
            Some(("integrity", _)) => Lockdown::Integrity,
            Some(("confidentiality", _)) => Lockdown::Confidentiality,
            _ => Lockdown::Unknown,
        }
    }

    /// What the host is told.
    pub(crate) fn hello(&self) -> Hello {
        Hello {
            pid: std::process::id().into(),
            lockdown: (self.lockdown() as u32).into(),
            sig_enforce: (self.flag(SIG_ENFORCE) as u32).into(),
            modules_disabled: (self.flag(MODULES_DISABLED) as u32).into(),
            taint: self.taint().into(),
            version: padded(env!("CARGO_PKG_VERSION")),
            release: padded(&rustix::system::uname().release().to_string_lossy()),
        }
    }

    /// Its taint; 0 where it cannot be read.
    pub(crate) fn taint(&self) -> u64 {
        self.read(TAINTED).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    /// The same for people, in lines.
    pub(crate) fn summary(&self) -> String {
        let hello = self.hello();
        let release = hello.release().unwrap_or("?");
        let obstacle = hello.obstacle(false).unwrap_or("nothing keeps them out, as far as the kernel tells");
        let taint = self.taint();
        let mut text = format!("kernel    {release}\nmodules   {obstacle}\ntaint     {taint}");
        let said: Vec<&str> =
            TAINTS.iter().filter(|(bit, _)| taint >> bit & 1 != 0).map(|(_, what)| *what).collect();
        if !said.is_empty() {
            text = format!("{text}: {}", said.join(", "));
        }
        format!("{text}\n")
    }

    /// Where a module's sections are listed (kernel/module/sysfs.c).
    pub(crate) fn sections(&self, module: &str) -> PathBuf {
        self.root.join("sys/module").join(module).join("sections")
    }

    fn flag(&self, path: &str) -> Known {
        match self.read(path).as_deref().map(str::trim) {
            Some("0" | "N") => Known::No,
            Some("1" | "Y") => Known::Yes,
            _ => Known::Unknown,
        }
    }

    fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A kernel with these files.
    pub(crate) fn kernel(files: &[(&str, &str)]) -> (Kernel, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (Kernel { root: folder.path().into() }, folder)
    }

    #[test]
    fn each_file_is_understood() {
        let (stock, _folder) = kernel(&[
            (LOCKDOWN, "[none] integrity confidentiality\n"),
            (SIG_ENFORCE, "N\n"),
            (MODULES_DISABLED, "0\n"),
            (TAINTED, "12288\n"),
        ]);
        let hello = stock.hello();
        assert!(hello.is_valid());
        assert_eq!((hello.lockdown(), hello.sig_enforce()), (Some(Lockdown::None), Some(Known::No)));
        assert_eq!((hello.modules_disabled(), hello.taint.get()), (Some(Known::No), 12288));
        assert_eq!(hello.obstacle(false), None);
        let summary = stock.summary();
        assert!(
            summary.contains("12288: a module that is not of its source was loaded, a module without"),
            "{summary}"
        );

        let (locked, _folder) =
            kernel(&[(LOCKDOWN, "none [integrity] confidentiality\n"), (SIG_ENFORCE, "Y\n")]);
        assert_eq!(
            (locked.lockdown(), locked.hello().sig_enforce()),
            (Lockdown::Integrity, Some(Known::Yes))
        );
        assert!(locked.summary().contains("locked down"));
    }

    #[test]
    fn what_is_not_there_is_unknown() {
        let (bare, _folder) = kernel(&[(LOCKDOWN, "nonsense")]);
        let hello = bare.hello();
        assert!(hello.is_valid());
        assert_eq!((hello.lockdown(), hello.sig_enforce()), (Some(Lockdown::Unknown), Some(Known::Unknown)));
        assert_eq!((bare.taint(), hello.obstacle(false)), (0, None));
    }
}
