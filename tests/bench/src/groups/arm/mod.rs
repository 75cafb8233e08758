//! Beginning and ending to watch pages of a guest that runs, and what pages that it does not touch cost it meanwhile.

mod beside;
mod switching;

use anyhow::Result;

use super::Setting;

pub(super) fn measure(setting: &Setting) -> Result<()> {
    switching::measure(setting)?;
    beside::measure(setting)
}
