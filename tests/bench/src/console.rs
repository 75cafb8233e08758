//! The guest's console, line by line, with the time of each line.

use std::io::Read;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How many of the last lines an error repeats.
const TAIL: usize = 15;

/// A line, and when the VMM had written all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) at: Duration,
    pub(crate) text: String,
}

/// Lines as they come.
#[derive(Debug)]
pub(crate) struct Console {
    lines: Receiver<Line>,
    tail: Vec<String>,
}

impl Console {
    /// Reads `source` in a thread of its own; times count from `started`.
    pub(crate) fn follow(mut source: impl Read + Send + 'static, started: Instant) -> Self {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let mut half = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                let at = started.elapsed();
                half.extend_from_slice(&buffer[..count]);
                while let Some(end) = half.iter().position(|&byte| byte == b'\n') {
                    let line: Vec<u8> = half.drain(..=end).collect();
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    if sender.send(Line { at, text }).is_err() {
                        return;
                    }
                }
            }
        });
        Self { lines, tail: Vec::new() }
    }

    /// The next line with `marker` in it.
    pub(crate) fn line_with(&mut self, marker: &str, limit: Duration) -> Result<Line> {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.text.contains(marker) => return Ok(line),
                Ok(line) => {
                    self.tail.push(line.text);
                    if self.tail.len() > TAIL {
                        self.tail.remove(0);
                    }
                }
                Err(why) => {
                    let how = match why {
                        RecvTimeoutError::Timeout => format!("not within {} s", limit.as_secs()),
                        RecvTimeoutError::Disconnected => "and the console has ended".to_owned(),
                    };
                    bail!(
                        "the guest did not say `{marker}`, {how}; its last lines:\n{}",
                        self.tail.join("\n")
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_in_order_and_their_absence_is_told() {
        let text: &[u8] = b"one\r\ntwo\nthree\nhalf";
        let mut console = Console::follow(text, Instant::now());
        assert_eq!(console.line_with("tw", Duration::from_secs(5)).unwrap().text, "two");
        let error = console.line_with("one", Duration::from_secs(5)).unwrap_err().to_string();
        assert!(error.contains("ended") && error.contains("three"), "{error}");
    }
}
