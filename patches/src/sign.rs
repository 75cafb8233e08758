//! A patch's signature: made here, or by minisign and put behind the patch.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use lucos_lup::limits::SIGNATURE_BYTES;
use lucos_lup::{Container, Patch, PublicKey, Signature};
use minisign::{PError, SecretKey};

use crate::exit::Failure;
use crate::files;
use crate::secret::{self, Password};

/// Sign a patch, or put a signature behind it that `minisign -S` has made
#[derive(Debug, Args)]
pub struct Sign {
    /// The patch; it is replaced by the signed one
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Sign with this secret key, as minisign has it
    #[arg(long, value_name = "SECRET", conflicts_with = "attach", required_unless_present = "attach")]
    key: Option<PathBuf>,
    /// Unlock the key with the first line of FILE instead of asking for its password
    #[arg(long, value_name = "FILE", requires = "key")]
    password_file: Option<PathBuf>,
    /// Put this signature of the patch behind it; nobody knows yet whether it is right
    #[arg(long, value_name = "FILE.minisig")]
    attach: Option<PathBuf>,
    /// Take another signature off before
    #[arg(long)]
    replace: bool,
}

/// Why a patch was not signed.
#[derive(Debug, thiserror::Error)]
enum SignError {
    /// It has a signature.
    #[error("the patch is signed already, by key {key}; use --replace to take that signature off")]
    Signed { key: lucos_lup::signature::KeyId },
    /// minisign's library could not do it.
    #[error("cannot sign; try again")]
    Make { source: PError },
    /// What was signed does not verify.
    #[error(
        "the signature that was made does not fit: the secret key is damaged, or this machine; get the key's copy"
    )]
    Wrong,
}

/// Signs it; says who has.
pub fn run(sign: &Sign) -> Result<String, Failure> {
    let bytes = files::read_patch(&sign.file)?;
    let container = files::container(&sign.file, &bytes)?;
    // What nobody can use is not worth anybody's name.
    let patch = Patch::read(&container).map_err(|error| files::refused(&sign.file, error))?;
    if let Some(signature) = container.signature().filter(|_| !sign.replace) {
        let signed = SignError::Signed { key: signature.key() };
        return Err(files::refused(&sign.file, signed));
    }
    let (signature, next) = match (&sign.key, &sign.attach) {
        (Some(secret), _) => {
            let password = sign.password_file.clone().map_or(Password::Asked, Password::InFile);
            let key = secret::read(secret, &password)?;
            (signature_of(&container, &patch, &key)?, String::new())
        }
        (None, Some(made)) => {
            let next =
                format!("; `lucos-patch verify --key PUB {}` says whether it is right", sign.file.display());
            (attached(made)?, next)
        }
        (None, None) => return Err(Failure::failed("clap has let a command line through without a key")),
    };
    files::replace(&sign.file, &container.signed(&signature))?;
    Ok(format!(
        "{}: patch {} ({}), signature by key {}{next}\n",
        sign.file.display(),
        patch.manifest.name,
        patch.manifest.summary,
        signature.key()
    ))
}

fn attached(path: &Path) -> Result<Signature, Failure> {
    let bytes = files::read(path, SIGNATURE_BYTES, "signature")?;
    Signature::read(&bytes).map_err(|error| files::refused(path, error))
}

/// Signs, and looks whether a host would take it.
fn signature_of(container: &Container<'_>, patch: &Patch<'_>, key: &SecretKey) -> Result<Signature, Failure> {
    let failed = |source| Failure::failed(SignError::Make { source });
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // As minisign itself says what it has signed.
    let comment = format!("timestamp:{seconds}\tfile:{}.lup\thashed", patch.manifest.name);
    let signature = minisign::sign(None, key, container.body(), Some(&comment), None).map_err(failed)?;
    let signature = Signature::read(signature.to_string().as_bytes()).map_err(Failure::failed)?;
    let public =
        minisign::PublicKey::from_secret_key(key).and_then(|public| public.to_box()).map_err(failed)?;
    let public = PublicKey::read(public.to_string().as_bytes()).map_err(Failure::failed)?;
    match signature.verify(container.body(), &[public]) {
        Ok(_) => Ok(signature),
        Err(_) => Err(Failure::failed(SignError::Wrong)),
    }
}
