//! What happens to a machine from outside its main thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use crate::device::power::{PowerEvent, PowerEvents};
use crate::vcpu::GuestStop;

/// Something that the main thread must act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    PowerOff,
    Reset,
    TripleFault,
    /// A vCPU entered system management mode.
    SystemManagement(u8),
    Stuck(String),
    /// A pause is over.
    Resumed,
    Quit,
    Signal(i32),
}

impl Event {
    /// Whether it came from the operator, who may end a machine in any state.
    pub(super) fn is_operators(&self) -> bool {
        matches!(self, Self::Quit | Self::Signal(_))
    }
}

/// The queue to the main thread.
#[derive(Debug)]
pub(super) struct Events {
    sender: Sender<Event>,
    receiver: Mutex<Receiver<Event>>,
}

/// The end of the queue that others hold.
#[derive(Debug, Clone)]
pub(super) struct EventSender(Sender<Event>);

impl EventSender {
    pub(super) fn send(&self, event: Event) {
        // The receiver lives as long as the machine; after it, nobody cares.
        if self.0.send(event).is_err() {
            tracing::debug!("an event after the machine's end");
        }
    }
}

impl Events {
    pub(super) fn new() -> Self {
        let (sender, receiver) = channel();
        Self { sender, receiver: Mutex::new(receiver) }
    }

    pub(super) fn sender(&self) -> EventSender {
        EventSender(self.sender.clone())
    }

    /// Power events of one instance's devices as events of the machine.
    ///
    /// Only the first counts: a guest that goes on asking until its vCPUs are stopped must not fill the queue.
    pub(super) fn power(&self) -> PowerEvents {
        let sender = self.sender();
        let said = AtomicBool::new(false);
        PowerEvents::new(move |event| {
            if said.swap(true, Ordering::SeqCst) {
                return;
            }
            sender.send(match event {
                PowerEvent::Off => Event::PowerOff,
                PowerEvent::Reset => Event::Reset,
            });
        })
    }

    /// The next event.
    pub(super) fn wait(&self) -> Event {
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        receiver.recv().expect("`self` holds a sender")
    }

    /// Takes what an instance that is gone has said besides, and leaves what the operator said.
    pub(super) fn forget_instance(&self) -> Vec<Event> {
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, said): (Vec<Event>, _) = receiver.try_iter().partition(Event::is_operators);
        drop(receiver);
        for event in kept {
            self.sender().send(event);
        }
        said
    }
}

impl From<(u8, GuestStop)> for Event {
    fn from((vcpu, stop): (u8, GuestStop)) -> Self {
        match stop {
            GuestStop::TripleFault => Self::TripleFault,
            GuestStop::Stuck(what) => Self::Stuck(format!("vCPU {vcpu}: {what}")),
            GuestStop::SystemManagementMode => Self::SystemManagement(vcpu),
        }
    }
}
