//! Live patches for the vulnerable kernels, made by `lucos-patch`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::source::Source;
use super::{Fix, Patch};
use crate::cache::{Cache, Inputs, workspace_root, write_atomically};
