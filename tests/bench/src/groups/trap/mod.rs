//! What a trapped access costs, and whom.

mod cost;
mod others;
mod window;

use anyhow::Result;

use super::Setting;

pub(super) fn measure(setting: &Setting) -> Result<()> {
    cost::measure(setting)?;
    others::measure(setting)
}
