//! The machine as it is controlled from outside: by the API and by the console's keys.

mod looks;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use update_server::addr::Gpa;
use update_server::kernel::model::Model;

use super::events::{Event, EventSender};
use super::instance::Instance;
use crate::config::MachineSpec;
use crate::console::ConsoleCommands;
use crate::control::model::{
    Counters, Histogram, MachineState, ModuleReport, PatchInfo, PatchList, PauseReport, ResumeReport,
    StackReport, SymbolReport, TaskReport, TextReport, TrapReport,
};
use crate::control::{Arming, ControlError, MachineControl};
use crate::inspect::{self, GuestBytes, Inspector, StillGuest};
use crate::update::{Board, Deadline, StubExits, Updates};

/// What is known without asking the instance.
#[derive(Debug)]
struct Status {
    state: MachineState,
    paused_since: Option<Instant>,
    pauses: Histogram,
    /// Exits of instances that are gone.
    past_exits: BTreeMap<String, u64>,
    instance: Option<Arc<Instance>>,
}

/// Takes requests from any thread and carries them out on the instance that runs.
#[derive(Debug)]
pub(super) struct Controller {
    spec: MachineSpec,
    events: EventSender,
    inspector: Inspector,
    /// Who owns patches, unless an embedder speaks with the agent itself.
    updates: Option<Updates>,
    /// What is shown where nobody does.
    no_patches: Board,
    /// Held through an operation, so that two never overlap; `status` is held only for a moment.
    operation: Mutex<()>,
    status: Mutex<Status>,
}

impl Controller {
    pub(super) fn new(
        spec: MachineSpec,
        events: EventSender,
        inspector: Inspector,
        updates: Option<Updates>,
    ) -> Self {
        let status = Status {
            state: MachineState::Starting,
            paused_since: None,
            pauses: Histogram::default(),
            past_exits: BTreeMap::new(),
            instance: None,
        };
        Self {
            spec,
            events,
            inspector,
            updates,
            no_patches: Board::default(),
            operation: Mutex::default(),
            status: Mutex::new(status),
        }
    }

    /// Makes `instance` the one that requests reach.
    pub(super) fn started(&self, instance: &Arc<Instance>) {
        self.inspector.reset();
        if let Some(updates) = &self.updates {
            updates.reset();
        }
        let mut status = self.lock();
        status.state = MachineState::Running;
        status.instance = Some(Arc::clone(instance));
    }

    /// What vCPUs see of those who leave old code; of no use where nobody owns patches.
    pub(super) fn stubs(&self) -> Arc<StubExits> {
        self.updates.as_ref().map(|updates| Arc::clone(updates.stubs())).unwrap_or_default()
    }

    /// Cuts requests off from the instance: waits for the one under way, refuses the next. Does nothing, and
    /// says `false`, when the machine is paused and that matters.
    pub(super) fn stopped(&self, next: MachineState, even_paused: bool) -> bool {
        let _operation = self.operation.lock().unwrap_or_else(PoisonError::into_inner);
        let mut status = self.lock();
        if status.state == MachineState::Paused && !even_paused {
            return false;
        }
        status.state = next;
        status.paused_since = None;
        if let Some(instance) = status.instance.take() {
            for (kind, count) in instance.exits() {
                *status.past_exits.entry(kind).or_default() += count;
            }
        }
        true
    }

    /// The instance, if the machine is in the state that `operation` needs.
    fn instance_in(
        &self,
        needed: MachineState,
        operation: &'static str,
    ) -> Result<Arc<Instance>, ControlError> {
        let status = self.lock();
        match &status.instance {
            Some(instance) if status.state == needed => Ok(Arc::clone(instance)),
            _ => Err(ControlError::WrongState { operation, found: status.state, needed }),
        }
    }

    /// The instance, whatever it does.
    fn any_instance(&self, operation: &'static str) -> Result<Arc<Instance>, ControlError> {
        let status = self.lock();
        let none =
            || ControlError::WrongState { operation, found: status.state, needed: MachineState::Running };
        status.instance.clone().ok_or_else(none)
    }

    fn updates(&self) -> Result<&Updates, ControlError> {
        let nobody = || ControlError::Host { why: "nobody owns patches in this program".to_owned() };
        self.updates.as_ref().ok_or_else(nobody)
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MachineControl for Controller {
    fn state(&self) -> MachineState {
        self.lock().state
    }

    fn config(&self) -> MachineSpec {
        self.spec.clone()
    }

    fn counters(&self) -> Counters {
        let status = self.lock();
        let mut exits = status.past_exits.clone();
        let mut devices = BTreeMap::new();
        if let Some(instance) = &status.instance {
            for (kind, count) in instance.exits() {
                *exits.entry(kind).or_default() += count;
            }
            devices = instance.device_counters();
        }
        Counters { exits, pauses: status.pauses.clone(), devices }
    }

    fn pause(&self) -> Result<PauseReport, ControlError> {
        let _operation = self.operation.lock().unwrap_or_else(PoisonError::into_inner);
        let instance = self.instance_in(MachineState::Running, "vm.pause")?;
        let begin = Instant::now();
        instance.pause()?;
        let took = begin.elapsed();
        let mut status = self.lock();
        status.state = MachineState::Paused;
        status.paused_since = Some(Instant::now());
        status.pauses.record(took);
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Ok(PauseReport { took_us, vcpus: u32::from(self.spec.cpus.get()) })
    }

    fn resume(&self) -> Result<ResumeReport, ControlError> {
        let _operation = self.operation.lock().unwrap_or_else(PoisonError::into_inner);
        let instance = self.instance_in(MachineState::Paused, "vm.resume")?;
        instance.resume();
        let mut status = self.lock();
        status.state = MachineState::Running;
        let paused = status.paused_since.take().map(|since| since.elapsed()).unwrap_or_default();
        drop(status);
        self.events.send(Event::Resumed);
        Ok(ResumeReport { paused_us: u64::try_from(paused.as_micros()).unwrap_or(u64::MAX) })
    }

    fn power_button(&self) -> Result<(), ControlError> {
        let _operation = self.operation.lock().unwrap_or_else(PoisonError::into_inner);
        let instance = self.instance_in(MachineState::Running, "vm.power-button")?;
        if instance.press_power_button() { Ok(()) } else { Err(ControlError::NobodyListens) }
    }

    fn stacks(&self, verify: bool) -> Result<StackReport, ControlError> {
        let (found, census, paused_us) = self.census("vm.stacks", verify)?;
        let generation = self.inspector.number(&found);
        let stacks =
            |model: &Model, memory: &GuestBytes<'_>| Ok(inspect::stacks(model, memory, found.place, &census));
        Ok(StackReport { generation, paused_us, ..self.look("vm.stacks", stacks)? })
    }

    fn tasks(&self) -> Result<TaskReport, ControlError> {
        let (found, census, paused_us) = self.census("vm.tasks", false)?;
        let generation = self.inspector.number(&found);
        let tasks =
            |model: &Model, memory: &GuestBytes<'_>| Ok(inspect::tasks(model, memory, found.place, &census));
        Ok(TaskReport { generation, paused_us, ..self.look("vm.tasks", tasks)? })
    }

    fn symbols(&self, filter: Option<&str>) -> Result<SymbolReport, ControlError> {
        let (found, _) = self.find("vm.symbols")?;
        let generation = self.inspector.number(&found);
        let known =
            self.look("vm.symbols", |model, memory| Ok(inspect::loaded(model, memory, found.place)))?;
        let confirm =
            |model: &Model, guest: &StillGuest<'_>| inspect::confirm_loaded(model, guest, &found, &known);
        let (loaded, _) = self.inspect("vm.symbols", confirm)?;
        let report = self.look("vm.symbols", |model, memory| {
            Ok(inspect::symbols(model, memory, found.place, &loaded, filter))
        })?;
        Ok(SymbolReport { generation, ..report })
    }

    fn modules(&self, name: Option<&str>) -> Result<ModuleReport, ControlError> {
        let (found, found_us) = self.find("vm.modules")?;
        let generation = self.inspector.number(&found);
        let place = found.place;
        let known =
            self.look("vm.modules", |model, memory| Ok(inspect::sites(model, memory, place, name)))?;
        let confirm = |model: &Model, guest: &StillGuest<'_>| {
            inspect::confirm_loaded(model, guest, &found, known.loaded())
        };
        let (loaded, paused_us) = self.inspect("vm.modules", confirm)?;
        let report = self.look("vm.modules", |model, memory| {
            Ok(inspect::modules(model, memory, place, &loaded, &known))
        })?;
        Ok(ModuleReport { generation, paused_us: found_us + paused_us, ..report })
    }

    fn text_check(&self) -> Result<TextReport, ControlError> {
        let (found, found_us) = self.find("vm.text-check")?;
        let generation = self.inspector.number(&found);
        // The long part, for which nothing needs to stand still.
        let written = self.board().written();
        let report =
            self.look("vm.text-check", |model, memory| inspect::text(model, memory, found.place, &written))?;
        // A patch may have come meanwhile.
        let written = self.board().written();
        let confirm =
            |model: &Model, guest: &StillGuest<'_>| inspect::confirm(model, guest, &found, &written, report);
        let (report, paused_us) = self.inspect("vm.text-check", confirm)?;
        Ok(TextReport { generation, paused_us: found_us + paused_us, ..report })
    }

    fn apply(&self, file: &[u8], unsigned: bool, limit: Deadline) -> Result<PatchInfo, ControlError> {
        self.updates()?.apply(file, unsigned, limit, self)
    }

    fn roll_back(&self, id: u32, limit: Deadline) -> Result<PatchInfo, ControlError> {
        self.updates()?.roll_back(id, limit)
    }

    fn patches(&self) -> PatchList {
        if let Some(updates) = &self.updates {
            updates.check();
        }
        self.board().list()
    }

    fn board(&self) -> &Board {
        self.updates.as_ref().map_or(&self.no_patches, |updates| updates.board())
    }

    fn arm(&self, arming: &Arming) -> Result<TrapReport, ControlError> {
        let _operation = self.operation.lock().unwrap_or_else(PoisonError::into_inner);
        self.instance_in(MachineState::Running, "vm.arm")?.arm(arming)
    }

    fn traps(&self) -> Result<TrapReport, ControlError> {
        Ok(self.any_instance("vm.traps")?.traps())
    }

    fn disarm(&self, pages: Option<&[Gpa]>) -> Result<TrapReport, ControlError> {
        let _operation = self.operation.lock().unwrap_or_else(PoisonError::into_inner);
        self.any_instance("vm.disarm")?.disarm(pages)
    }

    fn shutdown(&self) {
        self.events.send(Event::Quit);
    }
}

impl ConsoleCommands for Controller {
    fn quit(&self) {
        self.shutdown();
    }

    fn press_power_button(&self) {
        if let Err(error) = self.power_button() {
            tracing::warn!("{error}");
        }
    }
}
