//! What the agent answers.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Ref, Unaligned};

/// The highest error number that a system call returns (`MAX_ERRNO` of include/linux/err.h).
pub const ERRNO_MAX: u32 = 4095;

/// The answer to a request. Behind it, in the same buffer, is text: where the module's sections are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Report {
    /// The request's.
    pub id: U32,
    /// 0, or what the system call has failed with.
    pub errno: U32,
    /// The kernel's taint afterwards.
    pub taint: U64,
    /// Bytes of text behind this: see [`crate::sections`]. None if it has failed.
    pub text_bytes: U32,
    /// 0.
    pub reserved: U32,
}

impl Report {
    /// The report in a buffer and its text; `None` if lengths or fields do not fit.
    pub fn read(buffer: &[u8]) -> Option<(Self, &[u8])> {
        let (report, text) = Ref::<_, Self>::from_prefix(buffer).ok()?;
        let fits = usize::try_from(report.text_bytes.get()).is_ok_and(|bytes| bytes == text.len());
        let possible = report.errno.get() <= ERRNO_MAX && report.reserved.get() == 0;
        let consistent = report.errno.get() == 0 || text.is_empty();
        (fits && possible && consistent).then_some((*report, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_fields_have_to_fit() {
        let good = Report {
            id: 1.into(),
            errno: 0.into(),
            taint: 0.into(),
            text_bytes: 3.into(),
            reserved: 0.into(),
        };
        let with = |report: Report, text: &[u8]| {
            let mut buffer = [0; 64];
            buffer[..24].copy_from_slice(report.as_bytes());
            buffer[24..24 + text.len()].copy_from_slice(text);
            Report::read(&buffer[..24 + text.len()]).map(|(report, text)| (report, text.len()))
        };
        assert_eq!(with(good, b"abc"), Some((good, 3)));
        assert_eq!(with(good, b"ab"), None);
        assert_eq!(with(Report { errno: 2.into(), ..good }, b"abc"), None);
        assert_eq!(with(Report { errno: 4096.into(), text_bytes: 0.into(), ..good }, b""), None);
        assert_eq!(with(Report { reserved: 1.into(), ..good }, b"abc"), None);
        assert_eq!(Report::read(&[0; 23]), None);
    }
}
