//! Whether the kernel is locked down.

use super::running::Running;
use super::space::ReadError;
use crate::guest::Memory;

/// Whether it is: then its user space may use no I/O port, whoever it is, so that no agent can reach the host.
///
/// By `kernel_locked_down` (`security/lockdown/lockdown.c`, 6.1 and 6.12): which of the kinds of lockdown there is, 0 if none. A
/// kernel that does not have it is never locked down.
pub fn is_locked_down(kernel: &Running<'_, impl Memory>) -> Result<bool, ReadError> {
    match kernel.model().image().symbols().only("kernel_locked_down") {
        Some(symbol) => Ok(kernel.space().u32(kernel.now(symbol.address))? != 0),
        None => Ok(false),
    }
}
