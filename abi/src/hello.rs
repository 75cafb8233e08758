//! Who the agent is, and what its kernel allows.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::text::text;

/// What an agent says of itself and of its kernel. All of it is an allegation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Hello {
    /// Its process.
    pub pid: U32,
    /// How far the kernel is locked down: a [`Lockdown`].
    pub lockdown: U32,
    /// Whether the kernel loads only modules with a signature that it trusts: a [`Known`].
    pub sig_enforce: U32,
    /// Whether the kernel loads no modules any more: a [`Known`].
    pub modules_disabled: U32,
    /// The kernel's taint (Documentation/admin-guide/tainted-kernels.rst).
    pub taint: U64,
    /// The agent's version, as text.
    pub version: [u8; 32],
    /// The kernel's release, as text: `uname -r`.
    pub release: [u8; 64],
}

/// How far a kernel is locked down (`enum lockdown_reason` of include/linux/security.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Lockdown {
    /// Not at all.
    None = 0,
    /// Nobody can change the running kernel.
    Integrity = 1,
    /// Nor read its secrets.
    Confidentiality = 2,
    /// It could not be found out.
    Unknown = 3,
}

/// Something that may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Known {
    /// It does not.
    No = 0,
    /// It does.
    Yes = 1,
    /// It could not be found out.
    Unknown = 2,
}

impl Lockdown {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Integrity, Self::Confidentiality, Self::Unknown];
}

impl Known {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::No, Self::Yes, Self::Unknown];
}

impl Hello {
    /// How far the kernel is locked down.
    pub fn lockdown(&self) -> Option<Lockdown> {
        Lockdown::ALL.into_iter().find(|each| *each as u32 == self.lockdown.get())
    }

    /// Whether the kernel wants signatures on modules.
    pub fn sig_enforce(&self) -> Option<Known> {
        known(self.sig_enforce)
    }

    /// Whether the kernel loads no modules any more.
    pub fn modules_disabled(&self) -> Option<Known> {
        known(self.modules_disabled)
    }

    /// The agent's version.
    pub fn version(&self) -> Option<&str> {
        text(&self.version).filter(|text| !text.is_empty())
    }

    /// The kernel's release.
    pub fn release(&self) -> Option<&str> {
        text(&self.release).filter(|text| !text.is_empty())
    }

    /// Whether every field has a value that it can have.
    pub fn is_valid(&self) -> bool {
        self.lockdown().is_some()
            && self.sig_enforce().is_some()
            && self.modules_disabled().is_some()
            && self.version().is_some()
            && self.release().is_some()
    }

    /// Why the kernel will not load a module, as a sentence, if it is known already; `signed` says whether the module has a
    /// signature of its own.
    pub fn obstacle(&self, signed: bool) -> Option<&'static str> {
        if self.modules_disabled() == Some(Known::Yes) {
            return Some(
                "the guest's kernel loads no module until its next boot (kernel.modules_disabled is 1)",
            );
        }
        if signed {
            return None;
        }
        if matches!(self.lockdown(), Some(Lockdown::Integrity | Lockdown::Confidentiality)) {
            return Some(
                "the guest's kernel is locked down and loads only modules with a signature that it trusts",
            );
        }
        (self.sig_enforce() == Some(Known::Yes)).then_some(
            "the guest's kernel loads only modules with a signature that it trusts (module.sig_enforce is set)",
        )
    }
}

fn known(field: U32) -> Option<Known> {
    Known::ALL.into_iter().find(|each| *each as u32 == field.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::padded;

    fn hello() -> Hello {
        Hello {
            pid: 1.into(),
            lockdown: 0.into(),
            sig_enforce: 0.into(),
            modules_disabled: 0.into(),
            taint: 0.into(),
            version: padded("0.1.0"),
            release: padded("6.1.0-56-cloud-amd64"),
        }
    }

    #[test]
    fn a_field_with_an_impossible_value_is_found() {
        assert!(hello().is_valid());
        let wrong = [
            Hello { lockdown: 4.into(), ..hello() },
            Hello { sig_enforce: 3.into(), ..hello() },
            Hello { modules_disabled: u32::MAX.into(), ..hello() },
            Hello { version: [0; 32], ..hello() },
            Hello { release: [0xff; 64], ..hello() },
        ];
        assert!(wrong.iter().all(|hello| !hello.is_valid()));
    }

    #[test]
    fn what_keeps_modules_out_is_said_in_one_sentence() {
        assert_eq!(hello().obstacle(false), None);
        let locked = Hello { lockdown: 1.into(), ..hello() };
        let enforcing = Hello { sig_enforce: 1.into(), ..hello() };
        let closed = Hello { modules_disabled: 1.into(), ..hello() };
        for (hello, word, helped) in [
            (locked, "locked down", true),
            (enforcing, "sig_enforce", true),
            (closed, "modules_disabled", false),
        ] {
            assert!(hello.obstacle(false).is_some_and(|sentence| sentence.contains(word)), "{word}");
            assert_eq!(hello.obstacle(true).is_none(), helped, "{word}");
        }
        // What could not be found out is tried.
        let unknown =
            Hello { lockdown: 3.into(), sig_enforce: 2.into(), modules_disabled: 2.into(), ..hello() };
        assert_eq!(unknown.obstacle(false), None);
    }
}
