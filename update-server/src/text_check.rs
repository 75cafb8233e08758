//! The kernel's text in the guest, held against the image: which bytes differ, and by whose right.
//!
//! A stock kernel rewrites some 3 % of its own text while it boots, and more whenever somebody traces it. Each such place is
//! in one of the image's tables ([`crate::image::SiteKind`]) or holds a probe that the guest has armed; what differs
//! anywhere else is named. Where a patch was applied, the patch's bytes are expected instead of the image's.

use std::collections::BTreeMap;

use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::{Site, SiteKind};
use crate::kernel::probes::{Probe, is_rewritten, probes};
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;
use crate::limits::UNEXPLAINED;

/// Bytes compared at a time.
const CHUNK: usize = 64 << 10;
/// How much differs for one reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Places.
    pub sites: u64,
    /// Bytes in them that differ.
    pub bytes: u64,
}

/// Bytes that a patch has put into the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The first one, where it is now.
    pub at: Gva,
    /// All of them.
    pub bytes: Vec<u8>,
}

/// Bytes that differ for no known reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unexplained {
    /// The first one, where it is now.
    pub at: Gva,
    /// How many.
    pub len: u64,
    /// What they are, and what they should be.
    pub found: Vec<u8>,
    /// See `found`.
    pub expected: Vec<u8>,
}

/// The result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextReport {
    /// Bytes compared.
    pub bytes: u64,
    /// What differs by right of each table.
    pub by_table: BTreeMap<SiteKind, Share>,
    /// What differs by right of the guest's probes.
    pub by_probe: Share,
    /// What differs by right of patches: all that they have written, wherever it is.
    pub by_patch: Share,
    /// What differs by nobody's.
    pub unexplained: Vec<Unexplained>,
    /// Whether there is more of that than is listed.
    pub cut: bool,
}

/// Compares all of the kernel's `.text`, in which patches have `written` something.
///
/// The guest may run meanwhile: what is being rewritten at that moment is then seen half-way, which is as well explained, or
/// looked at again in a pause by [`confirm`].
pub fn check(kernel: &Running<'_, impl Memory>, written: &[Written]) -> Result<TextReport, ReadError> {
    let image = kernel.model().image();
    // Of more than are looked at, the rest is not explained, and named.
    let probes = probes(kernel)?.entries;
    let mut report = TextReport::default();
    report.by_patch.sites = written.len() as u64;
    let text = image.sections().filter(|(name, _, _)| *name == ".text");
    for (_, start, len) in text {
        let mut offset = 0;
        while offset < len {
            let here = CHUNK.min(len - offset);
            compare(kernel, (&probes, written), start.wrapping_add(offset as u64), here, &mut report)?;
            offset += here;
        }
    }
    Ok(report)
}

/// Looks again at what was not explained, in a guest that stands still; keeps what still is not.
pub fn confirm(
    kernel: &Running<'_, impl Memory>,
    written: &[Written],
    report: TextReport,
) -> Result<TextReport, ReadError> {
    let probes = probes(kernel)?.entries;
    let mut again = TextReport { unexplained: Vec::new(), ..report };
    for place in report.unexplained {
        let len = usize::try_from(place.len).unwrap_or(usize::MAX);
        let mut part = TextReport::default();
        compare(kernel, (&probes, written), kernel.linked(place.at), len, &mut part)?;
        again.by_patch.bytes += part.by_patch.bytes;
        again.unexplained.extend(part.unexplained);
    }
    Ok(again)
}

/// Compares `len` bytes that were linked for `linked`.
fn compare(
    kernel: &Running<'_, impl Memory>,
    (probes, written): (&[Probe], &[Written]),
    linked: Gva,
    len: usize,
    report: &mut TextReport,
) -> Result<(), ReadError> {
    let image = kernel.model().image();
    let expected = image.moved_bytes(linked, len, kernel.place().distance);
    let original = expected.expect("what is compared was taken from the image's own sections");
    let expected = with_patches(&original, kernel.now(linked), written);
    report.by_patch.bytes +=
        original.iter().zip(&expected).filter(|(one, other)| one != other).count() as u64;
    let mut found = vec![0; len];
    kernel.space().read(kernel.now(linked), &mut found)?;
    report.bytes += len as u64;
    let mut last: Option<Site> = None;
    let bytes = found.iter().zip(&expected).enumerate();
    for (offset, (&found, &expected)) in bytes.filter(|(_, (found, expected))| found != expected) {
        let at = linked.wrapping_add(offset as u64);
        let known = last.filter(|site| at.0 - site.start.0 < u64::from(site.len));
        let site = known.or_else(|| image.sites().rewritten_at(at).copied());
        if let Some(site) = site {
            let share = report.by_table.entry(site.kind).or_default();
            share.sites += u64::from(last != Some(site));
            share.bytes += 1;
            last = Some(site);
        } else if is_rewritten(probes, kernel.now(at)) {
            report.by_probe.bytes += 1;
        } else {
            note(report, kernel.now(at), found, expected);
        }
    }
    report.by_probe.sites = probes.len() as u64;
    Ok(())
}

/// The text that begins at `start` with what patches have written there.
pub(crate) fn with_patches(original: &[u8], start: Gva, written: &[Written]) -> Vec<u8> {
    let mut text = original.to_vec();
    for Written { at, bytes } in written {
        for (byte, at) in bytes.iter().zip(at.0..) {
            let within = at.checked_sub(start.0).and_then(|offset| usize::try_from(offset).ok());
            if let Some(place) = within.and_then(|offset| text.get_mut(offset)) {
                *place = *byte;
            }
        }
    }
    text
}

/// Adds one byte to what is not explained.
fn note(report: &mut TextReport, at: Gva, found: u8, expected: u8) {
    if let Some(last) = report.unexplained.last_mut()
        && last.at.wrapping_add(last.len) == at
    {
        last.len += 1;
        last.found.push(found);
        last.expected.push(expected);
    } else if report.unexplained.len() < UNEXPLAINED {
        report.unexplained.push(Unexplained { at, len: 1, found: vec![found], expected: vec![expected] });
    } else {
        report.cut = true;
    }
}
