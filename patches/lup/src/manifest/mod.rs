//! The manifest: what a patch is, which kernels it is for, and what it changes.
//!
//! `docs/patch-format.md` has every field. A manifest that was read, or is written, obeys all rules that it can be held to by
//! itself; those that need the module are [`Module::check`](crate::module::Module::check)'s.

mod check;
mod values;

use serde::{Deserialize, Serialize};

pub use values::{BuildId, Code, Hole, PatchName};

use crate::limits::MANIFEST_BYTES;

/// Why bytes are no manifest, or a manifest is none that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Longer than any.
    #[error(
        "the manifest has {len:#x} bytes, and none has more than {MANIFEST_BYTES:#x}; make two patches of it"
    )]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Not JSON, or a field is missing, unknown or of another type.
    #[error("line {line}, column {column} of the manifest: {why}; docs/patch-format.md lists its fields")]
    Json {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// What the parser says.
        why: String,
    },
    /// A text breaks the rule for its field.
    #[error("{field} of the manifest is {found:?}, and must be {rule}")]
    Text {
        /// As in `functions[3].name`.
        field: String,
        /// Its beginning.
        found: String,
        /// What it must be.
        rule: &'static str,
    },
    /// A list is too long, or is empty and must not be; or so is code.
    #[error("{field} of the manifest has {found} entries, and must have {least} to {limit}")]
    Count {
        /// Its name.
        field: String,
        /// How many it has.
        found: usize,
        /// The fewest that it may have.
        least: usize,
        /// The most that it may have.
        limit: usize,
    },
    /// Something is listed twice.
    #[error("{field} of the manifest is there twice ({what}); take one out")]
    Twice {
        /// The second of both.
        field: String,
        /// What it is.
        what: String,
    },
    /// Two fields do not fit together.
    #[error("{field} of the manifest {why}")]
    Unfit {
        /// One of both.
        field: String,
        /// What the other demands, and what to do.
        why: String,
    },
}

/// What a patch is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// By which it is known on a host.
    pub name: PatchName,
    /// What it does, in a line for operators.
    pub summary: String,
    /// What it fixes: CVE ids.
    #[serde(default)]
    pub fixes: Vec<String>,
    /// The kernels that it was made for; it fits no other.
    pub kernels: Vec<Kernel>,
    /// The kernel module with the new code.
    pub module: ModuleInfo,
    /// The functions that it replaces.
    pub functions: Vec<Function>,
    /// How it is applied.
    pub policy: Policy,
    /// Patches that must be applied before, because this one was made of a source with their changes.
    #[serde(default)]
    pub requires: Vec<PatchName>,
}

/// One build of a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// As `uname -r` has it.
    pub release: String,
    /// By which builds are told apart that have the same release.
    pub build_id: BuildId,
}

/// What has to be known of the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleInfo {
    /// As in `/sys/module`.
    pub name: String,
    /// The undefined symbols of it that the host resolves. All others the guest's kernel must export.
    #[serde(default)]
    pub symbols: Vec<Import>,
}

/// An undefined symbol of the module, and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// Its name in the module.
    pub name: String,
    /// What it stands for.
    pub source: Symbol,
}

/// A symbol of the kernel or of one of its modules.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Symbol {
    /// As in the kernel's symbol table.
    pub name: String,
    /// The kernel's module that it is in; `None` for the kernel image.
    #[serde(default)]
    pub object: Option<String>,
    /// Which of all symbols of that object with that name: 0 for the only one, else the n-th by address, from 1. The kernel's
    /// own live patches count like that (`old_sympos`, `include/linux/livepatch.h`, Linux 6.1).
    #[serde(default)]
    pub position: u32,
}

/// A function that is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Function {
    /// As in the kernel's symbol table.
    pub name: String,
    /// The kernel's module that it is in; `None` for the kernel image.
    #[serde(default)]
    pub object: Option<String>,
    /// Which of several with that name: see [`Symbol::position`].
    #[serde(default)]
    pub position: u32,
    /// The symbol of the patch's module that is called instead.
    pub new: String,
    /// Bytes of the original.
    pub size: u32,
    /// The original, as it is in the kernel image or in the module's file.
    pub code: Code,
    /// Bytes of `code` that are filled in when the module is loaded, in order. The kernel image has none: what is filled in
    /// there the host knows by itself.
    #[serde(default)]
    pub holes: Vec<Hole>,
}

impl Function {
    /// The symbol of the original.
    pub fn symbol(&self) -> Symbol {
        Symbol { name: self.name.clone(), object: self.object.clone(), position: self.position }
    }
}

/// How a patch is applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// When it may be.
    pub consistency: Consistency,
    /// With [`Consistency::Coexist`], and only with it: why old and new code may run side by side, by the author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coexist_is_safe: Option<String>,
    /// What is done about threads in old code.
    #[serde(default)]
    pub draining: Draining,
    /// Whether the old code is filled with traps once nobody is in it.
    #[serde(default)]
    pub tombstones: bool,
}

/// When a patch may be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// At once: who is in old code ends there, while others are in new code.
    Coexist,
    /// When no thread is in a function that is replaced.
    Quiescent,
    /// Each thread at a moment of its own when it is in none. The format knows it; nothing applies it yet.
    PerTask,
}

/// What is done about threads that are in old code when a patch is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Draining {
    /// They are watched until the last has left.
    #[default]
    Watch,
    /// Their return addresses are replaced, so that each leaving is noticed at once.
    Redirect,
}

impl Manifest {
    /// Reads one out of a `.lup` file.
    pub fn read(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES {
            return Err(ManifestError::TooLong { len: bytes.len() });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| json_error(&error))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Writes one for a `.lup` file.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        let json = serde_json::to_vec(self).map_err(|error| json_error(&error))?;
        if json.len() > MANIFEST_BYTES {
            return Err(ManifestError::TooLong { len: json.len() });
        }
        Ok(json)
    }
}

fn json_error(error: &serde_json::Error) -> ManifestError {
    // The place is a field here, and stands at the end of the parser's sentence.
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let why = text.strip_suffix(&place).unwrap_or(&text).to_owned();
    ManifestError::Json { line: error.line(), column: error.column(), why }
}
