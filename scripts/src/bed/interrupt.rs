//! Ctrl-C and its kin as a flag, so that a run ends in order: children gone, temporary files removed.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Starts to watch; a second signal after an unanswered first one ends this process at once.
pub(crate) fn watch() -> Result<()> {
    if FLAG.get().is_some() {
        return Ok(());
    }
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let register = || {
            // Order matters: the first handler sees the flag as the previous signal left it.
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
            signal_hook::flag::register(signal, Arc::clone(&flag))
        };
        register().context("cannot watch for Ctrl-C")?;
    }
    // Two threads that race here watch with two flags; the loser's is not read, which costs a second Ctrl-C.
    let _ = FLAG.set(flag);
    Ok(())
}

/// Whether we were told to end.
pub(crate) fn requested() -> bool {
    FLAG.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}
