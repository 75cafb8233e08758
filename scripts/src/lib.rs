//! The project's chores: everything that `cargo xtask` does, as a library of small parts.
//!
//! Order of dependence, lowest first: [`command`] and [`progress`]; [`cache`]; [`packages`] (this machine's own);
//! [`archive`] (Debian's); [`kernels`]; [`images`]; [`bed`]; [`tidy`]; [`gate`] and [`demo`].
//! [`archive`] (Debian's); [`kernels`]; [`images`]; [`bed`]; [`bench`].

pub mod archive;
pub mod bed;
pub mod bench;
pub mod cache;
pub mod command;
pub mod cpio;
pub mod demo;
pub mod gate;
pub mod images;
pub mod kernels;
pub mod packages;
pub mod progress;
pub mod tidy;
pub mod version;
