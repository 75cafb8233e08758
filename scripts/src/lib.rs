//! The project's chores: everything that `cargo xtask` does, as a library of small parts.
//!
//! Order of dependence, lowest first: [`command`] and [`progress`]; [`cache`]; `cargo`; [`packages`] (this machine's
//! own); [`archive`] (Debian's); [`kernels`]; [`images`]; [`fixes`]; [`bed`]; [`tidy`]; [`gate`], [`demo`] and [`bench`].

pub mod archive;
pub mod bed;
pub mod bench;
pub mod cache;
pub(crate) mod cargo;
pub mod command;
pub mod cpio;
pub mod demo;
pub mod fixes;
pub mod fuzz;
pub mod gate;
pub mod images;
pub mod kernels;
pub mod packages;
pub mod progress;
pub mod tidy;
pub mod version;
