//! Patches, as they go over the wire.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// What a patch is doing.
///
/// ```text
/// loading --> applying --> draining --> closed
///    |           |            |           |
///    +-> failed <+            +-----------+--> rolling-back --> leaving --> removing --> removed
///                                                                              |
///                                                                              +------> resident
/// ```
///
/// Applied again, it goes from `leaving` and `resident` to `applying`, and from `removed` to `loading`.
/// It goes back from `closed` to `draining` when somebody comes to old code that was filled with traps.
/// From everywhere it is `gone` when the guest starts another kernel, and from where it is applied when the guest unloads the
/// module that it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PatchState {
    /// The agent in the guest is loading its module. The guest runs its old code.
    Loading,
    /// It waits for a moment at which its functions can be switched. The guest runs its old code.
    Applying,
    /// Each new call runs the new code; some threads are still in the old.
    Draining,
    /// Nobody runs the old code any more.
    Closed,
    /// It waits for a moment at which its functions can be switched back.
    RollingBack,
    /// Each new call runs the old code again; some threads are still in the new.
    Leaving,
    /// Nobody runs the new code any more; its module is being unloaded.
    Removing,
    /// Nobody runs the new code any more, and it is not known that nobody ever will: its module stays in the guest.
    Resident,
    /// Nothing of it is in the guest any more.
    Removed,
    /// It was not applied. The guest runs its old code.
    Failed,
    /// The kernel that it was for does not run any more, or what it has changed was unloaded.
    Gone,
}

impl PatchState {
    /// Whether each new call runs the new code.
    pub fn is_applied(self) -> bool {
        matches!(self, Self::Draining | Self::Closed | Self::RollingBack)
    }
}

impl fmt::Display for PatchState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Loading => "loading",
            Self::Applying => "applying",
            Self::Draining => "draining",
            Self::Closed => "closed",
            Self::RollingBack => "rolling back",
            Self::Leaving => "leaving",
            Self::Removing => "removing",
            Self::Resident => "resident",
            Self::Removed => "removed",
            Self::Failed => "failed",
            Self::Gone => "gone",
        })
    }
}

/// One patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PatchInfo {
    /// Its number; each is given once.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// What it does.
    pub summary: String,
    /// The vulnerabilities that it closes.
    pub fixes: Vec<String>,
    /// The functions that it replaces.
    pub functions: Vec<String>,
    /// Whether old and new code may run at the same time: `coexist` or `quiescent`.
    pub consistency: String,
    /// The key that has signed it.
    pub signed_by: Option<String>,
    /// Who brought it: `operator` or `guest`.
    pub from: String,
    /// What it is doing.
    pub state: PatchState,
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// Why it is not further, or what was in the way last.
    pub why: Option<String>,
    /// How often the guest was stopped for it to be applied or rolled back.
    pub attempts: u32,
    /// For how long the guest stood still when its functions were last switched, in microseconds.
    pub paused_us: u64,
    /// Bytes of old code that are filled with traps.
    pub tombstones: u64,
    /// Who is in code that is on its way out, or in the way: the first of them.
    pub holders: Vec<HolderInfo>,
    /// How many of them there are besides.
    pub more_holders: u64,
    /// How many of their frames tell the host by themselves when they are left: their returns are redirected.
    pub redirected: u32,
    /// How many have told so since its functions were last switched.
    pub told: u32,
    /// How often it was looked at who is left, since then.
    pub looks: u32,
    /// Stacks of which it is not known whether they are: the first of them.
    pub doubts: Vec<String>,
    /// How many of them there are besides.
    pub more_doubts: u64,
}

/// A thread in code that is on its way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HolderInfo {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// The function that it is in.
    pub function: String,
    /// For how long it has been seen there, in milliseconds.
    pub for_ms: u64,
    /// Its stack, from the innermost frame out: the first frames.
    #[serde(serialize_with = "shared", deserialize_with = "own")]
    #[schema(value_type = Vec<String>)]
    pub stack: Arc<[String]>,
    /// How many frames come behind these.
    pub more_frames: u64,
}

/// Writes a list that others have, too.
fn shared<S: Serializer>(list: &Arc<[String]>, serializer: S) -> Result<S::Ok, S::Error> {
    list[..].serialize(serializer)
}

/// Reads one that nobody else has yet.
fn own<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[String]>, D::Error> {
    Vec::deserialize(deserializer).map(Arc::from)
}

/// The agent in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentInfo {
    /// Its version.
    pub version: String,
    /// Its process in the guest.
    pub pid: u32,
    /// Why it cannot load modules, if it cannot.
    pub obstacle: Option<String>,
}

/// All patches of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PatchList {
    /// Grows with each change; a request can wait for the next one.
    pub revision: u64,
    /// The agent, if one has shown itself.
    pub agent: Option<AgentInfo>,
    /// The guest kernel's taint, as the agent has last said it (Documentation/admin-guide/tainted-kernels.rst).
    pub taint: Option<u64>,
    /// By number.
    pub patches: Vec<PatchInfo>,
}
