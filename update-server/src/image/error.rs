//! Why a file is no kernel that can be read.

/// What is wrong with a kernel image, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Neither a bzImage nor an ELF file.
    #[error("neither a bzImage nor an ELF file: it begins with {start:02x?}")]
    Unknown {
        /// Its first bytes.
        start: Vec<u8>,
    },
    /// It ends before what it says it holds.
    #[error("cut off: {what} ends at byte {end:#x}, the file at {len:#x}")]
    Truncated {
        /// The part that is missing.
        what: &'static str,
        /// Where that would end.
        end: usize,
        /// Where the file ends.
        len: usize,
    },
    /// The payload of a bzImage is packed by a method that is not known here.
    #[error("the payload begins with {start:02x?}, which is not gzip, XZ, LZ4 or zstd")]
    Packing {
        /// The payload's first bytes.
        start: Vec<u8>,
    },
    /// The payload does not unpack.
    #[error("the {method} payload does not unpack: {why}")]
    Unpack {
        /// By which method it is packed.
        method: &'static str,
        /// What the decompressor says.
        why: String,
    },
    /// It is larger than any kernel.
    #[error("unpacks to {size:#x} bytes or more, and no kernel has more than {limit:#x}")]
    TooLarge {
        /// Its size, or how much was unpacked before the limit.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The ELF file is not one of a 64-bit x86 kernel.
    #[error("not the ELF file of an x86-64 kernel: {why}")]
    Elf {
        /// What it lacks.
        why: String,
    },
    /// A kernel built without something that is needed here.
    #[error("the kernel has no {what}; {needed_for} needs it (kernel option {option})")]
    Missing {
        /// A section, symbol or table.
        what: String,
        /// What for.
        needed_for: &'static str,
        /// By which option kernels are built with it.
        option: &'static str,
    },
    /// A table in the kernel makes no sense.
    #[error("{table} makes no sense at byte {at:#x}: {why}")]
    Malformed {
        /// Which one.
        table: &'static str,
        /// Offset in the table.
        at: usize,
        /// What is wrong there.
        why: String,
    },
}

impl ImageError {
    pub(super) fn malformed(table: &'static str, at: usize, why: impl Into<String>) -> Self {
        Self::Malformed { table, at, why: why.into() }
    }
}
