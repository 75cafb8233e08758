//! What a patch and the guest's modules have to do with each other, around the switch of functions.

use update_server::census::Loaded;
use update_server::kernel::generation::Generation;
use update_server::kernel::running::Running;
use update_server::server::{Patch, PatchId, State, UpdateServer};

use super::access::{Access, looking, pausing};
use super::admission::Admitted;
use super::owner::Owner;
use crate::agent::{AgentLink, Order};
use crate::control::ControlError;
use crate::control::model::PatchState;
use crate::inspect;

/// Asks the agent to load the module of the patch `id`; the number of the request.
pub(super) fn ask_to_load(
    access: &dyn Access,
    server: &mut UpdateServer,
    agent: &AgentLink,
    id: PatchId,
    admitted: &Admitted,
    generation: &Generation,
) -> Result<u32, ControlError> {
    let module = link(access, server, id, &admitted.patch, generation)?.into();
    let request = agent.ask(Order::Load { name: admitted.module.clone(), module });
    request.map_err(|error| ControlError::Host { why: error.to_string() })
}

/// The module of the patch `id` as the guest is to load it. What it refers to and what it replaces in modules must be there.
fn link(
    access: &dyn Access,
    server: &mut UpdateServer,
    id: PatchId,
    patch: &Patch,
    generation: &Generation,
) -> Result<Vec<u8>, ControlError> {
    let linked = looking(access, |model, memory| {
        let place = generation.place;
        // To read them takes a moment, and most patches have nothing to do with them.
        let loaded =
            if patch.needs_modules() { inspect::loaded(model, memory, place) } else { Loaded::default() };
        server.link(id, &Running::at(model, memory, place), &loaded.modules)
    })?;
    linked.map_err(|error| ControlError::PatchRefused { code: "not_applicable", why: error.to_string() })
}

impl Owner {
    /// Whether modules that patches are in are still there.
    pub(super) fn look_for_unloaded(&mut self, generation: &Generation) {
        if !self.server.is_in_modules() {
            return;
        }
        if let Err(error) = note_unloaded(&*self.access, &mut self.server, generation) {
            tracing::debug!("the guest's modules could not be looked at: {error}");
        }
        if self.show_unloaded() {
            self.publish();
        }
    }

    /// Shows which patches have lost something with modules that were unloaded; whether there are any that were not known.
    pub(super) fn show_unloaded(&mut self) -> bool {
        let mut news = false;
        let mut gone = Vec::new();
        for job in self.jobs.values_mut().filter(|job| job.state().is_applied()) {
            let Ok(modules @ [_, ..]) = self.server.unloaded(job.id) else { continue };
            let modules = modules.join(", ");
            if self.server.state(job.id) == Ok(State::Gone) {
                let why = format!(
                    "the guest has unloaded what was patched (module {modules}); apply again when it is there"
                );
                tracing::warn!(patch = job.id.0, name = job.name(), "a patch is gone: {why}");
                gone.push((job.id, why));
                news = true;
            } else if job.why.is_none() {
                let why = "the guest has unloaded a part of what was patched";
                job.why =
                    Some(format!("{why} (module {modules}); roll back, and apply again when it is there"));
                news = true;
            }
        }
        // Its own module is of no more use.
        for (id, why) in gone {
            self.end_loaded(id, PatchState::Gone, why);
        }
        news
    }
}

/// Has `server` notice which modules were unloaded.
fn note_unloaded(
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
