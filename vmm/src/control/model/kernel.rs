//! What the guest's kernel looks like from outside. Addresses are text, as JSON's numbers end at 2^53.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Every kernel stack of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StackReport {
    /// Release of the kernel.
    pub kernel: String,
    /// One for each task.
    pub stacks: Vec<StackInfo>,
    /// What is not known although it should be.
    pub doubts: Vec<String>,
    /// What it took.
    pub effort: Effort,
    /// How long the guest stood still for it, in microseconds; 0 if it was paused already.
    pub paused_us: u64,
}

/// What a look at all stacks took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Effort {
    /// Rounds over all tasks while the guest ran.
    pub rounds: u32,
    /// Whether the guest's own counts have proven which tasks had to be looked at while it stood still; it was all
    /// otherwise.
    pub proven: bool,
    /// Tasks that were looked at while it stood still.
    pub checked: u64,
    /// Stacks that were walked then.
    pub walked: u64,
}

/// One task's kernel stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StackInfo {
    /// Whose it is.
    #[serde(flatten)]
    pub task: TaskInfo,
    /// From the innermost frame out; none for a task that is in user space.
    pub frames: Vec<FrameInfo>,
    /// Whether these are proven to be all frames.
    pub complete: bool,
    /// What could not be proven, if they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doubt: Option<String>,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FrameInfo {
    /// Where it goes on, in hexadecimal.
    pub address: String,
    /// The same as `function+offset/size [module]`.
    pub name: String,
    /// Whether it is behind a call; it is an interrupted instruction otherwise.
    pub behind_call: bool,
}

/// Every task of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskReport {
    /// Release of the kernel.
    pub kernel: String,
    /// All of them, idle ones included.
    pub tasks: Vec<TaskInfo>,
    /// What is not known although it should be.
    pub doubts: Vec<String>,
    /// What it took.
    pub effort: Effort,
    /// How long the guest stood still for it, in microseconds; 0 if it was paused already.
    pub paused_us: u64,
}

/// One task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskInfo {
    /// Its number; 0 for idle tasks.
    pub pid: u32,
    /// That of its process.
    pub tgid: u32,
    /// Its name.
    pub comm: String,
    /// `R` runs or could, `S` and `D` sleep, `T` is stopped, `Z` has ended.
    pub state: String,
    /// Whether it is the kernel's own.
    pub kernel_thread: bool,
    /// The vCPU that runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u32>,
    /// The processor whose idle task it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_of: Option<u32>,
    /// Whether it has ever run.
    pub has_run: bool,
    /// How often it was switched out.
    pub switches: u64,
    /// When it began, in nanoseconds since the guest's start.
    pub started_ns: u64,
}

/// Symbols of the running kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SymbolReport {
    /// Release of the kernel.
    pub kernel: String,
    /// Its build-id.
    pub build_id: String,
    /// How far KASLR has moved it from where it was linked for, in hexadecimal.
    pub moved_by: String,
    /// Those that were asked for.
    pub symbols: Vec<SymbolInfo>,
}

/// One symbol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SymbolInfo {
    /// Where it is now, in hexadecimal.
    pub address: String,
    /// Its kind, as nm(1) has it.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The module that has it; none for the kernel's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// The kernel's text, held against the image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TextReport {
    /// Release of the kernel.
    pub kernel: String,
    /// How many bytes were compared.
    pub bytes: u64,
    /// What differs by right of each of the kernel's tables, or of the guest's probes.
    pub explained: BTreeMap<String, TextShare>,
    /// What differs by nobody's.
    pub unexplained: Vec<Difference>,
    /// Whether there is more of that than is listed.
    pub cut: bool,
    /// How long the guest stood still for it, in microseconds; 0 if it was paused already.
    pub paused_us: u64,
}

/// How much differs for one reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TextShare {
    /// Places.
    pub sites: u64,
    /// Bytes in them that differ.
    pub bytes: u64,
}

/// Bytes that differ for no known reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// The first one, in hexadecimal.
    pub address: String,
    /// The same as `function+offset/size`.
    pub name: String,
    /// What is there, in hexadecimal.
    pub found: String,
    /// What the image has there.
    pub expected: String,
}
