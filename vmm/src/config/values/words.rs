//! Settings that are one word of a closed set.

use std::fmt;
use std::str::FromStr;

use crate::config::ValueError;

/// A closed set of words, each with its spelling.
macro_rules! words {
    ($kind:ident { $($variant:ident => $word:literal),+ $(,)? }) => {
        impl $kind {
            /// Every word there is.
            pub const WORDS: &[&str] = &[$($word),+];
        }

        impl FromStr for $kind {
            type Err = ValueError;

            fn from_str(text: &str) -> Result<Self, ValueError> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    "" => Err(ValueError::Empty),
                    found => {
                        Err(ValueError::Word { found: found.to_owned(), known: Self::WORDS.join(", ") })
                    }
                }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(match self { $(Self::$variant => $word),+ })
            }
        }
    };
}

/// The CPU features that the guest sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CpuProfile {
    /// What KVM supports, less what endangers live patching (nested virtualisation, paravirtual wake-ups
    /// and faults, Hyper-V, FRED).
    #[default]
    Stock,
    /// Everything that KVM supports.
    Host,
}

words!(CpuProfile { Stock => "stock", Host => "host" });

/// Whether patches are taken that somebody in the guest hands in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GuestPatches {
    /// None is.
    #[default]
    Refuse,
    /// Those are that a trusted key has signed.
    Signed,
}

words!(GuestPatches { Refuse => "refuse", Signed => "signed" });

/// How accesses to watched pages of the guest are carried out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Trapping {
    /// In the second view where KVM has one, else with all other vCPUs held.
    #[default]
    Best,
    /// In the second view, or not at all.
    SecondView,
    /// With all other vCPUs held, whatever KVM has.
    HoldAll,
}

words!(Trapping { Best => "best", SecondView => "second-view", HoldAll => "hold-all" });

/// How much the VMM logs to standard error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// What ends the VM.
    Error,
    /// What an operator should look at.
    #[default]
    Warn,
    /// Steps of the machine's life.
    Info,
    /// What a developer of the VMM wants to see.
    Debug,
    /// Everything, exits included.
    Trace,
}

words!(LogLevel {
    Error => "error",
    Warn => "warn",
    Info => "info",
    Debug => "debug",
    Trace => "trace",
});
