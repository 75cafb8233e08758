//! The verbs, one for each endpoint of the API.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{ArgGroup, Subcommand, ValueHint};

use super::pages;
use crate::control::model::{ArmRequest, DisarmRequest};

/// How an endpoint is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// It only looks.
    Get,
    /// It acts.
    Put,
}

/// What a user can ask of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
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
    /// Every kernel stack of the guest, read from outside
    Stacks {
        /// Walk every stack anew while the guest stands still, and doubt what was kept from before if it differs
        #[arg(long)]
        verify: bool,
    },
    /// Every task of the guest, read from outside
    Tasks,
    /// What of the kernel's text differs from its image, and why
    TextCheck,
    /// Symbols of the running kernel, where KASLR has put them
    Symbols {
        /// A name, or an address with 0x before it; all symbols without it
        #[arg(value_name = "NAME|ADDRESS")]
        filter: Option<String>,
    },
    /// The kernel's modules, and the places of their text that may change
    Modules {
        /// The name of one, to list each of its places; all modules without it
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
    /// Watch pages of the guest, besides those that are watched: each access to one is carried out alone, and counted
    #[command(group = ArgGroup::new("which").required(true).multiple(true).args(["pages", "pages_from", "busiest"]))]
    Arm {
        /// Guest physical addresses of pages, in hexadecimal; 30,000 at most
        #[arg(value_name = "ADDRESS", value_parser = pages::address)]
        pages: Vec<String>,
        /// More of them, one hexadecimal address in a line; `-` is standard input
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        pages_from: Option<PathBuf>,
        /// This many of the pages that the guest writes to most, or fewer where it writes to fewer; half a second is taken to find them
        #[arg(long, value_name = "N")]
        busiest: Option<NonZeroUsize>,
        /// Reads, too
        #[arg(long)]
        all: bool,
    },
    /// Which pages are watched, and what was seen of them
    Traps,
    /// Watch pages no longer; without one that is named, none at all
    Disarm {
        /// Guest physical addresses of pages, in hexadecimal
        #[arg(value_name = "ADDRESS", value_parser = pages::address)]
        pages: Vec<String>,
        /// More of them, one hexadecimal address in a line; `-` is standard input
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        pages_from: Option<PathBuf>,
    },
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
        Self::Stacks { verify: false },
        Self::Tasks,
        Self::TextCheck,
        Self::Symbols { filter: None },
        Self::Modules { name: None },
        Self::Arm { pages: Vec::new(), pages_from: None, busiest: None, all: false },
        Self::Traps,
        Self::Disarm { pages: Vec::new(), pages_from: None },
        Self::Shutdown,
        Self::Openapi,
    ];

    /// How its endpoint is asked.
    pub fn method(&self) -> Method {
        match self {
            Self::Pause
            | Self::Resume
            | Self::PowerButton
            | Self::Arm { .. }
            | Self::Disarm { .. }
            | Self::Shutdown => Method::Put,
            _ => Method::Get,
        }
    }

    /// The path of its endpoint.
    pub fn path(&self) -> &'static str {
        match self {
            Self::Version => "/api/v1/vmm.version",
            Self::Info => "/api/v1/vm.info",
            Self::Config => "/api/v1/vm.config",
            Self::Pause => "/api/v1/vm.pause",
            Self::Resume => "/api/v1/vm.resume",
            Self::PowerButton => "/api/v1/vm.power-button",
            Self::Counters => "/api/v1/vm.counters",
            Self::Stacks { .. } => "/api/v1/vm.stacks",
            Self::Tasks => "/api/v1/vm.tasks",
            Self::TextCheck => "/api/v1/vm.text-check",
            Self::Symbols { .. } => "/api/v1/vm.symbols",
            Self::Modules { .. } => "/api/v1/vm.modules",
            Self::Arm { .. } => "/api/v1/vm.arm",
            Self::Traps => "/api/v1/vm.traps",
            Self::Disarm { .. } => "/api/v1/vm.disarm",
            Self::Shutdown => "/api/v1/vmm.shutdown",
            Self::Openapi => "/api/v1/openapi.json",
        }
    }

    /// What is asked for in particular, behind the path.
    pub fn query(&self) -> String {
        match self {
            Self::Symbols { filter: Some(filter) } => format!("?filter={}", escaped(filter)),
            Self::Modules { name: Some(name) } => format!("?name={}", escaped(name)),
            Self::Stacks { verify: true } => "?verify=true".to_owned(),
            _ => String::new(),
        }
    }

    /// What is sent with it; nothing with most. An error is for people: files that are named may not be what they should be.
    pub(super) fn body(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::Arm { pages, pages_from, busiest, all } => {
                let pages = pages::named(pages, pages_from.as_deref())?;
                let busiest = busiest.map_or(0, NonZeroUsize::get);
                pages::body(&ArmRequest { pages, busiest, all: *all })
            }
            Self::Disarm { pages, pages_from } if !pages.is_empty() || pages_from.is_some() => {
                pages::body(&DisarmRequest { pages: pages::named(pages, pages_from.as_deref())? })
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// `text` as the value of a query: what is not unreserved is a percent sign and two digits (RFC 3986, 2.1).
fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}
