//! fio in the guest, on a raw NVMe disk.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{MEMORY_MIB, Setting};
use crate::figure::{Aim, Figure};
use crate::fio::{JOBS, Job};
use crate::guest::{Guest, insist};
use crate::samples::Samples;
use crate::vmm::{Disk, Machine, Vmm};

const VMMS: [Vmm; 2] = [Vmm::Lucos, Vmm::Q35];
const ROUNDS: usize = 2;
/// Of each job, after a second that is not counted.
const SECONDS: u16 = 4;
/// In whole: the host's page cache takes it, so that VMMs are compared and not the host's own disk.
const DISK_MIB: u64 = 256;

pub(super) fn measure(setting: &Setting) -> Result<()> {
    let disk = data_disk()?;
    let machine = machine(setting, &disk);
    write_script(&JOBS)?;
    let mut results = [vec![Vec::new(); JOBS.len()], vec![Vec::new(); JOBS.len()]];
    for round in 0..ROUNDS {
        for place in 0..VMMS.len() {
            let which = (place + round) % VMMS.len();
            let values = insist(|| run(VMMS[which], &machine))?;
            results[which].iter_mut().zip(values).for_each(|(job, value)| job.push(value));
        }
    }
    let [lucos, qemu] = results.map(|jobs| jobs.into_iter().map(Samples::of).collect::<Vec<_>>());
    for ((job, ours), theirs) in JOBS.iter().zip(&lucos).zip(&qemu) {
        Figure::median(format!("disk.{}", job.name), ours, job.counts.unit())
            .against(Vmm::Q35.name(), theirs.median())
            .aiming(Aim::RatioAtLeast(1.0))
            .print()?;
    }
    Ok(())
}

/// A disk without holes: the first write to a hole is slower than all others.
fn data_disk() -> Result<PathBuf> {
    let path = Path::new("data.img").to_owned();
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&path)?;
        let block = vec![0x5a; 1 << 20];
        (0..DISK_MIB).try_for_each(|_| std::io::Write::write_all(&mut file, &block))?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Debian's userland for its fio, but a shell for its init: nothing else runs. The command line of a kernel is too
/// short for all jobs, so the shell reads them from a third disk.
fn machine(setting: &Setting, disk: &Path) -> Machine {
    Machine {
        kernel: setting.kernel.clone(),
        cpus: 1,
        memory_mib: MEMORY_MIB,
        disks: vec![
            Disk { path: setting.image("debian.img"), readonly: true },
            Disk { path: disk.to_owned(), readonly: false },
            Disk { path: PathBuf::from("jobs.img"), readonly: true },
        ],
        cmdline: "quiet init=/bin/sh -- -c \"mount -t devtmpfs dev /dev; sh /dev/nvme2n1\"".to_owned(),
        initrd: None,
        control: None,
        traps: None,
    }
}

/// What the shell does, as a disk: padded to a whole block with empty lines.
fn write_script(jobs: &[Job]) -> Result<()> {
    let mut script = String::from(
        "mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /run\n\
         mkdir -p /dev/shm; cd /tmp\n",
    );
    for job in jobs {
        script.push_str(&job.command("/dev/nvme1n1", SECONDS));
        script.push('\n');
    }
    script.push_str("echo o > /proc/sysrq-trigger; sleep 60\n");
    let len = script.len().next_multiple_of(4096);
    script.extend(std::iter::repeat_n('\n', len - script.len()));
    std::fs::write("jobs.img", script).context("cannot write the jobs")
}

/// One value for each job.
fn run(vmm: Vmm, machine: &Machine) -> Result<Vec<f64>> {
    let mut guest = Guest::start(vmm, machine)?;
    let mut result = |job: &Job| job.result(&guest.line_with(&format!(";{};", job.name))?.text);
    let values = JOBS.iter().map(&mut result).collect::<Result<_>>()?;
    guest.off()?;
    Ok(values)
}
