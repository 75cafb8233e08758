//! What KVM itself counts of a VM (debugfs).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::residency::share;

/// Base pages in a huge page.
const PER_HUGE: u32 = 512;

/// The counters of one VM; those of vCPUs are the sum of all.
#[derive(Debug, Clone)]
pub(crate) struct KvmStats(PathBuf);

impl KvmStats {
    /// Those of the VM of the process `pid`.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let root = Path::new("/sys/kernel/debug/kvm");
        let entries = fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))?;
        entries
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{pid}-")))
            .map(|entry| Self(entry.path()))
            .with_context(|| format!("process {pid} has no VM in {}", root.display()))
    }

    /// One of them, by its name.
    pub(crate) fn count(&self, name: &str) -> Result<u64> {
        let path = self.0.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.trim().parse()?)
    }

    /// The share of guest memory that KVM maps by huge pages, of what it maps.
    pub(crate) fn huge_share(&self) -> Result<f64> {
        let count = |name| -> Result<u32> { Ok(u32::try_from(self.count(name)?)?) };
        Ok(share(count("pages_2m")? * PER_HUGE, count("pages_4k")?))
    }
}
