//! Unix sockets that the VMM offers: made for their owner only, never over a living VMM's, removed at the end.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Only the owner may connect.
const MODE: u32 = 0o600;
/// Clients that may wait to be accepted.
const BACKLOG: i32 = 128;
/// How long other VMMs may hold the directory's lock; each needs it for one probe and one bind.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A living process listens there.
    #[error(
        "{option} {}: a running VMM listens there already; choose another path, or stop that VMM",
        path.display()
    )]
    InUse {
        /// The option that named the path.
        option: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{option} {}: there is a file of another kind; choose another path, or remove it", path.display())]
    NoSocket {
        /// The option that named the path.
        option: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// The directory is missing or closed to us, or the like.
    #[error(
        "{option} {}: cannot {action}: {source}; check that its directory exists and that you may write there",
        path.display()
    )]
    Host {
        /// The option that named the path.
        option: &'static str,
        /// The path.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// A bound socket file; removed when dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: only our own file is removed, never one that somebody put in its place.
    identity: (u64, u64),
}

/// A place for a socket, and the option that named it.
#[derive(Clone, Copy)]
struct Place<'a> {
    option: &'static str,
    path: &'a Path,
}

impl Place<'_> {
    fn host<E: Into<io::Error>>(self, action: &'static str) -> impl Fn(E) -> SocketError {
        let (option, path) = (self.option, self.path.to_owned());
        move |source| SocketError::Host { option, path: path.clone(), action, source: source.into() }
    }
}

impl SocketFile {
    /// Makes the socket at `path` and listens; `option` is what the operator knows it by. The listener does
    /// not block.
    pub fn bind(option: &'static str, path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let place = Place { option, path };
        // From the look at an old socket until ours listens, no other VMM may do the same at this path:
        // both would take the old one for dead, and the second would remove the first one's.
        let _lock = lock_directory(path).map_err(place.host("lock its directory"))?;
        place.clear()?;
        let address = SocketAddrUnix::new(path).map_err(place.host("use a path that long"))?;
        let socket = place.socket()?;
        // Linux gives the file the mode that the socket has when it is bound (`unix_bind_bsd`), so there is
        // no moment at which it is open to others.
        let file = File::from(socket);
        file.set_permissions(Permissions::from_mode(MODE)).map_err(place.host("close it to others"))?;
        net::bind(&file, &address).map_err(place.host("create it"))?;
        let metadata = fs::symlink_metadata(path).map_err(place.host("look at it"))?;
        let own = Self { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) };
        if metadata.permissions().mode() & 0o777 != MODE {
            // A file system with ideas of its own. Nobody can connect yet: nothing listens.
            fs::set_permissions(path, Permissions::from_mode(MODE))
                .map_err(place.host("close it to others"))?;
        }
        net::listen(&file, BACKLOG).map_err(place.host("listen on it"))?;
        Ok((own, UnixListener::from(OwnedFd::from(file))))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

impl Place<'_> {
    fn socket(self) -> Result<OwnedFd, SocketError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(self.host("create a socket"))
    }

    /// Removes a socket that a dead VMM left; refuses anything else.
    fn clear(self) -> Result<(), SocketError> {
        let Self { option, path } = self;
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.host("look at it")(error)),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(SocketError::NoSocket { option, path: path.to_owned() });
            }
            Ok(_) => {}
        }
        let address = SocketAddrUnix::new(path).map_err(self.host("use a path that long"))?;
        // Without blocking: a Unix socket connects at once, or its owner is too busy to accept and lives.
        match net::connect(&self.socket()?, &address) {
            Err(rustix::io::Errno::CONNREFUSED) => {
                tracing::info!(path = %path.display(), "removing the socket of a VMM that is gone");
                fs::remove_file(path).map_err(self.host("remove the socket that a dead VMM left"))
            }
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error @ (rustix::io::Errno::ACCESS | rustix::io::Errno::PERM)) => {
                Err(self.host("open it")(error))
            }
            _ => Err(SocketError::InUse { option, path: path.to_owned() }),
        }
    }
}

/// Locks the directory of `path` against other VMMs, until the file is dropped.
fn lock_directory(path: &Path) -> io::Result<File> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or(Path::new(".")))?;
    let start = Instant::now();
    loop {
        match directory.try_lock() {
            // Some network file systems cannot lock a directory; then the probe has to do.
            Ok(()) | Err(TryLockError::Error(_)) => return Ok(directory),
            Err(TryLockError::WouldBlock) if start.elapsed() > LOCK_LIMIT => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(TryLockError::WouldBlock) => sleep(Duration::from_millis(10)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_socket_is_its_owners_only_and_goes_with_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (file, listener) = SocketFile::bind("--agent", &path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop((file, listener));
        assert!(!path.exists());
    }

    #[test]
    fn a_living_socket_is_respected_a_dead_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (file, listener) = SocketFile::bind("--agent", &path).unwrap();
        let error = SocketFile::bind("--agent", &path).unwrap_err().to_string();
        assert!(error.starts_with("--agent ") && error.contains("listens there already"), "{error}");
        std::mem::forget(file);
        drop(listener);
        let (_file, _listener) = SocketFile::bind("--agent", &path).unwrap();
        let other = directory.path().join("file");
        fs::write(&other, "x").unwrap();
        assert!(matches!(SocketFile::bind("--agent", &other), Err(SocketError::NoSocket { .. })));
        assert_eq!(fs::read(&other).unwrap(), b"x");
        let missing = directory.path().join("missing/s");
        assert!(matches!(SocketFile::bind("--agent", &missing), Err(SocketError::Host { .. })));
    }
}
