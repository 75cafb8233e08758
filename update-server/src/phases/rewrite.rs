//! The jumps of one patch, written all together or not at all.

use super::place::OldFunction;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::Image;
use crate::journal::Edit;
use crate::kernel::probes::{Probe, is_rewritten};
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;
use crate::x86::jump::{JUMP_BYTES, jump};
use crate::x86::{INT3, NOP};

/// Why the text is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The new function is too far away.
    #[error("{function} cannot jump to {to}: it is more than 2 GiB away")]
    TooFar {
        /// The old function.
        function: String,
        /// The new one.
        to: Gva,
    },
    /// A probe is there.
    #[error("a probe is on {at} in {function}, under the jump; remove it, and apply again")]
    Probed {
        /// The old function.
        function: String,
        /// Where.
        at: Gva,
    },
    /// The guest has other code there than its image.
    #[error(
        "the guest's {function} is not the image's: at {at} there is {found:#04x}, not {expected:#04x}, and no table says why"
    )]
    Differs {
        /// The old function.
        function: String,
        /// Where.
        at: Gva,
        /// The first byte that differs.
        found: u8,
        /// What the image has.
        expected: u8,
    },
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] ReadError),
}

/// What a place has when nobody has changed it: the image's bytes where the kernel is now.
fn original(image: &Image, distance: u64, at: Gva, len: usize) -> Vec<u8> {
    image.moved_bytes(at, len, distance).expect("places are within the image's text")
}

/// What a place has that jumps to `to`.
fn jumping(function: &OldFunction, at: Gva, len: usize, to: Gva) -> Result<Vec<u8>, TextError> {
    let jump = jump(at, to).ok_or_else(|| TextError::TooFar { function: function.name.clone(), to })?;
    let mut bytes = jump.to_vec();
    // Whoever reads the code meets whole instructions: the kernel does, before it puts a probe into a function (`can_probe` in
    // `arch/x86/kernel/kprobes/core.c`).
    bytes.resize(len.max(JUMP_BYTES), NOP);
    Ok(bytes)
}

/// The edits that make `function`, which jumps to `from` or nowhere, jump to `to` or nowhere.
pub fn edits(
    kernel: &Running<'_, impl Memory>,
    function: &OldFunction,
    from: Option<Gva>,
    to: Option<Gva>,
) -> Result<Vec<Edit>, TextError> {
    let image = kernel.model().image();
    let distance = kernel.place().distance;
    let bytes = |place: Gva, len, target: Option<Gva>| match target {
        Some(to) => jumping(function, kernel.now(place), len, to),
        None => Ok(original(image, distance, place, len)),
    };
    let edit = |place: &super::place::Place| {
        let len = usize::from(place.len);
        let (before, after) = (bytes(place.at, len, from)?, bytes(place.at, len, to)?);
        Ok(Edit { at: kernel.now(place.at), before, after })
    };
    function.places.iter().map(edit).collect()
}

/// Compares all of `function` with the image: it must be what the patch was made for. What the kernel's tables name may differ, and
/// so may the places that jump to `from` already.
pub fn compare(
    kernel: &Running<'_, impl Memory>,
    function: &OldFunction,
    from: Option<Gva>,
    probes: &[Probe],
) -> Result<(), TextError> {
    for place in &function.places {
        let end = kernel.now(place.at.wrapping_add(place.len.into()));
        let under = |probe: &&Probe| probe.at >= kernel.now(place.at) && probe.at < end;
        if let Some(probe) = probes.iter().find(under) {
            return Err(TextError::Probed { function: function.name.clone(), at: probe.at });
        }
    }
    let jumps = edits(kernel, function, None, from)?;
    for part in std::iter::once(&function.text).chain(&function.cold) {
        compare_part(kernel, function, part, &jumps, probes)?;
    }
    Ok(())
}

fn compare_part(
    kernel: &Running<'_, impl Memory>,
    function: &OldFunction,
    part: &std::ops::Range<Gva>,
    jumps: &[Edit],
    probes: &[Probe],
) -> Result<(), TextError> {
    let image = kernel.model().image();
    let len = usize::try_from(part.end.0 - part.start.0).unwrap_or(0);
    let mut expected = original(image, kernel.place().distance, part.start, len);
    let start = kernel.now(part.start);
    for jump in jumps {
        let within = jump.at.offset_from(start).and_then(|offset| usize::try_from(offset).ok());
        let place = within.and_then(|from| expected.get_mut(from..from + jump.after.len()));
        if let Some(place) = place {
            place.copy_from_slice(&jump.after);
        }
    }
    let mut found = vec![0; len];
    kernel.space().read(start, &mut found)?;
    let bytes = (0_u64..).zip(found.iter().zip(&expected));
    for (offset, (&found, &expected)) in bytes.filter(|(_, (found, expected))| found != expected) {
        let (linked, at) = (part.start.wrapping_add(offset), start.wrapping_add(offset));
        if image.sites().rewritten_at(linked).is_none() && !is_rewritten(probes, at) {
            return Err(TextError::Differs { function: function.name.clone(), at, found, expected });
        }
    }
    Ok(())
}

/// The probe that somebody has put on a jump of ours, which must be there alone when it is taken back.
pub fn probe_on_jump(
    kernel: &Running<'_, impl Memory>,
    function: &OldFunction,
    probes: &[Probe],
) -> Result<Option<Gva>, ReadError> {
    for place in &function.places {
        let at = kernel.now(place.at);
        let armed = kernel.space().array::<1>(at)?[0] == INT3;
        if armed || probes.iter().any(|probe| probe.at == at) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}
