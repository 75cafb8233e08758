//! The guest, as the owner of its patches gets at it.

use update_server::kernel::generation::Generation;
use update_server::kernel::model::Model;

use crate::control::ControlError;
use crate::inspect::{self, GuestBytes, InspectError, Inspector, StillGuest};

/// A way to the guest's kernel. The machine has it.
pub trait Access: Send + Sync {
    /// What is known of the kernel image and of the guest's stacks.
    fn inspector(&self) -> &Inspector;

    /// Lets `look` look at the guest while it does what it does.
    fn look(&self, look: &mut dyn FnMut(&Model, &GuestBytes<'_>)) -> Result<(), ControlError>;

    /// Lets `look` look at the guest while it stands still; says for how long it did, in microseconds.
    fn pause(
        &self,
        look: &mut dyn FnMut(&Model, &StillGuest<'_>) -> Result<(), InspectError>,
    ) -> Result<u64, ControlError>;
}

/// What `look` returns of the guest that runs.
pub(super) fn looking<T>(
    access: &dyn Access,
    mut look: impl FnMut(&Model, &GuestBytes<'_>) -> T,
) -> Result<T, ControlError> {
    let mut seen = None;
    access.look(&mut |model, memory| seen = Some(look(model, memory)))?;
    Ok(seen.expect("whoever says that it has looked has called"))
}

/// What `look` returns of the guest that stands still, and for how long it did, in microseconds.
pub(super) fn pausing<T>(
    access: &dyn Access,
    mut look: impl FnMut(&Model, &StillGuest<'_>) -> Result<T, InspectError>,
) -> Result<(T, u64), ControlError> {
    let mut seen = None;
    let paused_us = access.pause(&mut |model, guest| {
        seen = Some(look(model, guest)?);
        Ok(())
    })?;
    Ok((seen.expect("whoever says that it has looked has called"), paused_us))
}

/// The kernel that runs in the guest.
pub(super) fn generation(access: &dyn Access) -> Result<Generation, ControlError> {
    pausing(access, inspect::generation).map(|(generation, _)| generation)
}
