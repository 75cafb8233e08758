//! What a guest, or the VMM, has said so far.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Bytes of the end of a console that a failure shows.
const TAIL: usize = 2500;

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// Everything before was consumed by an earlier expectation.
    cursor: usize,
    ended: bool,
}

/// A growing text and a place in it.
#[derive(Debug)]
pub(crate) struct Transcript {
    name: String,
    state: Mutex<State>,
    grown: Condvar,
}

impl Transcript {
    /// Takes everything that comes from `source` until it ends.
    pub(crate) fn of(name: impl Into<String>, mut source: impl Read + Send + 'static) -> Arc<Self> {
        let transcript =
            Arc::new(Self { name: name.into(), state: Mutex::default(), grown: Condvar::default() });
        let own = Arc::clone(&transcript);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match source.read(&mut buffer) {
                    Ok(count) if count > 0 => own.append(&buffer[..count]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    // A pty whose other end is closed ends with an error.
                    _ => break,
                }
            }
            own.lock().ended = true;
            own.grown.notify_all();
        });
        transcript
    }

    /// Whose words these are.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn append(&self, bytes: &[u8]) {
        self.lock().bytes.extend_from_slice(bytes);
        self.grown.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `text` behind all that was expected before; returns what came before it.
    pub(crate) fn expect(&self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            let rest = &state.bytes[state.cursor..];
            if let Some(at) = find(rest, text.as_bytes()) {
                let before = String::from_utf8_lossy(&rest[..at]).into_owned();
                state.cursor += at + text.len();
                return Ok(before);
            }
            if state.ended {
                bail!("{} ended without {text:?}", self.name);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{} did not say {text:?} within {} s", self.name, limit.as_secs());
            }
            (state, _) = self.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the end of the source; everything is here then.
    pub(crate) fn wait_end(&self, limit: Duration) {
        let state = self.lock();
        drop(self.grown.wait_timeout_while(state, limit, |state| !state.ended));
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.lock().bytes.len()
    }

    /// Everything so far, as text without terminal control.
    pub(crate) fn text(&self) -> String {
        plain(&String::from_utf8_lossy(&self.lock().bytes))
    }

    /// The end of it.
    pub(crate) fn tail(&self) -> String {
        let text = self.text();
        let mut from = text.len().saturating_sub(TAIL);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        text[from..].to_owned()
    }
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

/// Takes out carriage returns and the escape sequences of terminals (ECMA-48, 5.4).
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\r' => {}
            '\x1b' => {
                if chars.next() == Some('[') {
                    // Parameters, then one final byte in 0x40..=0x7e.
                    chars.find(|char| ('\x40'..='\x7e').contains(char));
                }
            }
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_consume_what_they_find() {
        let transcript = Transcript::of("test", &b"one two one"[..]);
        let limit = Duration::from_secs(10);
        assert_eq!(transcript.expect("one", limit).unwrap(), "");
        assert_eq!(transcript.expect("one", limit).unwrap(), " two ");
        assert!(transcript.expect("one", limit).unwrap_err().to_string().contains("ended without"));
    }

    #[test]
    fn terminal_control_is_taken_out() {
        assert_eq!(plain("a\r\n\x1b[1;31mb\x1b[0m\x1b[?2004lc"), "a\nbc");
    }
}
