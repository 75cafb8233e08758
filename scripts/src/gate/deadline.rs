//! The time that a whole run may take.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// When a run must be over, whatever is still missing then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    started: Instant,
    limit: Duration,
}

impl Deadline {
    /// `limit` from now.
    pub(super) fn after(limit: Duration) -> Self {
        Self { started: Instant::now(), limit }
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Time to the end; zero once it has come.
    pub(super) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.elapsed())
    }

    /// Fails once the end has come, with `what` as that which there was no time for.
    pub(super) fn check(&self, what: &str) -> Result<()> {
        if self.left().is_zero() {
            bail!(
                "the time limit of {} minutes for the whole run is over, {what} was not finished; the times above \
                 show where it went, and --limit MINUTES moves it",
                self.limit.as_secs() / 60
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_names_what_is_missing() {
        assert!(Deadline::after(Duration::from_mins(1)).check("it").is_ok());
        let error = Deadline::after(Duration::ZERO).check("the build").unwrap_err().to_string();
        assert!(error.contains("the build was not finished"), "{error}");
    }
}
