//! A patch's file, and whether it may be applied at all: everything that can be told without the guest.

use lucos_lup::manifest::{Consistency, Function};
use lucos_lup::signature::VerifyError;
use lucos_lup::{Container, PublicKey, patch};
use update_server::kernel::model::Model;
use update_server::phases::admit::{NotAdmitted, admit};
use update_server::server::Patch;

use crate::control::ControlError;

/// Who brought a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Whoever can open the control socket.
    Operator,
    /// Somebody in the guest.
    Guest,
}

/// A patch that may be applied to guests with this kernel.
#[derive(Debug)]
pub struct Admitted {
    /// What it changes.
    pub(super) patch: Patch,
    /// The name that its module has in the guest.
    pub(super) module: String,
    pub(super) summary: String,
    pub(super) fixes: Vec<String>,
    pub(super) functions: Vec<String>,
    pub(super) consistency: &'static str,
    /// The key by which it was signed.
    pub(super) signed_by: Option<String>,
    pub(super) origin: Origin,
    /// By which it is told from others of the same name.
    pub(super) manifest: Vec<u8>,
}

impl Admitted {
    /// Reads a file whose signature must be one of `keys`', or which needs none.
    pub(super) fn read(
        file: &[u8],
        keys: &[PublicKey],
        unsigned: bool,
        origin: Origin,
        model: &Model,
    ) -> Result<Self, ControlError> {
        let container = Container::read(file).map_err(|error| refused("bad_patch", &error))?;
        // Before anything else is read.
        let signed_by = match container.verify(keys) {
            Ok(key) => Some(key.id().to_string()),
            Err(error) if unsigned => {
                tracing::warn!("a patch is taken although nobody vouches for it: {error}");
                None
            }
            Err(error) => return Err(signature_refused(&error, keys)),
        };
        let patch = patch::Patch::read(&container).map_err(|error| refused("bad_patch", &error))?;
        let manifest = &patch.manifest;
        let admitted =
            admit(model.image(), manifest, container.module()).map_err(|error| not_admitted(&error))?;
        Ok(Self {
            patch: admitted,
            module: manifest.module.name.clone(),
            summary: manifest.summary.clone(),
            fixes: manifest.fixes.clone(),
            functions: manifest.functions.iter().map(function).collect(),
            consistency: match manifest.policy.consistency {
                Consistency::Coexist => "coexist",
                Consistency::Quiescent => "quiescent",
                Consistency::PerTask => "per-task",
            },
            signed_by,
            origin,
            manifest: container.manifest().to_vec(),
        })
    }

    /// Whether it is the same patch, and not only one of the same name.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.manifest == other.manifest && self.patch.module == other.patch.module
    }
}

fn function(function: &Function) -> String {
    match &function.object {
        Some(module) => format!("{} [{module}]", function.name),
        None => function.name.clone(),
    }
}

fn refused(code: &'static str, why: &dyn ToString) -> ControlError {
    ControlError::PatchRefused { code, why: why.to_string() }
}

fn signature_refused(error: &VerifyError, keys: &[PublicKey]) -> ControlError {
    let hint =
        if keys.is_empty() { "; this VMM trusts no key: start it with --patch-key KEY.pub" } else { "" };
    refused("not_trusted", &format!("{error}{hint}"))
}

fn not_admitted(error: &NotAdmitted) -> ControlError {
    let code = match error {
        NotAdmitted::OtherKernel { .. } => "other_kernel",
        _ => "not_applicable",
    };
    refused(code, error)
}
