//! Files: read within limits, written whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use lucos_lup::container::Container;
use lucos_lup::limits::FILE_BYTES;

use crate::exit::Failure;

/// What everybody may read, less what the user's own settings take away.
pub(crate) const FOR_ALL: u32 = 0o666;
/// What only its owner may read.
pub(crate) const FOR_OWNER: u32 = 0o600;

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It cannot be read.
    #[error("cannot read {}; check the path and its permissions", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// It cannot be written.
    #[error("cannot write {}; check the folder, its permissions and the space that is left", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// There is one, and it is not to be lost.
    #[error("{} is there already; take it away, or name another place", path.display())]
    Exists { path: PathBuf },
    /// It is longer than what it should be can be.
    #[error("{} has more than {limit:#x} bytes, so it is no {what}; check the path", path.display())]
    TooLong { path: PathBuf, limit: usize, what: &'static str },
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        match error {
            FileError::TooLong { .. } => Self::refused(error),
            _ => Self::failed(error),
        }
    }
}

/// The contents of a file that has `limit` bytes at most; `what` says what it should be.
pub(crate) fn read(path: &Path, limit: usize, what: &'static str) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    // A device or pipe may have no end.
    let file = File::open(path).map_err(failed)?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limit {
        return Err(FileError::TooLong { path: path.to_owned(), limit, what });
    }
    Ok(bytes)
}

/// The bytes of a `.lup` file.
pub(crate) fn read_patch(path: &Path) -> Result<Vec<u8>, FileError> {
    read(path, FILE_BYTES, ".lup file")
}

/// Takes the file at `path`, of which `bytes` were read, apart.
pub(crate) fn container<'a>(path: &Path, bytes: &'a [u8]) -> Result<Container<'a>, Failure> {
    Container::read(bytes).map_err(|error| refused(path, error))
}

/// That the contents of the file at `path` cannot be used.
pub(crate) fn refused(path: &Path, error: impl Into<Cause>) -> Failure {
    Failure::refused(InFile::new(path, error))
}

/// What is wrong with a file's contents.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
pub(crate) struct InFile {
    path: PathBuf,
    source: Cause,
}

/// Any error.
type Cause = Box<dyn std::error::Error + Send + Sync>;

impl InFile {
    pub(crate) fn new(path: &Path, source: impl Into<Cause>) -> Self {
        Self { path: path.to_owned(), source: source.into() }
    }
}

/// Writes a file that is not there yet.
pub(crate) fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let failed = |source| FileError::Write { path: path.to_owned(), source };
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(FileError::Exists { path: path.to_owned() });
        }
        opened => opened.map_err(failed)?,
    };
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|source| {
        // Half a file is worse than none, and that it cannot be taken away would say nothing new.
        let _ = std::fs::remove_file(path);
        failed(source)
    })
}

/// Writes a file in place of what may be there: at each moment the old one or the new one is.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    // What a link points at, not the link.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let failed = |source| FileError::Write { path: path.to_owned(), source };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // It keeps its permissions; a new one is made with those of any file.
    let mode = path.metadata().map(|metadata| metadata.permissions().mode() & 0o777);
    let mut options = tempfile::Builder::new();
    options
        .prefix(".lucos-patch-")
        .permissions(PermissionsExt::from_mode(mode.as_ref().map_or(FOR_ALL, |&mode| mode)));
    let mut file = options.tempfile_in(folder).map_err(failed)?;
    if let Ok(mode) = mode {
        file.as_file().set_permissions(PermissionsExt::from_mode(mode)).map_err(failed)?;
    }
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist(path).map(drop).map_err(|error| failed(error.error))
}

/// Prints to standard output.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has seen enough, as in `| head`, is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5, "x").unwrap(), b"12345");
        assert!(matches!(read(&path, 4, "x"), Err(FileError::TooLong { limit: 4, .. })));
        assert!(matches!(read(Path::new("/dev/zero"), 4096, "x"), Err(FileError::TooLong { .. })));
        assert!(matches!(read(&folder.path().join("b"), 5, "x"), Err(FileError::Read { .. })));
    }

    #[test]
    fn what_is_there_is_replaced_only_where_that_is_meant() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        create(&path, b"one", FOR_OWNER).unwrap();
        assert!(matches!(create(&path, b"two", FOR_OWNER), Err(FileError::Exists { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        replace(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, FOR_OWNER, "permissions are kept");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        replace(&link, b"three").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        replace(&folder.path().join("b"), b"new").unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 3, "nothing else is left");
        assert!(matches!(replace(&folder.path().join("c/d"), b""), Err(FileError::Write { .. })));
    }
}
