//! A patch, made of its manifest and its module.

use std::path::{Path, PathBuf};

use clap::Args;
use lucos_lup::limits::{MANIFEST_BYTES, MODULE_BYTES};
use lucos_lup::{Manifest, Patch};

use crate::exit::Failure;
use crate::files;

/// Make a patch of a manifest and a module; it is not signed yet
#[derive(Debug, Args)]
pub struct Pack {
    /// What the patch is: a .toml or .json file, with the fields of docs/patch-format.md
    #[arg(value_name = "MANIFEST")]
    manifest: PathBuf,
    /// The kernel module with the new code: a .ko file
    #[arg(value_name = "MODULE")]
    module: PathBuf,
    /// Where the patch goes, in place of what is there; its name and .lup if it is not given
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Why a manifest's file cannot be read as one.
#[derive(Debug, thiserror::Error)]
enum PackError {
    /// Its name does not say what is in it.
    #[error("the name says neither .toml nor .json; name the manifest by one of both")]
    Kind,
    /// It is no TOML.
    #[error("this is no TOML with the fields of docs/patch-format.md")]
    Toml { source: toml::de::Error },
    /// It is no text.
    #[error("this is no text; name the manifest first, then the module")]
    NoText,
}

/// Makes it; says where it is.
pub fn run(pack: &Pack) -> Result<String, Failure> {
    let manifest = manifest(&pack.manifest)?;
    let module = files::read(&pack.module, MODULE_BYTES, "module of a patch")?;
    let file = Patch::pack(&manifest, &module);
    let file = file.map_err(|error| files::refused(culprit(pack, &error), error))?;
    let output = pack.output.clone().unwrap_or_else(|| format!("{}.lup", manifest.name).into());
    files::replace(&output, &file)?;
    Ok(format!("{}: {} bytes, not signed\n", output.display(), file.len()))
}

/// The file that has to be changed, most likely.
fn culprit<'p>(pack: &'p Pack, error: &lucos_lup::PatchError) -> &'p Path {
    match error {
        lucos_lup::PatchError::Module(_) => &pack.module,
        _ => &pack.manifest,
    }
}

fn manifest(path: &Path) -> Result<Manifest, Failure> {
    let bytes = files::read(path, MANIFEST_BYTES, "manifest")?;
    match path.extension().and_then(|end| end.to_str()) {
        Some("json") => Manifest::read(&bytes).map_err(|error| files::refused(path, error)),
        Some("toml") => {
            let text = str::from_utf8(&bytes).map_err(|_| files::refused(path, PackError::NoText))?;
            toml::from_str(text).map_err(|source| files::refused(path, PackError::Toml { source }))
        }
        _ => Err(files::refused(path, PackError::Kind)),
    }
}
