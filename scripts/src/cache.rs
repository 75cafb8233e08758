//! The one folder where everything fetched or built for the test bed is kept.
//!
//! An entry is a folder `NAME/KEY`, where the key is a digest of all that the entry is made from. It is built under
//! `tmp/` and renamed into place when it is whole, so a kill at any moment leaves nothing half done; a lock per
//! name keeps two xtasks from doing the same work at once.

mod manifest;

use std::fs::{self, File, Permissions, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

pub use manifest::{Depth, Manifest};

use crate::progress;

/// The environment variable that moves the cache, for example to share it between work trees.
pub const CACHE_VARIABLE: &str = "LUCOS_CACHE";

/// Digits of the key: enough to never collide by accident, short enough to read.
const KEY_DIGITS: usize = 16;

/// No build takes this long.
const LEFTOVER_AGE: Duration = Duration::from_hours(12);

/// The cache folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
    depth: Depth,
}

/// A lock held until it is dropped; the kernel drops it too if the process is killed.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held open for the lock on it")] File);

/// Everything that an entry is made from: entries with equal inputs are the same entry.
#[derive(Debug, Clone, Default)]
pub struct Inputs(Sha256);

impl Inputs {
    /// No inputs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one named input; the lengths keep neighbouring inputs apart.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.0.update(format!("{name} {}\n", value.len()));
        self.0.update(value);
        self
    }

    /// Adds the file `inner` of `root`, or each file below it, by its path.
    pub fn with_files(self, root: &Path, inner: &Path) -> Result<Self> {
        let path = root.join(inner);
        let say = || format!("cannot read {}", path.display());
        if path.is_file() {
            return Ok(self.with(&inner.to_string_lossy(), fs::read(&path).with_context(say)?));
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).with_context(say)? {
            names.push(entry.with_context(say)?.file_name());
        }
        names.sort();
        names.iter().try_fold(self, |inputs, name| inputs.with_files(root, &inner.join(name)))
    }

    fn key(&self) -> String {
        let mut key = hex(&self.0.clone().finalize());
        key.truncate(KEY_DIGITS);
        key
    }
}

impl Cache {
    /// Opens the cache of this workspace, `target/lucos-cache`, or the one that `LUCOS_CACHE` names.
    pub fn open() -> Result<Self> {
        let root = match std::env::var_os(CACHE_VARIABLE) {
            Some(root) => PathBuf::from(root),
            None => workspace_root().join("target/lucos-cache"),
        };
        Self::at(&root)
    }

    /// Opens the cache in `root`, which is created if it is not there.
    pub fn at(root: &Path) -> Result<Self> {
        let hint = || format!("cannot use {} as the cache; set {CACHE_VARIABLE} to move it", root.display());
        for part in ["tmp", "lock"] {
            fs::create_dir_all(root.join(part)).with_context(hint)?;
        }
        let root = root.canonicalize().with_context(hint)?;
        sweep(&root.join("tmp"));
        Ok(Self { root, depth: Depth::Quick })
    }

    /// The same cache, but every entry is read in full before it is used.
    #[must_use]
    pub fn verifying(self, full: bool) -> Self {
        Self { depth: if full { Depth::Full } else { Depth::Quick }, ..self }
    }

    /// Where the cache is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the finished entry `name` made from `inputs`, building it first if it is missing or damaged.
    ///
    /// `build` fills the empty folder it is given.
    pub fn entry(
        &self,
        name: &str,
        inputs: &Inputs,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let place = self.place(name, inputs);
        if self.is_good(&place) {
            return Ok(place);
        }
        let _lock = self.lock(name)?;
        // Another xtask may have built it while this one waited for the lock.
        if self.is_good(&place) {
            return Ok(place);
        }
        let fresh = || -> Result<tempfile::TempDir> {
            remove(&place)?;
            fs::create_dir_all(self.root.join(name))?;
            // A new name each time: a program that outlives a killed xtask must not write into the next build.
            let scratch = tempfile::Builder::new().prefix(&flat(name)).tempdir_in(self.root.join("tmp"))?;
            fs::set_permissions(scratch.path(), Permissions::from_mode(0o755))?;
            Ok(scratch)
        };
        let scratch =
            fresh().with_context(|| format!("cannot prepare the cache entry {}", place.display()))?;
        build(scratch.path())?;
        Manifest::of(scratch.path())?.write(scratch.path())?;
        fs::rename(scratch.path(), &place)
            .with_context(|| format!("cannot move {} to {}", scratch.path().display(), place.display()))?;
        // It is not there any more, so there is nothing to remove.
        let _ = scratch.keep();
        Ok(place)
    }

    /// Where the entry `name` made from `inputs` is, or would be.
    pub fn place(&self, name: &str, inputs: &Inputs) -> PathBuf {
        self.root.join(name).join(inputs.key())
    }

    /// Whether the entry in `place` is finished and as it was when it was finished.
    pub fn is_good(&self, place: &Path) -> bool {
        if !place.exists() {
            return false;
        }
        match Manifest::read(place).and_then(|manifest| manifest.check(place, self.depth)) {
            Ok(()) => true,
            Err(why) => {
                progress::note(format!(
                    "the cache entry {} is damaged, making it again: {why:#}",
                    place.display()
                ));
                false
            }
        }
    }

    /// Takes the lock `name`, waiting for another xtask that holds it.
    pub fn lock(&self, name: &str) -> Result<Lock> {
        let path = self.root.join("lock").join(flat(name));
        let take = || -> Result<File> {
            let file = File::create(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    progress::note(format!("waiting for another xtask that works on {name}"));
                    file.lock()?;
                }
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            Ok(file)
        };
        take().map(Lock).with_context(|| format!("cannot lock {}", path.display()))
    }
}

/// The top folder of the workspace that xtask was built from.
pub fn workspace_root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_owned)
}

/// Writes a file so that a reader sees all of it or none.
pub fn write_atomically(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    let write = || -> Result<()> {
        let folder = path.parent().context("it has no parent folder")?;
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        std::io::Write::write_all(&mut file, contents.as_ref())?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Removes what builds that were killed have left in `tmp`, once it is too old to belong to a running one.
fn sweep(tmp: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for entry in fs::read_dir(tmp).into_iter().flatten().flatten() {
        let path = entry.path();
        let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
        let is_old = matches!(age, Ok(Ok(age)) if age > LEFTOVER_AGE);
        // Nothing may be removed through a mount that a killed build left behind.
        let is_mounted = mounts.lines().any(|line| line.contains(&path.display().to_string()));
        if is_old && !is_mounted {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

fn flat(name: &str) -> String {
    name.replace('/', "-")
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(text: &str) -> impl FnOnce(&Path) -> Result<()> {
        move |folder| Ok(fs::write(folder.join("file"), text)?)
    }

    #[test]
    fn an_entry_is_built_once_and_again_when_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let inputs = Inputs::new().with("a", "1");
        let place = cache.entry("kind/name", &inputs, build("first")).unwrap();
        cache.entry("kind/name", &inputs, |_| panic!("built twice")).unwrap();

        fs::write(place.join("file"), "cut").unwrap();
        assert_eq!(cache.entry("kind/name", &inputs, build("second")).unwrap(), place);
        assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "second");
    }

    #[test]
    fn a_build_that_fails_leaves_no_entry() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        let inputs = Inputs::new();
        let fail = |folder: &Path| {
            fs::write(folder.join("half"), "")?;
            anyhow::bail!("killed")
        };
        assert!(cache.entry("name", &inputs, fail).is_err());
        let place = cache.entry("name", &inputs, build("whole")).unwrap();
        assert!(!place.join("half").exists() && place.join("file").exists());
    }

    #[test]
    fn what_killed_builds_left_is_removed_when_it_is_old() {
        let folder = tempfile::tempdir().unwrap();
        let leave = |name: &str, age: Duration| {
            let path = folder.path().join("tmp").join(name);
            fs::create_dir_all(&path).unwrap();
            File::open(&path).unwrap().set_modified(std::time::SystemTime::now() - age).unwrap();
            path
        };
        let (old, young) = (leave("old", Duration::from_hours(13)), leave("young", Duration::from_hours(11)));
        Cache::at(folder.path()).unwrap();
        assert!(!old.exists() && young.exists());
    }

    #[test]
    fn inputs_that_only_join_alike_differ() {
        let left = Inputs::new().with("a", "xy").with("b", "z");
        let right = Inputs::new().with("a", "x").with("b", "yz");
        assert_ne!(left.key(), right.key());
    }
}
