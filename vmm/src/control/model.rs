//! What goes over the wire.

mod histogram;
mod kernel;
mod patch;
mod traps;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use histogram::{Bucket, Histogram};
pub use kernel::{
    Difference, Effort, FrameInfo, ModuleInfo, ModuleReport, SiteInfo, SiteTable, StackInfo, StackReport,
    SymbolInfo, SymbolReport, TaskInfo, TaskReport, TextRange, TextReport, TextShare,
};
pub use patch::{AgentInfo, HolderInfo, PatchInfo, PatchList, PatchState};
pub use traps::{ArmRequest, BadPages, DisarmRequest, LostPage, TrapReport};

use crate::config::{CpuCount, MemorySize};

/// What a machine is doing.
///
/// ```text
/// starting --> running <--> paused
///                 |            |
///                 +-> stopping <
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// Being built; no guest code has run.
    Starting,
    /// The vCPUs run, or wait for interrupts.
    Running,
    /// Nothing in the guest moves: no vCPU runs and no device writes into guest memory.
    Paused,
    /// The end has begun; the VMM exits soon.
    Stopping,
}

impl fmt::Display for MachineState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
        })
    }
}

/// Which VMM this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionInfo {
    /// Version of the VMM.
    pub version: String,
    /// Version of this API: the `v1` of its paths.
    pub api: String,
    /// The VMM's process on the host.
    pub pid: u32,
}

/// The machine in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// What it is doing.
    pub state: MachineState,
    /// The kernel that it was started with.
    #[schema(value_type = String)]
    pub kernel: PathBuf,
    /// Number of vCPUs.
    #[schema(value_type = u8, minimum = 1, maximum = 254)]
    pub cpus: CpuCount,
    /// Guest memory in bytes.
    #[schema(value_type = u64)]
    pub memory: MemorySize,
}

/// How a pause went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PauseReport {
    /// From the request until nothing moved any more, in microseconds.
    pub took_us: u64,
    /// How many vCPUs stand still.
    pub vcpus: u32,
}

/// How a resume went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResumeReport {
    /// How long the guest had stood still, in microseconds.
    pub paused_us: u64,
}

/// Something was set going whose end the answer does not wait for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Accepted {
    /// What will happen now.
    pub message: String,
}

/// What the machine has counted since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counters {
    /// Exits from the guest to the VMM, all vCPUs together, by kind.
    pub exits: BTreeMap<String, u64>,
    /// How long pauses took until nothing moved.
    pub pauses: Histogram,
    /// For each device, by its name, what it counts.
    pub devices: BTreeMap<String, BTreeMap<String, u64>>,
}

/// A request that was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// What kind of refusal; stable, for programs.
    pub code: String,
    /// What is wrong, for people.
    pub message: String,
    /// What to do about it.
    pub next_step: String,
}
