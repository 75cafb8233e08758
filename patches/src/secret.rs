//! Secret keys, in minisign's format: locked by a password, or not.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use minisign::{ErrorKind, PError, SecretKey, SecretKeyBox};

use crate::exit::Failure;
use crate::files;

/// Bytes of a secret key file: one comment, and 212 characters of key (minisign 0.11).
const SECRET_KEY_BYTES: usize = 2 << 10;

/// Where a key has how it is locked, and its checksum, and how long it is (minisign 0.11, `src/minisign.h`, `SeckeyStruct`).
const LOCK: std::ops::Range<usize> = 2..4;
const CHECKSUM: std::ops::Range<usize> = 126..158;

/// Bytes of a file with a password (`PASSWORD_MAXBYTES`, minisign 0.11), and a line end.
const PASSWORD_BYTES: usize = 1024 + 2;

/// Why a secret key cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    /// It is none, or is damaged.
    #[error("this is no secret key of minisign; name a .key file of `minisign -G` or `lucos-patch keygen`")]
    NoKey { source: PError },
    /// It does not open.
    #[error("the key stays locked; try again with the key's password, or give it by --password-file")]
    Locked { source: PError },
    /// A password for a key that has none.
    #[error("the key has no password; leave out --password-file")]
    NoPassword,
    /// What should have a password in it has no text.
    #[error("the password is no text; write it into a file of one line")]
    NoText,
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
    let refused = |error: SecretError| files::refused(path, error);
    let bytes = files::read(path, SECRET_KEY_BYTES, "secret key")?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if let Some(key) = without_checksum(&text) {
        return if matches!(password, Password::InFile(_)) {
            Err(refused(SecretError::NoPassword))
        } else {
            Ok(key)
        };
    }
    match SecretKeyBox::from(text.clone()).into_unencrypted_secret_key() {
        Ok(_) if matches!(password, Password::InFile(_)) => return Err(refused(SecretError::NoPassword)),
        Ok(key) => return Ok(key),
        // That is how a key that is not locked, and is damaged, ends.
        Err(source) if matches!(source.kind(), ErrorKind::Verify) => {
            return Err(refused(SecretError::NoKey { source }));
        }
        // Locked, or no key: the next call tells, and asks for no password before it knows.
        Err(_) => {}
    }
    SecretKeyBox::from(text).into_secret_key(password.read()?).map_err(|source| {
        refused(match source.kind() {
            ErrorKind::Verify => SecretError::Locked { source },
            _ => SecretError::NoKey { source },
        })
    })
}

/// A key that is not locked and has zeros for a checksum: so minisign 0.11 writes one with `-G -W`, and its library refuses it.
/// Whether it is damaged is seen when the signature that it makes does not fit.
fn without_checksum(text: &str) -> Option<SecretKey> {
    let bytes = BASE64.decode(text.lines().nth(1)?).ok()?;
    let is_plain = bytes.len() == CHECKSUM.end
        && bytes[LOCK].iter().all(|&byte| byte == 0)
        && bytes[CHECKSUM].iter().all(|&byte| byte == 0);
    is_plain.then(|| SecretKey::from_bytes(&bytes).ok()).flatten()
}
