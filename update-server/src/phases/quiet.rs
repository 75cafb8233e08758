//! Whether the guest is in the middle of changing its own text.
//!
//! Whoever changes text reads it first, prepares, and writes in several steps. A change of ours in between would be overwritten,
//! or copied as if it were the kernel's.

use crate::addr::Gva;
use crate::guest::Memory;
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;
use crate::kernel::text_locks::Unclear;

/// Flags of a lock in its owner's address.
const FLAGS: u64 = 7;

/// Why it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuietError {
    /// Which the locks are.
    #[error(transparent)]
    Unclear(#[from] Unclear),
    /// Who has them.
    #[error(transparent)]
    Unreadable(#[from] ReadError),
}

/// The task that holds `text_mutex` or `kprobe_mutex`, if one does. In between is nothing that lasts: one who waits for it asks
/// again a moment later.
pub fn text_changer(kernel: &Running<'_, impl Memory>) -> Result<Option<Gva>, QuietError> {
    let model = kernel.model();
    for &lock in model.text_locks()? {
        let owner = kernel.space().u64(kernel.now(lock).wrapping_add(model.layout.lock_owner))? & !FLAGS;
        if owner != 0 {
            return Ok(Some(Gva(owner)));
        }
    }
    Ok(None)
}
