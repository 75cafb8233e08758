//! The keys whose signatures count.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use lucos_lup::PublicKey;
use lucos_lup::signature::KeyError;

/// More than a key's file has; one that is longer is refused as what it is.
const READ: u64 = 64 << 10;

/// Why a file has no key that could be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("--patch-key {}: {source}; it names the public key of whoever signs patches", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It is something else.
    #[error("--patch-key {}: {source}; it is the file that `lucos-patch keygen` or minisign has made", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyError,
    },
}

/// Reads the files of public keys.
pub fn read_keys(paths: &[PathBuf]) -> Result<Vec<PublicKey>, KeyFileError> {
    paths.iter().map(|path| read_key(path)).collect()
}

fn read_key(path: &Path) -> Result<PublicKey, KeyFileError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(READ).read_to_end(&mut bytes));
    read.map_err(|source| KeyFileError::Read { path: path.to_owned(), source })?;
    PublicKey::read(&bytes).map_err(|source| KeyFileError::Key { path: path.to_owned(), source })
}
