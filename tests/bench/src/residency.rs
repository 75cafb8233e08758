//! How much memory a VMM takes, and by what pages the guest's is mapped.

use anyhow::{Context, Result};

use crate::smaps::{self, Mapping};

/// The name of lucos-vmm's guest memory.
const LUCOS_RAM: &str = "/memfd:lucos-guest-ram";

/// What a VMM has in memory, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Residency {
    /// Everything but guest memory: code, heap, stacks, libraries.
    pub(crate) beyond_guest: u32,
    /// Guest memory, in the mapping that has most of it.
    pub(crate) guest: u32,
    /// Of that, mapped by huge pages.
    pub(crate) guest_huge: u32,
}

impl Residency {
    /// Of the process `pid`, whose guest has `memory_mib`.
    pub(crate) fn of(pid: u32, memory_mib: u32) -> Result<Self> {
        Self::sum(&smaps::of(pid)?, memory_mib).with_context(|| format!("in the mappings of process {pid}"))
    }

    /// Guest memory is a mapping of our memfd, or one that is exactly as large as the guest's memory: QEMU maps it
    /// in one piece, with guard pages around it.
    fn sum(mappings: &[Mapping], memory_mib: u32) -> Result<Self> {
        let is_guest =
            |mapping: &&Mapping| mapping.name.starts_with(LUCOS_RAM) || mapping.size == memory_mib << 10;
        let guest = mappings.iter().filter(is_guest).max_by_key(|mapping| mapping.rss);
        let guest = guest.context("there is no guest memory")?;
        let beyond = mappings.iter().filter(|mapping| !is_guest(mapping)).map(|mapping| mapping.rss);
        Ok(Self { beyond_guest: beyond.sum(), guest: guest.rss, guest_huge: guest.huge })
    }
}

/// The share that `part` has beside `rest`.
pub(crate) fn share(part: u32, rest: u32) -> f64 {
    if part == 0 { 0.0 } else { f64::from(part) / (f64::from(part) + f64::from(rest)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(name: &str, size: u32, rss: u32, huge: u32) -> Mapping {
        Mapping { name: name.to_owned(), size, rss, huge }
    }

    #[test]
    fn guest_memory_is_left_out_however_it_is_mapped() {
        let ours = [
            mapping("/bin/lucos-vmm", 4000, 2000, 0),
            mapping("/memfd:lucos-guest-ram (deleted)", 1024, 512, 256),
            mapping("/memfd:lucos-guest-ram (deleted)", 1024, 300, 0),
            mapping("[heap]", 200, 100, 0),
        ];
        let sum = Residency::sum(&ours, 1).unwrap();
        assert_eq!(sum, Residency { beyond_guest: 2100, guest: 512, guest_huge: 256 });
        let qemu = [mapping("", 2048, 1000, 0), mapping("/lib/x.so", 512, 30, 0)];
        assert_eq!(Residency::sum(&qemu, 2).unwrap().beyond_guest, 30);
        assert!(Residency::sum(&qemu, 4).is_err());
    }

    #[test]
    fn shares() {
        assert_eq!((share(0, 0), share(512, 0), share(512, 1536)), (0.0, 1.0, 0.25));
    }
}
