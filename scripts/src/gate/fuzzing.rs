//! Every fuzz target, for a moment: what a change has broken badly is found in seconds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::deadline::Deadline;
use super::process::{self, Errors};
use super::suite::Suite;
use crate::fuzz;
use crate::progress::Step;

/// Of the suite.
pub(super) const NAME: &str = "fuzz targets";
/// How long each is run.
const TIME: Duration = Duration::from_secs(5);

/// Each target counts as one test; `images` is a folder with kernels.
pub(super) fn check(images: &Path, deadline: Deadline) -> Result<Suite> {
    let started = Instant::now();
    let step = Step::start("building the fuzz targets");
    for mut build in fuzz::build()? {
        let built = process::run(&mut build, Errors::Shown, deadline, "`cargo build` of the fuzz targets")?;
        if !built.status.success() {
            return Ok(Suite::broken(NAME, "here", "the fuzz targets do not build; cargo says why above"));
        }
    }
    step.done();
    let mut suite = Suite { name: NAME.into(), place: "here".into(), ..Suite::default() };
    for target in fuzz::targets()? {
        let mut command = fuzz::command(&target, TIME, images)?;
        let finished =
            process::run(&mut command, Errors::Kept, deadline, &format!("the fuzz target {}", target.name))?;
        suite.output.push(format!("{}: {}", target.name, fuzz::verdict(&finished.lines)));
        if finished.status.success() {
            suite.counts.passed += 1;
        } else {
            suite.counts.failed += 1;
            suite.output.extend(finished.lines);
        }
    }
    suite.took = started.elapsed();
    Ok(suite)
}
