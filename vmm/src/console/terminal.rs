//! The operator's terminal in raw mode, and back.

use std::io;
use std::sync::{Mutex, PoisonError, TryLockError};

use rustix::termios::{self, OptionalActions, Termios};

/// What to restore, for the ways out that run no destructor of ours (a panic hook, a signal's exit).
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input in raw mode until dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts standard input into raw mode; `None` when it is no terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let input = rustix::stdio::stdin();
        if !termios::isatty(input) {
            return Ok(None);
        }
        let saved = termios::tcgetattr(input)?;
        let mut raw = saved.clone();
        raw.make_raw();
        // Output processing stays, so that our own messages and the guest's lines begin at the left margin.
        raw.output_modes = saved.output_modes;
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        termios::tcsetattr(input, OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }

    /// Restores the terminal if it is raw; may be called at any time, from any thread, and twice.
    pub fn restore() {
        // Not `lock`: a panic hook must not wait. Whoever holds it is doing this very thing.
        let saved = match SAVED.try_lock() {
            Ok(mut saved) => saved.take(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().take(),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(saved) = saved
            && let Err(error) = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &saved)
        {
            tracing::warn!("cannot restore the terminal ({error}); `stty sane` does");
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        Self::restore();
    }
}
