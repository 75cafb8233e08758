//! The path of a Unix socket.

use std::path::{Path, PathBuf};

use crate::config::ValueError;

/// A Unix socket's address holds 108 bytes, the last a NUL (`sun_path`, unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// Parses the path of a Unix socket: not empty, short enough for its address.
pub fn parse_socket_path(text: &str) -> Result<PathBuf, ValueError> {
    let path = PathBuf::from(text);
    check_socket_path(&path)?;
    Ok(path)
}

pub(in crate::config) fn check_socket_path(path: &Path) -> Result<(), ValueError> {
    match path.as_os_str().len() {
        0 => Err(ValueError::Empty),
        len if len > SOCKET_PATH_MAX => Err(ValueError::SocketPath { most: SOCKET_PATH_MAX, len }),
        _ => Ok(()),
    }
}
