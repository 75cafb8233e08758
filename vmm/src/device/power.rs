//! What the guest can do to the whole machine.

use std::fmt;
use std::sync::Arc;

/// A wish of the guest that concerns the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerEvent {
    /// Switch off.
    Off,
    /// Start again.
    Reset,
}

/// Takes power events from devices, in vCPU threads; must not block.
#[derive(Clone)]
pub struct PowerEvents(Arc<dyn Fn(PowerEvent) + Send + Sync>);

impl fmt::Debug for PowerEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PowerEvents").finish_non_exhaustive()
    }
}

impl PowerEvents {
    /// Hands events to `take`.
    pub fn new(take: impl Fn(PowerEvent) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Reports an event.
    pub fn send(&self, event: PowerEvent) {
        (self.0)(event);
    }
}
