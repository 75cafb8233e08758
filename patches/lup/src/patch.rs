//! A whole patch: manifest and module, which fit each other.

use crate::container::{self, Container, ContainerError};
use crate::manifest::{Manifest, ManifestError};
use crate::module::{Module, ModuleError};

/// Why a file is no patch that can be used. It says nothing of who made it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// As a file.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// Its manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its module, by itself or with the manifest.
    #[error(transparent)]
    Module(#[from] ModuleError),
}

/// What a `.lup` file says.
#[derive(Debug, Clone)]
pub struct Patch<'a> {
    /// What it changes.
    pub manifest: Manifest,
    /// The code that it brings.
    pub module: Module<'a>,
}

impl<'a> Patch<'a> {
    /// Reads both parts of a file. Whoever only takes signed patches asks [`Container::verify`] before.
    pub fn read(container: &Container<'a>) -> Result<Self, PatchError> {
        let manifest = Manifest::read(container.manifest())?;
        let module = Module::read(container.module())?;
        module.check(&manifest)?;
        Ok(Self { manifest, module })
    }

    /// Makes the file, without a signature.
    pub fn pack(manifest: &Manifest, module: &[u8]) -> Result<Vec<u8>, PatchError> {
        let json = manifest.to_json()?;
        Module::read(module)?.check(manifest)?;
        Ok(container::write(&json, module)?)
    }
}
