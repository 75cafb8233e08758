//! `lucos-agent apply`: a patch that is handed in from inside.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use lucos_abi::{CALL_BYTES, Place, UPLOAD_BYTES, patch_name};

use crate::host::{Host, HostError};

/// Why a patch was not handed over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PatchError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is no patch, whatever is in it.
    #[error("{} has more than the {} MiB that a patch can have, or nothing at all", .0.display(), UPLOAD_BYTES >> 20)]
    Size(PathBuf),
    /// The host could not be told its name.
    #[error("{:?} is no name that can be told to the host: it has to be one line of at most 255 bytes", .0)]
    Name(PathBuf),
    /// The host did not take it.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Hands the file to the host; returns the number that it has there.
pub(crate) fn hand_in(host: &mut Host, path: &Path) -> Result<u32, PatchError> {
    let bytes = read(path)?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = patch_name(name.as_bytes()).ok_or_else(|| PatchError::Name(path.into()))?;
    // Ours alone while we run: the highest process id has fewer bits (`PID_MAX_LIMIT` of include/linux/threads.h).
    let number = std::process::id() & Place::NUMBER_MAX;
    let mut offset = 0;
    for part in bytes.chunks(CALL_BYTES) {
        host.write(Place { number, offset }, part)?;
        offset += part.len() as u64;
    }
    Ok(host.submit(Place { number, offset }, name)?)
}

fn read(path: &Path) -> Result<Vec<u8>, PatchError> {
    let mut bytes = Vec::new();
    let file = File::open(path).and_then(|file| file.take(UPLOAD_BYTES + 1).read_to_end(&mut bytes));
    file.map_err(|source| PatchError::Read { path: path.into(), source })?;
    if bytes.is_empty() || bytes.len() as u64 > UPLOAD_BYTES {
        return Err(PatchError::Size(path.into()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_patches_are_not_sent() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(read(file.path()), Err(PatchError::Size(_))));
        file.as_file().set_len(UPLOAD_BYTES).unwrap();
        assert_eq!(read(file.path()).unwrap().len() as u64, UPLOAD_BYTES);
        file.as_file().set_len(UPLOAD_BYTES + 1).unwrap();
        assert!(matches!(read(file.path()), Err(PatchError::Size(_))));
        assert!(matches!(read(Path::new("/nonexistent")), Err(PatchError::Read { .. })));
    }
}
