//! Debian's kernels, as the tests have them: `LUCOS_IMAGES` names the folder, and `cargo xtask test` sees to it.
#![allow(dead_code, reason = "each test takes its own part")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::path::PathBuf;

use update_server::image::Image;
use update_server::kernel::model::Model;

/// The folder; none, and said so for `test`, without one.
pub(crate) fn folder(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("LUCOS_IMAGES");
    if folder.is_none() {
        println!("SKIPPED: {test}: LUCOS_IMAGES names no folder with kernels; `cargo xtask test` does");
    }
    folder.map(PathBuf::from)
}

/// The kernels of these names; none, and said so for `test`, without a folder.
pub(crate) fn images<const N: usize>(test: &str, names: [&'static str; N]) -> Vec<(&'static str, Image)> {
    let Some(folder) = folder(test) else { return Vec::new() };
    let read = |name| (name, Image::read(&fs::read(folder.join(name)).unwrap()).unwrap());
    names.map(read).into()
}

/// Every kernel that a small guest may run.
pub(crate) fn models(test: &str) -> Vec<(&'static str, Model)> {
    let images = images(test, ["vmlinuz-6.1-cloud", "vmlinuz-6.12-cloud"]);
    images.into_iter().map(|(name, image)| (name, Model::new(image).unwrap())).collect()
}
