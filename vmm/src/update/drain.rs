//! The wait for those who are left in code that is on its way out.

use update_server::census::Census;
use update_server::kernel::generation::Generation;
use update_server::kernel::running::Running;
use update_server::phases::drain::Draining;
use update_server::phases::stack_check::{Holder, Presence};
use update_server::server::{PatchId, Refusal, UpdateServer};

use super::access::{Access, looking, pausing};
use crate::control::ControlError;
use crate::control::model::HolderInfo;
use crate::inspect;

/// What a look has shown.
#[derive(Debug)]
pub(super) enum Left {
    /// Nobody can have left since the last one.
    Same,
    /// These are left.
    These(Draining, Vec<HolderInfo>),
    /// The kernel is another one.
    Gone,
}

/// Looks at who is left. The guest stands still for it only when nobody seems to be.
pub(super) fn look(
    access: &dyn Access,
    server: &mut UpdateServer,
    id: PatchId,
    expected: &Generation,
    draining: &Draining,
) -> Result<Left, ControlError> {
    let may_have_left =
        looking(access, |model, memory| draining.may_have_left(&Running::at(model, memory, expected.place)))?;
    if !may_have_left {
        return Ok(Left::Same);
    }
    let mut known = access.inspector().stacks();
    let presence = looking(access, |model, memory| {
        inspect::prepare(model, memory, expected, &mut known);
        server.presence(id, &Running::at(model, memory, expected.place), &known.census())
    })?;
    let (presence, census) = match found(presence)? {
        // What is in doubt of a guest that runs is of no interest as long as somebody is there for certain.
        // Nor is who is there for certain, when all have told that they leave: somebody may be half-way.
        Presence { holders, .. } if !holders.is_empty() && !draining.is_over() => {
            (Presence { holders, ..Presence::default() }, known.census())
        }
        _ => {
            let (presence, _) = pausing(access, |model, guest| {
                inspect::settle_and(model, guest, &mut known, |kernel, generation, census| {
                    (generation == expected).then(|| {
                        server.note_unloaded(kernel, &census.loaded);
                        server.presence(id, kernel, census)
                    })
                })
            })?;
            let Some(presence) = presence else { return Ok(Left::Gone) };
            (found(presence)?, known.census())
        }
    };
    drop(known);
    let shown = shown(access, expected, &census, &presence.holders)?;
    Ok(Left::These(Draining::of(presence), shown))
}

/// The first of `holders` with names and stacks.
pub(super) fn shown(
    access: &dyn Access,
    generation: &Generation,
    census: &Census,
    holders: &[Holder],
) -> Result<Vec<HolderInfo>, ControlError> {
    looking(access, |model, memory| inspect::holders(model, memory, generation.place, census, holders))
}

fn found(presence: Result<Presence, Refusal>) -> Result<Presence, ControlError> {
    presence.map_err(|error| ControlError::Host { why: error.to_string() })
}
