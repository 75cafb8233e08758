//! Whether a patch's module is unused at this moment: nobody is in its code, and nobody has a reference to it but itself.
//!
//! A module of a patch counts itself as a user when it is loaded, so that nobody unloads it. The host takes that back, as
//! `module_put` would, when it knows that nobody can come to the code any more; then the kernel unloads it as any other.

use std::ops::Range;

use super::stack_check::{Presence, Watched};
use crate::addr::Gva;
use crate::census::Census;
use crate::guest::Memory;
use crate::journal::Edit;
use crate::kernel::modules::Module;
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;

/// What a loaded module's count is if nobody uses it: `MODULE_REF_BASE` (`kernel/module/main.c`). 0 is that of one on its way
/// out.
const UNUSED: u32 = 1;

/// How often the guest's kernel says that a module is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    at: Gva,
    value: u32,
}

impl Count {
    /// Reads it; `None` if the kernel counts no users, because it unloads no modules (`CONFIG_MODULE_UNLOAD`).
    pub fn read(kernel: &Running<'_, impl Memory>, module: &Module) -> Result<Option<Self>, ReadError> {
        let Some(offset) = kernel.model().layout.module_count else { return Ok(None) };
        let at = module.address().wrapping_add(offset);
        Ok(Some(Self { at, value: kernel.space().u32(at)? }))
    }

    /// Users; `None` if it is on its way out.
    pub fn users(self) -> Option<u32> {
        self.value.checked_sub(UNUSED)
    }

    /// One user more, or one less.
    pub fn edit(self, more: bool) -> Edit {
        let after = if more { self.value.wrapping_add(1) } else { self.value.wrapping_sub(1) };
        Edit { at: self.at, before: self.value.to_le_bytes().to_vec(), after: after.to_le_bytes().to_vec() }
    }
}

/// Who is in the code at `texts`, or will come back to it, by a stub of a redirected return too.
pub fn presence<M: Memory>(
    kernel: &Running<'_, M>,
    census: &Census,
    name: &str,
    texts: &[Range<Gva>],
) -> Presence {
    let watched: Vec<_> = texts.iter().map(|text| Watched::Code(name.to_owned(), text.clone())).collect();
    Presence::of(kernel, census, &watched)
}
