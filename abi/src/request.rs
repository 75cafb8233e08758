//! What the host asks of the agent.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::text::{MODULE_NAME_BYTES, module_name};

/// Bytes of a module that is to be loaded, at most.
pub const MODULE_BYTES: u64 = 16 << 20;

/// One thing that the agent is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Request {
    /// From 1 on; answers name it.
    pub id: U32,
    /// What to do: a [`RequestKind`].
    pub kind: U32,
    /// Bytes that can be had by [`crate::Call::Read`].
    pub bytes: U64,
    /// The module's name, as text.
    pub name: [u8; MODULE_NAME_BYTES],
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RequestKind {
    /// Load the module (`finit_module(2)`).
    Load = 1,
    /// Unload it (`delete_module(2)` with `O_NONBLOCK`).
    Unload = 2,
}

impl RequestKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Load, Self::Unload];
}

impl Request {
    /// What to do.
    pub fn kind(&self) -> Option<RequestKind> {
        RequestKind::ALL.into_iter().find(|kind| *kind as u32 == self.kind.get())
    }

    /// The module's name.
    pub fn name(&self) -> Option<&str> {
        module_name(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::padded;

    #[test]
    fn kinds_and_names_are_checked() {
        let load = Request { id: 1.into(), kind: 1.into(), bytes: 0.into(), name: padded("fix") };
        assert_eq!((load.kind(), load.name()), (Some(RequestKind::Load), Some("fix")));
        let wrong = Request { kind: 3.into(), name: padded("../fix"), ..load };
        assert_eq!((wrong.kind(), wrong.name()), (None, None));
    }
}
