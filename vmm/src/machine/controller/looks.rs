//! Looks into the guest's kernel: while it runs, or while it stands still for them.

use std::cell::Cell;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use update_server::census::Census;
use update_server::kernel::generation::Generation;
use update_server::kernel::model::Model;

use super::Controller;
use crate::control::model::MachineState;
use crate::control::{ControlError, MachineControl};
use crate::inspect::{self, GuestBytes, InspectError, Inspector, StillGuest};
use crate::update::Access;

impl Controller {
    /// Lets `look` look into the guest's kernel while the guest does what it does.
    pub(super) fn look<T>(
        &self,
        operation: &'static str,
        look: impl FnOnce(&Model, &GuestBytes<'_>) -> Result<T, InspectError>,
    ) -> Result<T, ControlError> {
        let model = self.inspector.model().map_err(refused)?;
        let instance = self.any_instance(operation)?;
        look(&model, &GuestBytes(instance.memory())).map_err(refused)
    }

    /// Lets `look` look into the guest's kernel while the guest stands still; says for how long it did, in microseconds.
    pub(super) fn inspect<T>(
        &self,
        operation: &'static str,
        look: impl FnOnce(&Model, &StillGuest<'_>) -> Result<T, InspectError>,
    ) -> Result<(T, u64), ControlError> {
        // Takes its time, and needs neither a pause nor that others wait.
        let model = self.inspector.model().map_err(refused)?;
        let _operation = self.operation.lock().unwrap_or_else(PoisonError::into_inner);
        let paused = self.lock().state == MachineState::Paused;
        let needed = if paused { MachineState::Paused } else { MachineState::Running };
        let instance = self.instance_in(needed, operation)?;
        let begin = Instant::now();
        let stood = Cell::new(Duration::ZERO);
        let mut resume: Option<Box<dyn FnOnce() + '_>> = None;
        if !paused {
            let since = instance.pause()?;
            self.lock().pauses.record(begin.elapsed());
            let (stood, stopped) = (&stood, &instance);
            resume = Some(Box::new(move || {
                // Those who go on may take this processor first.
                stood.set(since.elapsed());
                stopped.resume();
            }));
        }
        // From here on the guest runs again however this ends.
        let mut guest = StillGuest::new(instance.memory(), Vec::new(), resume);
        let vcpus = instance.snapshots().map_err(|error| ControlError::Host { why: error.to_string() })?;
        guest.set_vcpus(vcpus);
        let seen = look(&model, &guest).map_err(refused);
        drop(guest);
        Ok((seen?, u64::try_from(stood.get().as_micros()).unwrap_or(u64::MAX)))
    }

    /// Finds the guest's kernel; says for how long the guest stood still for it, in microseconds.
    pub(super) fn find(&self, operation: &'static str) -> Result<(Generation, u64), ControlError> {
        self.inspect(operation, inspect::generation)
    }

    /// Every kernel stack of the guest, its kernel, and for how long the guest stood still, in microseconds.
    pub(super) fn census(
        &self,
        operation: &'static str,
        verify: bool,
    ) -> Result<(Generation, Census, u64), ControlError> {
        let mut known = self.inspector.stacks();
        let mut found_us = 0;
        if self.state() == MachineState::Running {
            let generation = if let Some(generation) = known.generation() {
                generation.clone()
            } else {
                let (generation, paused_us) = self.find(operation)?;
                found_us = paused_us;
                generation
            };
            self.look(operation, |model, memory| {
                inspect::prepare(model, memory, &generation, &mut known);
                Ok(())
            })?;
        }
        let settle =
            |model: &Model, guest: &StillGuest<'_>| inspect::settle(model, guest, &mut known, verify);
        let (generation, settled_us) = self.inspect(operation, settle)?;
        Ok((generation, known.census(), found_us + settled_us))
    }
}

impl Access for Controller {
    fn inspector(&self) -> &Inspector {
        &self.inspector
    }

    fn look(&self, look: &mut dyn FnMut(&Model, &GuestBytes<'_>)) -> Result<(), ControlError> {
        let look = |model: &Model, memory: &GuestBytes<'_>| {
            look(model, memory);
            Ok(())
        };
        Self::look(self, "patch", look)
    }

    fn pause(
        &self,
        look: &mut dyn FnMut(&Model, &StillGuest<'_>) -> Result<(), InspectError>,
    ) -> Result<u64, ControlError> {
        self.inspect("patch", look).map(|((), paused_us)| paused_us)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn refused(error: InspectError) -> ControlError {
    let why = error.to_string();
    match error {
        InspectError::File(_) => ControlError::Host { why },
        _ => ControlError::UnknownKernel { why },
    }
}
