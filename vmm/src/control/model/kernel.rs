//! What the guest's kernel looks like from outside. Addresses are text, as JSON's numbers end at 2^53.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Every kernel stack of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StackReport {
    /// Release of the kernel.
    pub kernel: String,
    /// Which of the kernels it is that this VMM has found in its guests, from 1 on: a reboot, a kexec and a kdump each start
    /// another one.
    pub generation: u64,
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
    /// Which of the kernels it is that this VMM has found in its guests, from 1 on: a reboot, a kexec and a kdump each start
    /// another one.
    pub generation: u64,
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
    /// Which of the kernels it is that this VMM has found in its guests, from 1 on: a reboot, a kexec and a kdump each start
    /// another one.
    pub generation: u64,
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

/// Every module of the kernel, as the guest says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModuleReport {
    /// Release of the kernel.
    pub kernel: String,
    /// Which of the kernels it is that this VMM has found in its guests, from 1 on: a reboot, a kexec and a kdump each start
    /// another one.
    pub generation: u64,
    /// Those that were asked for.
    pub modules: Vec<ModuleInfo>,
    /// What is not known although it should be.
    pub doubts: Vec<String>,
    /// How long the guest stood still for it, in microseconds; 0 if it was paused already.
    pub paused_us: u64,
}

/// One module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModuleInfo {
    /// Its name.
    pub name: String,
    /// `live`, `coming` while its init function runs, `going`, or `unformed` while it is put together.
    pub state: String,
    /// Its text.
    pub text: TextRange,
    /// Text that it has only until its init function is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_text: Option<TextRange>,
    /// How many symbols it has.
    pub symbols: u64,
    /// How many entries its unwind table has.
    pub orc: u64,
    /// The places of its text that the kernel may change or looks up, by the table that lists them.
    pub tables: BTreeMap<String, SiteTable>,
    /// Such places that are gone with its init function.
    pub gone: u64,
    /// What could not be read, by the name of the table, and why.
    pub unread: BTreeMap<String, String>,
    /// Each of those places, if the module was asked for by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sites: Option<Vec<SiteInfo>>,
}

/// Where text is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TextRange {
    /// Its first byte, in hexadecimal.
    pub address: String,
    /// How many there are.
    pub bytes: u64,
}

/// One of a module's tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteTable {
    /// Its entries.
    pub entries: u64,
    /// The places that they are about; several entries may be about one, and one about two.
    pub sites: u64,
}

/// A place that the kernel may change or looks up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteInfo {
    /// Its first byte, in hexadecimal.
    pub address: String,
    /// How many bytes belong to it.
    pub bytes: u8,
    /// The table that lists it.
    pub table: String,
}

/// The kernel's text, held against the image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TextReport {
    /// Release of the kernel.
    pub kernel: String,
    /// Which of the kernels it is that this VMM has found in its guests, from 1 on: a reboot, a kexec and a kdump each start
    /// another one.
    pub generation: u64,
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
