//! What a function is a part of: the kernel's image, or one of its modules.

use std::ops::Range;
use std::sync::Arc;

use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::{Image, JumpLabel, Site, SiteKind, Sites, Symbols};
use crate::kernel::modules::Module;
use crate::kernel::running::Running;
use crate::x86::{INT3, NOP};

/// Code as it is searched for a place. Addresses are those that its symbols have.
pub(super) trait Object {
    /// Its symbols.
    fn symbols(&self) -> &Symbols;
    /// The places of its text that may change.
    fn sites(&self) -> &Sites;
    /// `len` bytes, as they are when nobody has changed them.
    fn bytes(&self, at: Gva, len: usize) -> Option<&[u8]>;
    /// The code of the function that begins at `start`, without what it is filled up with: INT3, NOPs, or nothing. `None` if it
    /// is not in the text that stays.
    fn text_of(&self, start: Gva) -> Option<Range<Gva>>;
    /// Whether `site` is the NOP of ftrace at a function's beginning.
    fn is_tracers(&self, site: &Site) -> bool;
    /// Where the static key at `at` leads, if that is certain.
    fn key(&self, at: Gva) -> Option<JumpLabel>;
}

impl Object for Image {
    fn symbols(&self) -> &Symbols {
        self.symbols()
    }

    fn sites(&self) -> &Sites {
        self.sites()
    }

    fn bytes(&self, at: Gva, len: usize) -> Option<&[u8]> {
        self.bytes(at, len)
    }

    fn text_of(&self, start: Gva) -> Option<Range<Gva>> {
        let (_, section, len) = self.sections().find(|(name, section, len)| {
            *name == ".text" && start.offset_from(*section).is_some_and(|offset| offset < *len as u64)
        })?;
        let limit = section.wrapping_add(len as u64);
        let (_, next) = self.symbols().function(start)?;
        let end = next.unwrap_or(limit).min(limit);
        let code = self.bytes(start, usize::try_from(end.0 - start.0).ok()?)?;
        Some(without_filler(start, code))
    }

    fn is_tracers(&self, site: &Site) -> bool {
        site.kind == SiteKind::Ftrace
    }

    fn key(&self, at: Gva) -> Option<JumpLabel> {
        let labels = self.sites().jump_labels();
        let label = labels.get(labels.partition_point(|label| label.code < at))?;
        (label.code == at).then_some(*label)
    }
}

/// Whether functions are filled up with it: INT3 since 5.8, and single-byte NOPs in hand-written code.
pub(super) fn is_filler(byte: u8) -> bool {
    matches!(byte, INT3 | NOP)
}

/// Where the `code` at `start` is, without what it is filled up with.
pub(super) fn without_filler(start: Gva, code: &[u8]) -> Range<Gva> {
    let used = code.iter().rposition(|&byte| !is_filler(byte)).map_or(0, |last| last + 1);
    start..start.wrapping_add(used as u64)
}

/// What the addresses of a function mean.
#[derive(Debug, Clone)]
pub enum Home {
    /// It is in the image: its addresses are those that it was linked for.
    Image,
    /// It is in a module: its addresses are those in the guest.
    Module(Box<ModuleHome>),
}

/// A function's module, and what was read of it when the function was found.
#[derive(Debug, Clone)]
pub struct ModuleHome {
    /// The module.
    pub(super) module: Arc<Module>,
    /// Where `code` begins.
    pub(super) start: Gva,
    /// The function: the patch's bytes, and in their holes what the guest has there.
    pub(super) code: Vec<u8>,
    /// The module's sites.
    pub(super) sites: Arc<Sites>,
}

impl Home {
    /// The module, if it is in one.
    pub fn module(&self) -> Option<&Arc<Module>> {
        match self {
            Self::Image => None,
            Self::Module(home) => Some(&home.module),
        }
    }

    /// Where in the guest something is whose address is `at` here.
    pub fn now(&self, kernel: &Running<'_, impl Memory>, at: Gva) -> Gva {
        match self {
            Self::Image => kernel.now(at),
            Self::Module(_) => at,
        }
    }

    /// The address here of something that is at `now` in the guest.
    pub fn here(&self, kernel: &Running<'_, impl Memory>, now: Gva) -> Gva {
        match self {
            Self::Image => kernel.linked(now),
            Self::Module(_) => now,
        }
    }

    /// The `len` bytes at `at` when nobody has changed them; `None` if that is not known.
    pub(crate) fn original(&self, kernel: &Running<'_, impl Memory>, at: Gva, len: usize) -> Option<Vec<u8>> {
        match self {
            Self::Image => kernel.model().image().moved_bytes(at, len, kernel.place().distance),
            Self::Module(home) => {
                let from = usize::try_from(at.offset_from(home.start)?).ok()?;
                home.code.get(from..from.checked_add(len)?).map(<[u8]>::to_vec)
            }
        }
    }

    /// Whether the kernel itself may have changed the byte at `at`.
    pub(super) fn may_differ(&self, kernel: &Running<'_, impl Memory>, at: Gva) -> bool {
        let sites = match self {
            Self::Image => kernel.model().image().sites(),
            Self::Module(home) => &home.sites,
        };
        sites.rewritten_at(at).is_some()
    }
}
