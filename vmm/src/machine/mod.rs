//! A virtual machine from its description to its end.
//!
//! [`run`] is the whole life: resources of the host that outlive a reset ([`HostSide`]), then one [`Instance`]
//! after the other, until the guest or the operator ends it.

mod attached;
mod controller;
mod error;
mod events;
mod host;
mod instance;
mod trapping;

pub use error::{GuestExit, MachineError};

use std::sync::Arc;
use std::{io, thread};

use crate::agent::AgentLink;
use crate::boot::KernelImage;
use crate::config::{GuestPatches, MachineSpec};
use crate::control::model::MachineState;
use crate::inspect::Inspector;
use crate::update::{Owner, Updates, read_keys};
use controller::Controller;
use events::{Event, Events};
use host::HostSide;
use instance::{Instance, Parts};

/// Runs the machine until its guest switches off or something ends it.
pub fn run(spec: &MachineSpec) -> Result<GuestExit, MachineError> {
    let (updates, inbox) = Updates::new(read_keys(&spec.patch_keys)?);
    let link = Arc::new(AgentLink::new(Arc::new(updates.clone())));
    link.allow_submissions(spec.guest_patches == GuestPatches::Signed);
    let mut thread = None;
    let begin = |controller: &Arc<Controller>| {
        let owner = Owner::new(inbox, Arc::clone(controller) as _, Arc::clone(&link));
        thread = Some(thread::Builder::new().name("patches".into()).spawn(|| owner.run())?);
        Ok(())
    };
    let end = run_machine(spec, &link, Some(updates.clone()), begin);
    updates.quit();
    if let Some(thread) = thread {
        // A panic has ended the whole process before.
        drop(thread.join());
    }
    end
}

/// The same for an embedder that speaks with the guest's agent itself, through `link`. Nobody owns patches then.
pub fn run_with(spec: &MachineSpec, link: &Arc<AgentLink>) -> Result<GuestExit, MachineError> {
    run_machine(spec, link, None, |_| Ok(()))
}

/// Runs it; `begin` is called once there is somebody to ask for the guest.
fn run_machine(
    spec: &MachineSpec,
    link: &Arc<AgentLink>,
    updates: Option<Updates>,
    begin: impl FnOnce(&Arc<Controller>) -> io::Result<()>,
) -> Result<GuestExit, MachineError> {
    crate::sys::kick::install_kick_handler()
        .map_err(MachineError::host("install the kick signal's handler"))?;
    let events = Events::new();
    let parts = Parts::open(spec)?;
    let kernel = KernelImage::open(&spec.kernel).map_err(crate::boot::BootError::from)?;
    let image = kernel.file().map_err(MachineError::host("keep the kernel image open"))?;
    let tombstones = updates.as_ref().map(|updates| Arc::clone(updates.tombstones())).unwrap_or_default();
    let controller = Controller::new(spec.clone(), events.sender(), Inspector::new(image), updates);
    let controller = Arc::new(controller);
    begin(&controller).map_err(MachineError::host("start the thread that owns patches"))?;
    let host = HostSide::open(spec, &events, &controller, link, tombstones)?;
    loop {
        let instance = Instance::start(spec, &kernel, &parts, &host, &events)?;
        controller.started(&instance);
        let event = wait_for_end(&events, &controller);
        let remains = instance.stop();
        let besides = events.forget_instance();
        match event {
            Event::PowerOff => return Ok(GuestExit::PowerOff),
            Event::Reset if remains.after_panic => return Ok(GuestExit::Panic),
            Event::Reset => tracing::info!("the guest reboots"),
            Event::TripleFault => return Ok(GuestExit::TripleFault),
            Event::SystemManagement(vcpu) => return Err(MachineError::SystemManagement { vcpu }),
            // Newer kernels give the whole machine up when one vCPU gets an SMI, and the others may tell first.
            Event::Stuck(what) => {
                return Err(
                    match besides.into_iter().find(|event| matches!(event, Event::SystemManagement(_))) {
                        Some(Event::SystemManagement(vcpu)) => MachineError::SystemManagement { vcpu },
                        _ => MachineError::GuestStuck(what),
                    },
                );
            }
            Event::Resumed => {}
            Event::Quit => return Ok(GuestExit::Stopped),
            Event::Signal(signal) => return Ok(GuestExit::Signal(signal)),
        }
    }
}

/// Waits for what ends this instance, and cuts the controller off from it.
///
/// An end that the guest brought about waits while the machine is paused: whoever paused it was promised that
/// nothing moves. The operator need not wait.
fn wait_for_end(events: &Events, controller: &Controller) -> Event {
    let mut held = None;
    loop {
        let event = match events.wait() {
            Event::Resumed => match held.take() {
                Some(event) => event,
                None => continue,
            },
            event => event,
        };
        let next = if event == Event::Reset { MachineState::Starting } else { MachineState::Stopping };
        if controller.stopped(next, event.is_operators()) {
            return event;
        }
        tracing::warn!(
            ?event,
            "the guest came to its end while it was paused; that takes effect when it resumes"
        );
        held.get_or_insert(event);
    }
}
