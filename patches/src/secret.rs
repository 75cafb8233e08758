//! Secret keys, in minisign's format: locked by a password, or not.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use minisign::{ErrorKind, PError, SecretKey, SecretKeyBox};

use crate::exit::Failure;
use crate::files::{self, InFile};

/// Bytes of a secret key file: one comment, and 212 characters of key (minisign 0.11).
const SECRET_KEY_BYTES: usize = 2 << 10;

/// Where a key has how it is locked, and its checksum, and how long it is (minisign 0.11, `src/minisign.h`, `SeckeyStruct`).
const LOCK: std::ops::Range<usize> = 2..4;
const CHECKSUM: std::ops::Range<usize> = 126..158;
/// How it is locked: not at all, or by a password that goes through scrypt.
const OPEN: [u8; 2] = [0; 2];
const SCRYPT: [u8; 2] = *b"Sc";

/// Bytes of a file with a password (`PASSWORD_MAXBYTES`, minisign 0.11), and a line end.
const PASSWORD_BYTES: usize = 1024 + 2;

/// Why a secret key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    /// It is none.
    #[error("this is no secret key of minisign; name a .key file of `minisign -G` or `lucos-patch keygen`")]
    NoKey,
    /// It is one, and cannot be right.
    #[error("the secret key is damaged; get its copy")]
    Damaged { source: PError },
    /// It does not open.
    #[error("the key stays locked; try again with the key's password")]
    Locked { source: PError },
    /// Nobody can be asked.
    #[error(
        "the key is locked, and there is no terminal to ask for its password; give it by --password-file"
    )]
    NoTerminal { source: PError },
    /// A password for a key that has none.
    #[error("the key has no password; leave out --password-file")]
    NoPassword,
    /// What should have a password in it has no text.
    #[error("the password is no text; write it into a file of one line")]
    NoText,
}

impl SecretError {
    /// By what minisign's library says of a locked key.
    fn of_locked(source: PError, password: &Password) -> Self {
        match (source.kind(), password) {
            (ErrorKind::Verify, _) => Self::Locked { source },
            (ErrorKind::Io, Password::Asked) => Self::NoTerminal { source },
            _ => Self::Damaged { source },
        }
    }
}

/// Where the password is from.
#[derive(Debug, Clone)]
pub(crate) enum Password {
    /// Whoever is at the terminal is asked, if the key has one.
    Asked,
    /// The first line of a file.
    InFile(PathBuf),
}

impl Password {
    /// `None` has minisign ask for it.
    pub(crate) fn read(&self) -> Result<Option<String>, Failure> {
        let Self::InFile(path) = self else { return Ok(None) };
        let bytes = files::read(path, PASSWORD_BYTES, "file with a password")?;
        let text = String::from_utf8(bytes);
        let text = text.map_err(|_| files::refused(path, SecretError::NoText))?;
        Ok(Some(text.lines().next().unwrap_or_default().to_owned()))
    }
}

/// Reads and unlocks the key in a file.
pub(crate) fn read(path: &Path, password: &Password) -> Result<SecretKey, Failure> {
    let bytes = files::read(path, SECRET_KEY_BYTES, "secret key")?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let key = decode(&text).ok_or_else(|| files::refused(path, SecretError::NoKey))?;
    let opened = if key[LOCK] == SCRYPT {
        SecretKeyBox::from(text)
            .into_secret_key(password.read()?)
            .map_err(|source| SecretError::of_locked(source, password))
    } else if matches!(password, Password::InFile(_)) {
        Err(SecretError::NoPassword)
    } else if key[CHECKSUM] == [0; CHECKSUM.end - CHECKSUM.start] {
        // So minisign 0.11 writes a key with `-G -W`, and its library refuses it. Whether it is damaged is seen when the
        // signature that it makes does not fit.
        SecretKey::from_bytes(&key).map_err(|source| SecretError::Damaged { source })
    } else {
        SecretKeyBox::from(text)
            .into_unencrypted_secret_key()
            .map_err(|source| SecretError::Damaged { source })
    };
    opened.map_err(|error| match error {
        SecretError::NoTerminal { .. } => Failure::failed(InFile::new(path, error)),
        _ => files::refused(path, error),
    })
}

/// The bytes of a secret key, if the text has the form of one.
fn decode(text: &str) -> Option<Vec<u8>> {
    let bytes = BASE64.decode(text.lines().nth(1)?).ok()?;
    let is_key = bytes.len() == CHECKSUM.end && (bytes[LOCK] == SCRYPT || bytes[LOCK] == OPEN);
    is_key.then_some(bytes)
}
