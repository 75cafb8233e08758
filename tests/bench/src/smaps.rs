//! What a process has in memory, by mapping: `/proc/PID/smaps` (proc(5)).

use std::fs;

use anyhow::{Context, Result};

/// One mapping; sizes in KiB.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) name: String,
    pub(crate) size: u32,
    pub(crate) rss: u32,
    /// Mapped by huge pages: anonymous memory, or memory of a file in a tmpfs or memfd.
    pub(crate) huge: u32,
}

/// All mappings of a process.
pub(crate) fn of(pid: u32) -> Result<Vec<Mapping>> {
    let path = format!("/proc/{pid}/smaps");
    Ok(parse(&fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?))
}

fn parse(text: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        match first.strip_suffix(':') {
            None => {
                // address, permissions, offset, device, inode, name
                let name = words.skip(4).collect::<Vec<_>>().join(" ");
                mappings.push(Mapping { name, ..Mapping::default() });
            }
            Some(key) => {
                let Some(mapping) = mappings.last_mut() else { continue };
                let value = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
                match key {
                    "Size" => mapping.size = value,
                    "Rss" => mapping.rss = value,
                    "AnonHugePages" | "ShmemPmdMapped" => mapping.huge += value,
                    _ => {}
                }
            }
        }
    }
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
555555554000-555555581000 r--p 00000000 fe:00 1234   /usr/bin/lucos vmm
Size:                180 kB
KernelPageSize:        4 kB
Rss:                 172 kB
AnonHugePages:         0 kB
VmFlags: rd mr mw me
7ffc00000000-7ffc20000000 rw-s 00000000 00:01 7      /memfd:lucos-guest-ram (deleted)
Size:             524288 kB
Rss:               61440 kB
AnonHugePages:         0 kB
ShmemPmdMapped:    40960 kB
7fff00000000-7fff00021000 rw-p 00000000 00:00 0
Size:                132 kB
Rss:                  12 kB
";

    #[test]
    fn mappings_are_told_apart() {
        let mappings = parse(TEXT);
        assert_eq!(mappings.len(), 3);
        assert_eq!(mappings[0].name, "/usr/bin/lucos vmm");
        assert_eq!((mappings[0].size, mappings[0].rss), (180, 172));
        assert_eq!((mappings[1].rss, mappings[1].huge), (61440, 40960));
        assert_eq!((mappings[2].name.as_str(), mappings[2].rss), ("", 12));
    }
}
