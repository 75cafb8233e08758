//! What a long step says while it runs.
//!
//! On a terminal each step is a spinner; anywhere else (CI, a pipe) it is one plain line at the start and one at
//! the end, so that a log shows which step hung. Everything goes to stderr: stdout belongs to the results.

use std::fmt::Display;
use std::io::IsTerminal;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// All spinners share one area of the terminal, because steps nest (an image waits for a kernel).
static AREA: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// One long step; it is over when [`Step::done`] is called, and failed when dropped before that.
#[derive(Debug)]
pub struct Step {
    what: String,
    started: Instant,
    spinner: Option<ProgressBar>,
    over: bool,
}

impl Step {
    /// Announces the step and starts its clock.
    pub fn start(what: impl Into<String>) -> Self {
        let what = what.into();
        let spinner = std::io::stderr().is_terminal().then(|| spinner(&what));
        if spinner.is_none() {
            eprintln!("{what} ...");
        }
        Self { what, started: Instant::now(), spinner, over: false }
    }

    /// Reports success with the time the step took, and returns that time.
    pub fn done(mut self) -> Duration {
        let taken = self.started.elapsed();
        self.close(&format!("{}: done in {:.1} s", self.what, taken.as_secs_f64()));
        taken
    }

    fn close(&mut self, line: &str) {
        self.over = true;
        match self.spinner.take() {
            Some(bar) => {
                bar.finish_and_clear();
                note(line);
            }
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.over {
            let line = format!("{}: failed after {:.1} s", self.what, self.started.elapsed().as_secs_f64());
            self.close(&line);
        }
    }
}

/// Prints one line without tearing a running spinner apart.
pub fn note(line: impl Display) {
    // A terminal that has gone away is no reason to stop building.
    let _ = AREA.suspend(|| -> std::io::Result<()> {
        use std::io::Write;
        writeln!(std::io::stderr(), "{line}")
    });
}

fn spinner(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = AREA.add(ProgressBar::new_spinner().with_style(style).with_message(what.to_owned()));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
