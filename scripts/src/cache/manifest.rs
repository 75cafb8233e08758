//! The list of files that a finished cache entry holds, by which damage is noticed before it confuses a test.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The manifest's own file name within an entry; written last, so an entry without one is not finished.
const NAME: &str = "manifest.json";

/// How much of an entry to read before it is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Sizes and times only; contents are read just for files whose time has changed.
    Quick,
    /// Every byte.
    Full,
}

/// What an entry held when it was finished.
#[derive(Debug, Serialize, Deserialize)]
pub struct Manifest {
    files: Vec<Item>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Item {
    path: PathBuf,
    size: u64,
    /// Nanoseconds would be lost by archivers that carry a cache from one CI run to the next.
    mtime: i64,
    /// Of the contents; of the target for a symbolic link.
    sha256: String,
}

impl Manifest {
    /// Takes stock of everything below `folder`.
    pub fn of(folder: &Path) -> Result<Self> {
        let mut paths = Vec::new();
        walk(folder, &mut paths)?;
        paths.sort();
        let files = paths
            .into_iter()
            .map(|path| {
                let metadata = fs::symlink_metadata(&path).with_context(|| place(&path))?;
                let sha256 = digest(&path)?;
                let path = path.strip_prefix(folder)?.to_owned();
                Ok(Item { path, size: metadata.len(), mtime: metadata.mtime(), sha256 })
            })
            .collect::<Result<_>>()?;
        Ok(Self { files })
    }

    /// Reads the manifest of the entry in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(NAME);
        let text = fs::read_to_string(&path).with_context(|| place(&path))?;
        serde_json::from_str(&text).with_context(|| place(&path))
    }

    /// Writes the manifest into the entry in `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(NAME);
        fs::write(&path, serde_json::to_vec(self)?).with_context(|| place(&path))
    }

    /// Compares `folder` with the manifest; the error says which file differs and how.
    pub fn check(&self, folder: &Path, depth: Depth) -> Result<()> {
        for item in &self.files {
            let path = folder.join(&item.path);
            let metadata =
                fs::symlink_metadata(&path).with_context(|| format!("{} is gone", path.display()))?;
            if metadata.len() != item.size {
                bail!("{} has {} bytes instead of {}", path.display(), metadata.len(), item.size);
            }
            let must_read = depth == Depth::Full || metadata.mtime() != item.mtime;
            if must_read && digest(&path)? != item.sha256 {
                bail!("the contents of {} have changed", path.display());
            }
        }
        Ok(())
    }
}

/// The sha256 of a file's contents, or of a symbolic link's target, in hex.
fn digest(path: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    if path.is_symlink() {
        hasher.update(fs::read_link(path).with_context(|| place(path))?.as_os_str().as_encoded_bytes());
    } else {
        let mut file = File::open(path).with_context(|| place(path))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).with_context(|| place(path))? {
                0 => break,
                count => hasher.update(&buffer[..count]),
            }
        }
    }
    Ok(super::hex(&hasher.finalize()))
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| place(folder))? {
        let entry = entry.with_context(|| place(folder))?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}

fn place(path: &Path) -> String {
    format!("cannot read or write {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_noticed_at_the_depth_it_needs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "one").unwrap();
        let manifest = Manifest::of(folder.path()).unwrap();
        manifest.check(folder.path(), Depth::Full).unwrap();

        let time = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "two").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
        manifest.check(folder.path(), Depth::Quick).unwrap();
        assert!(manifest.check(folder.path(), Depth::Full).is_err());

        fs::write(&file, "three").unwrap();
        let error = manifest.check(folder.path(), Depth::Quick).unwrap_err().to_string();
        assert!(error.contains("5 bytes instead of 3"), "{error}");
    }
}
