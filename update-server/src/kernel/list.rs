//! The kernel's circular lists (`struct list_head`, `include/linux/types.h`): a head, and nodes that begin with the next one's
//! address.

use std::collections::HashSet;

use super::space::{AddressSpace, ReadError};
use crate::addr::Gva;
use crate::guest::Memory;

/// How a walk over a list ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// At its head.
    Head,
    /// At a node that it had been at: what comes twice comes for ever.
    Circle,
    /// Where the visitor had seen enough.
    Enough,
}

/// Calls `visit` with each node of the list at `head`, as long as it answers `true`.
pub(crate) fn walk(
    space: &AddressSpace<'_, impl Memory>,
    head: Gva,
    mut visit: impl FnMut(Gva) -> Result<bool, ReadError>,
) -> Result<End, ReadError> {
    let mut seen = HashSet::new();
    let mut link = space.pointer(head)?;
    while link != head {
        if !seen.insert(link) {
            return Ok(End::Circle);
        }
        if !visit(link)? {
            return Ok(End::Enough);
        }
        link = space.pointer(link)?;
    }
    Ok(End::Head)
}
