//! The threads of a VMM that run vCPUs.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// The thread of one vCPU.
#[derive(Debug, Clone)]
pub(crate) struct VcpuThread {
    pub(crate) id: u32,
    folder: PathBuf,
}

impl VcpuThread {
    /// All those of lucos-vmm's process `pid`, by vCPU.
    pub(crate) fn all(pid: u32, cpus: u8) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        let tasks = PathBuf::from(format!("/proc/{pid}/task"));
        let entries = fs::read_dir(&tasks).with_context(|| format!("cannot read {}", tasks.display()))?;
        for entry in entries.flatten() {
            // A thread may have ended meanwhile.
            let Ok(name) = fs::read_to_string(entry.path().join("comm")) else { continue };
            let number = name.trim().strip_prefix("vcpu").and_then(|number| number.parse::<u8>().ok());
            let id = entry.file_name().to_string_lossy().parse::<u32>();
            if let (Some(number), Ok(id)) = (number, id) {
                found.push((number, Self { id, folder: entry.path() }));
            }
        }
        found.sort_by_key(|(number, _)| *number);
        ensure!(found.len() == usize::from(cpus), "{} threads of {cpus} vCPUs", found.len());
        Ok(found.into_iter().map(|(_, thread)| thread).collect())
    }

    /// The processor time that it has had, for the guest and outside of it (Documentation/scheduler/sched-stats.rst).
    pub(crate) fn processor_time(&self) -> Result<Duration> {
        let path = self.folder.join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let first = text.split_whitespace().next().with_context(|| format!("{} is empty", path.display()))?;
        Ok(Duration::from_nanos(first.parse()?))
    }
}
