//! A new pair of keys.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use lucos_lup::PublicKey;
use minisign::{KeyPair, PError};

use crate::exit::Failure;
use crate::files::{self, FOR_ALL, FOR_OWNER};
use crate::secret::Password;

/// Make a pair of keys, of which the secret one signs patches and the public one is trusted by hosts
#[derive(Debug, Args)]
pub struct Keygen {
    /// Where they go: NAME.pub and NAME.key
    #[arg(value_name = "NAME")]
    name: PathBuf,
    /// Lock the secret key with the first line of FILE instead of asking for a password
    #[arg(long, value_name = "FILE", conflicts_with = "no_password")]
    password_file: Option<PathBuf>,
    /// Leave the secret key unlocked: whoever reads its file can sign
    #[arg(long)]
    no_password: bool,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
enum KeygenError {
    /// minisign could not make them.
    #[error("cannot make keys; without a terminal use --password-file or --no-password")]
    Make { source: PError },
    /// The password is empty, which protects nothing.
    #[error("the password is empty; write one into the file's first line, or use --no-password")]
    NoPassword,
}

/// Makes them; says where they are.
pub fn run(keygen: &Keygen) -> Result<String, Failure> {
    let (public, secret) = (with_end(&keygen.name, "pub"), with_end(&keygen.name, "key"));
    // Before anybody thinks of a password.
    for path in [&public, &secret] {
        if path.symlink_metadata().is_ok() {
            return Err(files::FileError::Exists { path: path.clone() }.into());
        }
    }
    let pair = pair(keygen)?;
    let made = || -> Result<(String, String), PError> {
        let comment = format!("secret key {} for patches", number(&pair)?);
        Ok((pair.pk.to_box()?.to_string(), pair.sk.to_box(Some(&comment))?.to_string()))
    };
    let (public_text, secret_text) =
        made().map_err(|source| Failure::failed(KeygenError::Make { source }))?;
    files::create(&secret, secret_text.as_bytes(), FOR_OWNER)?;
    files::create(&public, public_text.as_bytes(), FOR_ALL).inspect_err(|_| {
        // One key of a pair is of no use; the error is told anyway.
        let _ = std::fs::remove_file(&secret);
    })?;
    Ok(format!(
        "{}: the secret key; keep it secret, and sign with `lucos-patch sign --key {0}`\n{}: the public key, for hosts\n",
        secret.display(),
        public.display()
    ))
}

fn pair(keygen: &Keygen) -> Result<KeyPair, Failure> {
    let made = if keygen.no_password {
        KeyPair::generate_unencrypted_keypair()
    } else {
        let password = keygen.password_file.clone().map_or(Password::Asked, Password::InFile).read()?;
        if let Some((path, true)) = keygen.password_file.as_ref().zip(password.as_ref().map(String::is_empty))
        {
            return Err(files::refused(path, KeygenError::NoPassword));
        }
        KeyPair::generate_encrypted_keypair(password)
    };
    made.map_err(|source| Failure::failed(KeygenError::Make { source }))
}

/// The pair's number as people see it everywhere else.
fn number(pair: &KeyPair) -> Result<String, PError> {
    let text = pair.pk.to_box()?.to_string();
    let key = PublicKey::read(text.as_bytes());
    key.map(|key| key.id().to_string()).map_err(|error| PError::from(io::Error::other(error)))
}

/// `path` with something behind it, whatever dots it has in it.
fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}
