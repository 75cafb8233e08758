//! What is measured, in groups that can be asked for.

mod arm;
mod boot;
mod census;
mod disk;
mod memory;
mod patch;
mod pause;
mod programmed;
mod sleepers;
mod trap;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::vmm::{Disk, Machine};

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// From start to init.
    Boot,
    /// Memory beyond the guest's, and huge pages.
    Memory,
    /// fio in the guest.
    Disk,
    /// Exits, and stopping vCPUs.
    Pause,
    /// Looking at every kernel stack.
    Census,
    /// Applying patches, and rolling them back.
    Patch,
    /// Accesses to watched pages.
    Trap,
    /// Beginning and ending to watch pages, and a guest beside pages that it does not touch.
    Arm,
}

impl Group {
    /// Those asked for, each once; all when none is asked for.
    pub(crate) fn chosen(asked: &[Self]) -> Vec<Self> {
        let all = Self::value_variants().iter();
        all.filter(|group| asked.is_empty() || asked.contains(group)).copied().collect()
    }

    /// Measures it and prints its figures.
    pub(crate) fn measure(self, setting: &Setting) -> Result<()> {
        match self {
            Self::Boot => boot::measure(setting),
            Self::Memory => memory::measure(setting),
            Self::Disk => disk::measure(setting),
            Self::Pause => pause::measure(setting),
            Self::Census => census::measure(setting),
            Self::Patch => patch::measure(setting),
            Self::Trap => trap::measure(setting),
            Self::Arm => arm::measure(setting),
        }
    }
}

/// Memory of every guest.
const MEMORY_MIB: u32 = 512;

/// What all groups share: images, and a folder to work in.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Rounds of each figure that is a median of rounds.
    rounds: u16,
    images: PathBuf,
    kernel: PathBuf,
    tiny: PathBuf,
}

impl Setting {
    /// Copies what every guest reads into the working folder: in an emulated host the images themselves are on the
    /// outer machine.
    pub(crate) fn prepare(rounds: u16) -> Result<Self> {
        let images = PathBuf::from(std::env::var_os("LUCOS_IMAGES").context(
            "LUCOS_IMAGES is not set: this program is started by `cargo xtask bench` on a KVM host",
        )?);
        let copy = |name: &str| -> Result<PathBuf> {
            fs::copy(images.join(name), name).with_context(|| format!("cannot copy the image {name}"))?;
            Ok(PathBuf::from(name))
        };
        let (kernel, tiny) = (copy("vmlinuz-6.1-cloud")?, copy("tiny.img")?);
        Ok(Self { rounds, images, kernel, tiny })
    }

    /// A machine that boots the tiny guest, whose init runs `command`.
    fn tiny(&self, command: &str) -> Machine {
        Machine {
            kernel: self.kernel.clone(),
            cpus: 1,
            memory_mib: MEMORY_MIB,
            disks: vec![Disk { path: self.tiny.clone(), readonly: false }],
            // The kernel takes the quotes away and hands the rest to init as a variable.
            cmdline: format!("LUCOS_RUN=\"{command}\""),
            initrd: None,
            control: None,
            traps: None,
        }
    }

    fn image(&self, name: &str) -> PathBuf {
        self.images.join(name)
    }
}

/// Removes what an earlier VMM may have left at `socket`.
fn fresh_socket(socket: &Path) {
    // Usually there is nothing.
    let _ = fs::remove_file(socket);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_come_once_and_in_order() {
        assert_eq!(Group::chosen(&[Group::Pause, Group::Boot, Group::Boot]), [Group::Boot, Group::Pause]);
        assert_eq!(Group::chosen(&[]).len(), 8);
    }
}
