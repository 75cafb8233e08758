//! Whether the guest is in the middle of changing its own text.
//!
//! Whoever changes text reads it first, prepares, and writes in several steps. A change of ours in between would be overwritten,
//! or copied as if it were the kernel's.

use crate::addr::Gva;
use crate::guest::Memory;
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;

/// Flags of a lock in its owner's address.
const FLAGS: u64 = 7;

/// The task that holds `text_mutex` or `kprobe_mutex`, if one does. In between is nothing that lasts: one who waits for it asks
/// again a moment later.
pub fn text_changer(kernel: &Running<'_, impl Memory>) -> Result<Option<Gva>, ReadError> {
    let model = kernel.model();
    for lock in model.symbols.text_locks.into_iter().flatten() {
        let owner = kernel.space().u64(kernel.now(lock).wrapping_add(model.layout.lock_owner))? & !FLAGS;
        if owner != 0 {
            return Ok(Some(Gva(owner)));
        }
    }
    Ok(None)
}
