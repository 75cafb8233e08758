//! Addresses in a guest. A virtual one means nothing without page tables; a physical one means nothing to the guest's code.

use std::fmt;

/// A guest virtual address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gva(pub u64);

/// A guest physical address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gpa(pub u64);

impl Gva {
    /// The address `bytes` further on; past the end of the address space it begins again, as a processor computes it.
    #[must_use]
    pub fn wrapping_add(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// The address `bytes` away in either direction, as a processor computes it.
    #[must_use]
    pub fn wrapping_offset(self, bytes: i64) -> Self {
        Self(self.0.wrapping_add_signed(bytes))
    }

    /// How far this is behind `start`; `None` if it is before it.
    pub fn offset_from(self, start: Self) -> Option<u64> {
        self.0.checked_sub(start.0)
    }
}

/// Both as a debugger writes them.
macro_rules! hexadecimal {
    ($($kind:ident),*) => {$(
        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x})", stringify!($kind), self.0)
            }
        }
    )*};
}

hexadecimal!(Gva, Gpa);
