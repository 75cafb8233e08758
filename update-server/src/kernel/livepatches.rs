//! Functions that the guest's kernel has live-patched by itself (`kernel/livepatch/patch.c`, 6.1 and 6.12).
//!
//! Its own way is a redirection by ftrace at the function's very beginning, so that what is behind is not run at all.

use super::list::{self, Cut, Listed};
use super::running::Running;
use super::space::ReadError;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::Btf;
use crate::limits::LIVEPATCHES;

/// Where a kernel keeps them.
#[derive(Debug)]
pub(crate) struct LivepatchLayout {
    /// The list of all `struct klp_ops`, one for each function.
    list: Gva,
    node: u64,
    /// The versions of one function, newest first.
    versions: u64,
    version_node: u64,
    /// Where the original is.
    original: u64,
}

impl LivepatchLayout {
    /// As the kernel's types have it; `None` if it was built without.
    pub(super) fn of(types: &Btf, symbol: impl Fn(&str) -> Option<Gva>) -> Option<Self> {
        let offset = |structure, member| types.offset(structure, member).ok();
        Some(Self {
            list: symbol("klp_ops")?,
            node: offset("klp_ops", "node")?,
            versions: offset("klp_ops", "func_stack")?,
            version_node: offset("klp_func", "stack_node")?,
            original: offset("klp_func", "old_func")?,
        })
    }
}

/// Where the originals of all functions are that the guest has patched by itself.
pub fn livepatched(kernel: &Running<'_, impl Memory>) -> Result<Listed<Gva>, ReadError> {
    let Some(layout) = &kernel.model().livepatches else { return Ok(Listed::nothing()) };
    let space = kernel.space();
    let mut functions = Vec::new();
    let cut = Cut { what: "functions with livepatches", limit: LIVEPATCHES };
    let cut = list::walk_within(space, kernel.now(layout.list), cut, |node| {
        let versions = Gva(node.0.wrapping_sub(layout.node)).wrapping_add(layout.versions);
        let first = space.pointer(versions)?;
        // Between two steps of the guest's there may be none.
        if first != versions {
            let version = Gva(first.0.wrapping_sub(layout.version_node));
            functions.push(space.pointer(version.wrapping_add(layout.original))?);
        }
        Ok(())
    })?;
    Ok(Listed { entries: functions, cut })
}
