//! The jumps of one patch, written all together or not at all.

use super::place::OldFunction;
use super::probed;
use crate::addr::Gva;
use crate::census::Loaded;
use crate::guest::Memory;
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
    #[error(
        "a probe is on {at} in {function}, under the jump, and is of {owners}; remove it, and apply again"
    )]
    Probed {
        /// The old function.
        function: String,
        /// Where.
        at: Gva,
        /// Who has put it there, as the guest says.
        owners: String,
    },
    /// The guest has other code there than its image, or than the patch has.
    #[error(
        "the guest's {function} is not the one that the patch is for: at {at} there is {found:#04x}, not {expected:#04x}, and no table says why"
    )]
    Differs {
        /// The old function.
        function: String,
        /// Where.
        at: Gva,
        /// The first byte that differs.
        found: u8,
        /// What there should be.
        expected: u8,
    },
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] ReadError),
}

/// What `function` has when nobody has changed it.
fn original(kernel: &Running<'_, impl Memory>, function: &OldFunction, at: Gva, len: usize) -> Vec<u8> {
    function.home.original(kernel, at, len).expect("it was read there when the function was found")
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
    let bytes = |place: Gva, len, target: Option<Gva>| match target {
        Some(to) => jumping(function, function.now(kernel, place), len, to),
        None => Ok(original(kernel, function, place, len)),
    };
    let edit = |place: &super::place::Place| {
        let len = usize::from(place.len);
        let (before, after) = (bytes(place.at, len, from)?, bytes(place.at, len, to)?);
        Ok(Edit { at: function.now(kernel, place.at), before, after })
    };
    function.places.iter().map(edit).collect()
}

/// Compares all of `function` with the image, or with what the patch has of a module: it must be what the patch was made for. What
/// the kernel's tables name may differ, and so may the places that jump to `from` already, and what was `filled` with tombstones.
pub fn compare(
    kernel: &Running<'_, impl Memory>,
    function: &OldFunction,
    from: Option<Gva>,
    filled: &[Edit],
    loaded: &Loaded,
) -> Result<(), TextError> {
    let probes = &*loaded.probes;
    for place in &function.places {
        let start = function.now(kernel, place.at);
        let under = |probe: &&Probe| (start..start.wrapping_add(place.len.into())).contains(&probe.at);
        if let Some(probe) = probes.iter().find(under) {
            let (function, at) = (function.name.clone(), probe.at);
            return Err(TextError::Probed { function, at, owners: probed::owners(kernel, loaded, at) });
        }
    }
    let mut written = edits(kernel, function, None, from)?;
    written.extend_from_slice(filled);
    // Of a module's function the patch has the one part that it changes.
    let others = if function.home.module().is_none() { &*function.cold } else { &[] };
    for part in std::iter::once(&function.text).chain(others) {
        compare_part(kernel, function, part, &written, probes)?;
    }
    Ok(())
}

fn compare_part(
    kernel: &Running<'_, impl Memory>,
    function: &OldFunction,
    part: &std::ops::Range<Gva>,
    written: &[Edit],
    probes: &[Probe],
) -> Result<(), TextError> {
    let len = usize::try_from(part.end.0 - part.start.0).unwrap_or(0);
    let mut expected = original(kernel, function, part.start, len);
    let start = function.now(kernel, part.start);
    for edit in written {
        let within = edit.at.offset_from(start).and_then(|offset| usize::try_from(offset).ok());
        let place = within.and_then(|from| expected.get_mut(from..from + edit.after.len()));
        if let Some(place) = place {
            place.copy_from_slice(&edit.after);
        }
    }
    let mut found = vec![0; len];
    kernel.space().read(start, &mut found)?;
    let bytes = (0_u64..).zip(found.iter().zip(&expected));
    for (offset, (&found, &expected)) in bytes.filter(|(_, (found, expected))| found != expected) {
        let at = start.wrapping_add(offset);
        let is_theirs = function.home.may_differ(kernel, part.start.wrapping_add(offset));
        if !is_theirs && !is_rewritten(probes, at) {
            return Err(TextError::Differs { function: function.name.clone(), at, found, expected });
        }
    }
    Ok(())
}

/// The probe that somebody has put on a jump of ours, which must be there alone when it is taken back: where, and who that is, as
/// the guest says.
pub fn probe_on_jump(
    kernel: &Running<'_, impl Memory>,
    function: &OldFunction,
    loaded: &Loaded,
) -> Result<Option<(Gva, String)>, ReadError> {
    for place in &function.places {
        let at = function.now(kernel, place.at);
        let armed = kernel.space().array::<1>(at)?[0] == INT3;
        if armed || loaded.probes.iter().any(|probe| probe.at == at) {
            return Ok(Some((at, probed::owners(kernel, loaded, at))));
        }
    }
    Ok(None)
}
