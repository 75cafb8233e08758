//! The guest's kprobes, out of its memory (kernel/kprobes.c).

use super::running::Running;
use super::space::ReadError;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::limits::PROBES;

/// Lists of the kernel's table (`KPROBE_TABLE_SIZE`).
const LISTS: u64 = 64;

/// A probe that the guest says it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// The instruction that it is on.
    pub at: Gva,
}

/// Every probe in the kernel's table, by address; none in a kernel that has no kprobes.
pub fn probes(kernel: &Running<'_, impl Memory>) -> Result<Vec<Probe>, ReadError> {
    let Some((table, address)) = kernel.model().probes else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for list in 0..LISTS {
        // `struct hlist_head` and `hlist_node` begin with the pointer to the next node; a probe begins with its node.
        let mut node = kernel.space().pointer(kernel.now(table).wrapping_add(list * 8))?;
        while node.0 != 0 && found.len() < PROBES {
            found.push(Probe { at: kernel.space().pointer(node.wrapping_add(address))? });
            node = kernel.space().pointer(node)?;
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}
