//! Programs that must end in time.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::transcript::Transcript;

/// How often an end is looked for.
const POLL: Duration = Duration::from_millis(20);

/// Waits for the end of `child`; `None` when it does not come.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// The status that a shell would report.
pub(crate) fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// What a program that ended had to say.
#[derive(Debug)]
pub(crate) struct Output {
    /// Its exit status.
    pub(crate) code: i32,
    /// Its standard output.
    pub(crate) out: String,
    /// Its standard error.
    pub(crate) err: String,
}

/// Runs a program without input to its end.
pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let out = child.stdout.take().map(|out| Transcript::of("standard output", out));
    let err = child.stderr.take().map(|err| Transcript::of("standard error", err));
    let text = |transcript: Option<std::sync::Arc<Transcript>>| {
        transcript.map_or_else(String::new, |transcript| {
            transcript.wait_end(Duration::from_secs(5));
            transcript.text()
        })
    };
    let Some(status) = wait(&mut child, limit)? else {
        child.kill()?;
        child.wait()?;
        bail!("{shown} did not end within {} s; it said: {}{}", limit.as_secs(), text(out), text(err));
    };
    Ok(Output { code: code(status), out: text(out), err: text(err) })
}

/// Runs a program of the host that must succeed, and returns what it said.
pub(crate) fn host(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<String> {
    let output = run(Command::new(program).args(args), crate::deadlines::COMMAND)?;
    if output.code != 0 {
        bail!("{program} on the host ended with {}: {}{}", output.code, output.out, output.err);
    }
    Ok(output.out)
}
