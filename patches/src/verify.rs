//! Who has signed a patch.

use std::path::{Path, PathBuf};

use clap::Args;
use lucos_lup::limits::PUBLIC_KEY_BYTES;
use lucos_lup::{Patch, PublicKey, Signature};

use crate::exit::Failure;
use crate::files::{self, InFile};

/// Say whether a patch is signed by one of the given keys, and can be read
#[derive(Debug, Args)]
pub struct Verify {
    /// The patch
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A public key that is trusted, as minisign has it; can be given more than once
    #[arg(long = "key", value_name = "PUB", required = true)]
    keys: Vec<PathBuf>,
}

/// Verifies it; says who has signed.
pub fn run(verify: &Verify) -> Result<String, Failure> {
    let keys = verify.keys.iter().map(|path| public_key(path)).collect::<Result<Vec<_>, _>>()?;
    let bytes = files::read_patch(&verify.file)?;
    let container = files::container(&verify.file, &bytes)?;
    let key = container.verify(&keys);
    let key = key.map_err(|error| Failure::not_trusted(InFile::new(&verify.file, error)))?;
    let patch = Patch::read(&container).map_err(|error| files::refused(&verify.file, error))?;
    let comment = container.signature().map(Signature::comment).unwrap_or_default();
    Ok(format!(
        "{}: patch {}, signed by key {}: {}\n",
        verify.file.display(),
        patch.manifest.name,
        key.id(),
        comment.replace('\t', " ")
    ))
}

/// Reads a public key's file.
pub(crate) fn public_key(path: &Path) -> Result<PublicKey, Failure> {
    let bytes = files::read(path, PUBLIC_KEY_BYTES, "public key")?;
    PublicKey::read(&bytes).map_err(|error| files::refused(path, error))
}
