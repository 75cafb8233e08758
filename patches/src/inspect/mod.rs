//! What is in a patch.

mod render;

use std::path::{Path, PathBuf};

use clap::Args;
use lucos_lup::container::VERSION;
use lucos_lup::signature::KeyId;
use lucos_lup::{Container, Manifest, Patch};
use serde::Serialize;

use crate::exit::Failure;
use crate::files::{self, FOR_ALL};

/// Show what is in a patch; whether its signature is right is for `verify`
#[derive(Debug, Args)]
pub struct Inspect {
    /// The patch
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print all of it as JSON
    #[arg(long)]
    json: bool,
    /// Write its parts into DIR, which is made if it is not there: NAME.lup without its signature, NAME.lup.minisig, NAME.json
    /// and the module
    #[arg(long, value_name = "DIR")]
    extract: Option<PathBuf>,
}

/// All that a file says of itself.
#[derive(Debug, Serialize)]
struct Contents {
    format_version: u32,
    /// Bytes of the file, and of its parts.
    size: usize,
    manifest_size: usize,
    module_size: usize,
    signature: Option<SignatureInfo>,
    manifest: Manifest,
    module: ModuleFacts,
}

#[derive(Debug, Serialize)]
struct SignatureInfo {
    key: KeyId,
    comment: String,
    /// Never here; said, so that nobody takes one for the other.
    verified: bool,
}

#[derive(Debug, Serialize)]
struct ModuleFacts {
    name: String,
    vermagic: String,
    sections: usize,
    /// Undefined symbols that the guest's kernel has to export.
    exported: Vec<String>,
    /// Bytes of each new function, in the order of the manifest's functions.
    new_sizes: Vec<u64>,
}

impl Contents {
    fn of(container: &Container<'_>, patch: Patch<'_>) -> Self {
        let Patch { manifest, module } = patch;
        let signature = container.signature().map(|signature| SignatureInfo {
            key: signature.key(),
            comment: signature.comment().to_owned(),
            verified: false,
        });
        let resolved: std::collections::HashSet<&str> =
            manifest.module.symbols.iter().map(|import| import.name.as_str()).collect();
        let exported = module.undefined().iter().filter(|name| !resolved.contains(*name));
        let new = manifest.functions.iter().map(|function| module.function_size(&function.new));
        let facts = ModuleFacts {
            name: module.name().to_owned(),
            vermagic: module.vermagic().to_owned(),
            sections: module.sections(),
            exported: exported.map(|&name| name.to_owned()).collect(),
            // Each is there, or the patch would not have been read.
            new_sizes: new.map(Result::unwrap_or_default).collect(),
        };
        Self {
            format_version: VERSION,
            size: container.body().len()
                + container.signature().map_or(0, |signature| signature.text().len()),
            manifest_size: container.manifest().len(),
            module_size: container.module().len(),
            signature,
            manifest,
            module: facts,
        }
    }
}

/// Shows it, and writes its parts where that is asked for.
pub fn run(inspect: &Inspect) -> Result<String, Failure> {
    let bytes = files::read_patch(&inspect.file)?;
    let container = files::container(&inspect.file, &bytes)?;
    let patch = Patch::read(&container).map_err(|error| files::refused(&inspect.file, error))?;
    let written = match &inspect.extract {
        Some(folder) => extract(folder, &container, &patch)?,
        None => Vec::new(),
    };
    let contents = Contents::of(&container, patch);
    if inspect.json {
        return Ok(serde_json::to_string_pretty(&contents).map_err(Failure::failed)? + "\n");
    }
    let mut text = render::contents(&contents);
    for path in written {
        text = format!("{text}written: {}\n", path.display());
    }
    Ok(text)
}

/// What is in a `file`, into which `bytes` have been written, for people.
pub(crate) fn show(file: &Path, bytes: &[u8]) -> Result<String, Failure> {
    let container = files::container(file, bytes)?;
    let patch = Patch::read(&container).map_err(|error| files::refused(file, error))?;
    Ok(render::contents(&Contents::of(&container, patch)))
}

/// Writes the parts; where. Their names are of plain characters only: the patch would not have been read else.
fn extract(folder: &Path, container: &Container<'_>, patch: &Patch<'_>) -> Result<Vec<PathBuf>, Failure> {
    let make = std::fs::create_dir_all(folder);
    make.map_err(|source| files::FileError::Write { path: folder.to_owned(), source })?;
    let (name, module) = (&patch.manifest.name, &patch.manifest.module.name);
    let parts = [
        (format!("{name}.lup"), Some(container.body())),
        (format!("{name}.lup.minisig"), container.signature().map(|signature| signature.text().as_bytes())),
        (format!("{name}.json"), Some(container.manifest())),
        (format!("{module}.ko"), Some(container.module())),
    ];
    let parts = parts.into_iter().filter_map(|(name, bytes)| Some((folder.join(name), bytes?)));
    parts.map(|(path, bytes)| Ok(files::create(&path, bytes, FOR_ALL).map(|()| path)?)).collect()
}
