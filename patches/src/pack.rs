//! A patch, made of its manifest and its module.

use std::path::{Path, PathBuf};

use clap::Args;
use lucos_lup::limits::{MANIFEST_BYTES, MODULE_BYTES};
use lucos_lup::manifest::{Function, Hole, Symbol};
use lucos_lup::module::StockModule;
use lucos_lup::{Manifest, Patch};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::exit::Failure;
use crate::files;
use crate::stock::Stock;

/// Make a patch of a manifest and a module; it is not signed yet
#[derive(Debug, Args)]
pub struct Pack {
    /// What the patch is: a .toml or .json file, with the fields of docs/patch-format.md
    #[arg(value_name = "MANIFEST")]
    manifest: PathBuf,
    /// The kernel module with the new code: a .ko file
    #[arg(value_name = "MODULE")]
    module: PathBuf,
    /// The kernel that is to be patched: what the manifest does not say of it is taken from there
    ///
    /// That is `kernels`, and of each function `size`, `code` and `holes`.
    #[arg(long, value_name = "VMLINUZ")]
    kernel: Option<PathBuf>,
    /// A module of that kernel, as its package has it, if a function is in one; may be repeated
    #[arg(long, value_name = "FILE", requires = "kernel")]
    ko: Vec<PathBuf>,
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
    /// It is no JSON.
    #[error("this is no manifest with the fields of docs/patch-format.md")]
    Json { source: serde_json::Error },
    /// A function of it has not the fields of one.
    #[error("functions[{index}] of the manifest has not the fields of docs/patch-format.md")]
    Function { index: usize, source: serde_json::Error },
    /// A function of it is not as it is said to be.
    #[error(
        "{field} of {name} is not what this kernel says; leave it out, or name the kernel that the manifest is for"
    )]
    Differs { name: String, field: &'static str },
    /// It is no text.
    #[error("this is no text; name the manifest first, then the module")]
    NoText,
}

/// Makes it; says where it is.
pub fn run(pack: &Pack) -> Result<String, Failure> {
    let manifest = match &pack.kernel {
        None => manifest(&pack.manifest)?,
        Some(kernel) => completed(&pack.manifest, &Stock::read(kernel, &pack.ko)?)?,
    };
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
    match text(path)? {
        Text::Json(bytes) => Manifest::read(&bytes).map_err(|error| files::refused(path, error)),
        Text::Toml(text) => {
            toml::from_str(&text).map_err(|source| files::refused(path, PackError::Toml { source }))
        }
    }
}

/// What a manifest is written in.
enum Text {
    Json(Vec<u8>),
    Toml(String),
}

fn text(path: &Path) -> Result<Text, Failure> {
    let bytes = files::read(path, MANIFEST_BYTES, "manifest")?;
    match path.extension().and_then(|end| end.to_str()) {
        Some("json") => Ok(Text::Json(bytes)),
        Some("toml") => match String::from_utf8(bytes) {
            Ok(text) => Ok(Text::Toml(text)),
            Err(_) => Err(files::refused(path, PackError::NoText)),
        },
        _ => Err(files::refused(path, PackError::Kind)),
    }
}

/// A manifest that leaves out what the kernel itself says.
fn completed(path: &Path, stock: &Stock) -> Result<Manifest, Failure> {
    let mut value: Value = match text(path)? {
        Text::Json(bytes) => serde_json::from_slice(&bytes)
            .map_err(|source| files::refused(path, PackError::Json { source }))?,
        Text::Toml(text) => {
            toml::from_str(&text).map_err(|source| files::refused(path, PackError::Toml { source }))?
        }
    };
    let modules = stock.modules()?;
    if value.get("kernels").is_none() {
        value["kernels"] = json!([stock.kernel()?]);
    }
    let functions = value.get_mut("functions").and_then(Value::as_array_mut).into_iter().flatten();
    for (index, function) in functions.enumerate() {
        if function.get("code").is_some() {
            continue;
        }
        let uncoded = serde_json::from_value(function.take());
        let uncoded: Uncoded =
            uncoded.map_err(|source| files::refused(path, PackError::Function { index, source }))?;
        *function = json!(uncoded.completed(path, stock, &modules)?);
    }
    serde_json::from_value(value).map_err(|source| files::refused(path, PackError::Json { source }))
}

/// A function of a manifest that leaves its code to the kernel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Uncoded {
    name: String,
    #[serde(default)]
    object: Option<String>,
    #[serde(default)]
    position: u32,
    new: String,
    size: Option<u32>,
    holes: Option<Vec<Hole>>,
}

impl Uncoded {
    /// The same with what the kernel says; what the manifest says of that must be so.
    fn completed(self, path: &Path, stock: &Stock, modules: &[StockModule<'_>]) -> Result<Function, Failure> {
        let Self { name, object, position, new, size, holes } = self;
        let function = stock.function(&Symbol { name, object, position }, &new, modules)?;
        let field = if size.is_some_and(|size| size != function.size) {
            "size"
        } else if holes.is_some_and(|holes| holes != function.holes) {
            "holes"
        } else {
            return Ok(function);
        };
        Err(files::refused(path, PackError::Differs { name: function.name, field }))
    }
}
