//! The verbs, one for each endpoint of the API.

use clap::Subcommand;

/// How an endpoint is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// It only looks.
    Get,
    /// It acts.
    Put,
}

/// What a user can ask of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum Verb {
    /// Which VMM answers
    Version,
    /// What the machine is, and what it is doing
    Info,
    /// The configuration of the machine, as `lucos-vmm --config` reads it
    Config,
    /// Stop all vCPUs and devices, until `resume`
    Pause,
    /// Let a paused machine go on
    Resume,
    /// Press the power button; the guest decides what it does
    PowerButton,
    /// What the machine has counted: exits, pauses, devices
    Counters,
    /// End the VMM now; for the guest this is a power cut
    Shutdown,
    /// The OpenAPI description of the control API
    Openapi,
}

impl Verb {
    /// Every verb.
    pub const ALL: &[Self] = &[
        Self::Version,
        Self::Info,
        Self::Config,
        Self::Pause,
        Self::Resume,
        Self::PowerButton,
        Self::Counters,
        Self::Shutdown,
        Self::Openapi,
    ];

    /// How its endpoint is asked.
    pub fn method(self) -> Method {
        match self {
            Self::Pause | Self::Resume | Self::PowerButton | Self::Shutdown => Method::Put,
            Self::Version | Self::Info | Self::Config | Self::Counters | Self::Openapi => Method::Get,
        }
    }

    /// The path of its endpoint.
    pub fn path(self) -> &'static str {
        match self {
            Self::Version => "/api/v1/vmm.version",
            Self::Info => "/api/v1/vm.info",
            Self::Config => "/api/v1/vm.config",
            Self::Pause => "/api/v1/vm.pause",
            Self::Resume => "/api/v1/vm.resume",
            Self::PowerButton => "/api/v1/vm.power-button",
            Self::Counters => "/api/v1/vm.counters",
            Self::Shutdown => "/api/v1/vmm.shutdown",
            Self::Openapi => "/api/v1/openapi.json",
        }
    }
}
