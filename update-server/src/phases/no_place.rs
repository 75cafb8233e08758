//! Why a function cannot be made to jump to another one.

use crate::addr::Gva;
use crate::image::SiteKind;

/// Why a function cannot be replaced. Addresses are those that the kernel was linked for, and a module's are those in the guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// It is not in the table of symbols.
    #[error("there is no function {function}")]
    Unknown {
        /// Its name.
        function: String,
    },
    /// Several have its name, and the patch does not say which.
    #[error("there are {count} functions {function}; the patch must say which, by its position among them")]
    Ambiguous {
        /// Its name.
        function: String,
        /// How many.
        count: usize,
    },
    /// It is not in the text that stays.
    #[error("{function} is code that the kernel frees, or no code of its text")]
    Gone {
        /// Its name.
        function: String,
    },
    /// It runs while the kernel is being entered or left, on a stack and with registers that are half the user's.
    #[error("{function} is a part of the kernel's entry, which cannot be replaced")]
    Entry {
        /// Its name.
        function: String,
    },
    /// What is there is no code.
    #[error("what {function} has at {at} is no instruction")]
    NoCode {
        /// Its name.
        function: String,
        /// Where.
        at: Gva,
    },
    /// It ends before there is room for a jump.
    #[error("{function} is too short: a jump at {at} would have to reach beyond its end at {end}")]
    TooShort {
        /// Its name.
        function: String,
        /// Where the jump would begin.
        at: Gva,
        /// Where the function ends.
        end: Gva,
    },
    /// The kernel rewrites bytes there, or finds an instruction there by its address.
    #[error("{function} has a place of {} at {at}, under the jump", table.table())]
    Site {
        /// Its name.
        function: String,
        /// Where.
        at: Gva,
        /// Which table has it.
        table: SiteKind,
    },
    /// Something leads into the bytes that the jump would take.
    #[error("{from} leads to {at} in {function}, under the jump ({how})")]
    Branch {
        /// Its name.
        function: String,
        /// Where it leads.
        at: Gva,
        /// What leads there.
        from: Gva,
        /// How.
        how: &'static str,
    },
    /// There are more static keys at its beginning than can be followed.
    #[error("{function} begins with more than {limit} ways through static keys")]
    TooManyWays {
        /// Its name.
        function: String,
        /// The limit.
        limit: usize,
    },
    /// Others go on in it, so that it is never dead.
    #[error("{from} leads to {at} in {function}, which is to be filled with tombstones")]
    Used {
        /// Its name.
        function: String,
        /// Where it leads.
        at: Gva,
        /// What leads there.
        from: Gva,
    },
    /// Where addresses are in its data is not known.
    #[error("the kernel image has no list of its addresses; boot the bzImage, which has one")]
    NoRelocations,
}
