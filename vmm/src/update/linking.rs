//! What a patch and the guest's modules have to do with each other, around the switch of functions.

use update_server::kernel::generation::Generation;
use update_server::kernel::running::Running;
use update_server::server::{Patch, PatchId, UpdateServer};

use super::access::{Access, looking, pausing};
use crate::control::ControlError;
use crate::inspect;

/// The module of the patch `id` as the guest is to load it. What it refers to and what it replaces in modules must be there.
pub(super) fn link(
    access: &dyn Access,
    server: &mut UpdateServer,
    id: PatchId,
    patch: &Patch,
    generation: &Generation,
) -> Result<Vec<u8>, ControlError> {
    let linked = looking(access, |model, memory| {
        let place = generation.place;
        let loaded = patch.needs_modules().then(|| inspect::loaded(model, memory, place)).unwrap_or_default();
        server.link(id, &Running::at(model, memory, place), &loaded.modules)
    })?;
    linked.map_err(|error| ControlError::PatchRefused { code: "not_applicable", why: error.to_string() })
}

/// Has `server` notice which modules were unloaded.
pub(super) fn note_unloaded(
    access: &dyn Access,
    server: &mut UpdateServer,
    generation: &Generation,
) -> Result<(), ControlError> {
    // What has not changed until the pause is not read again in it.
    let known = looking(access, |model, memory| inspect::loaded(model, memory, generation.place))?;
    let noted = pausing(access, |model, guest| {
        let loaded = inspect::confirm_loaded(model, guest, generation, &known)?;
        server.note_unloaded(&Running::at(model, guest, generation.place), &loaded);
        Ok(())
    });
    noted.map(drop)
}
