//! A program that runs here: its output kept, its time limited, nothing of it left behind.

use std::io::{BufRead, BufReader, pipe};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use super::deadline::Deadline;
use crate::bed::interrupt;

/// How often a silent program is looked after.
const PACE: Duration = Duration::from_millis(100);

/// What becomes of standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errors {
    /// It is kept with standard output, line by line in the order written.
    Kept,
    /// It goes where ours goes.
    Shown,
}

/// A program that has ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) lines: Vec<String>,
    pub(super) took: Duration,
}

/// The program and all that it started; killed when dropped.
#[derive(Debug)]
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // Fails when there is nothing left.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// Runs `command` to its end; `what` names it in errors.
pub(super) fn run(command: &mut Command, errors: Errors, deadline: Deadline, what: &str) -> Result<Finished> {
    let started = Instant::now();
    let (reader, writer) = pipe().context("cannot make a pipe")?;
    match errors {
        Errors::Kept => command.stderr(writer.try_clone().context("cannot share a pipe")?),
        Errors::Shown => command.stderr(Stdio::inherit()),
    };
    command.stdin(Stdio::null()).stdout(writer).process_group(0);
    let mut group = Group(command.spawn().with_context(|| format!("cannot start {what}"))?);
    // The command holds our ends of the pipe, which would keep it from ending.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    let mut lines = Vec::new();
    let mut ended = None;
    loop {
        match receiver.recv_timeout(PACE) {
            Ok(line) => lines.push(line),
            // A program that has ended may leave another one behind with the pipe: silence is its end, too.
            Err(_) if ended.is_some() => break,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(PACE),
        }
        if ended.is_none() {
            ended = group.0.try_wait().with_context(|| format!("cannot wait for {what}"))?;
        }
        if interrupt::requested() {
            bail!("interrupted in the middle of {what}");
        }
        if ended.is_none() && deadline.left().is_zero() {
            for line in lines.iter().rev().take(20).rev() {
                eprintln!("  | {line}");
            }
            deadline.check(what)?;
        }
    }
    let status = ended.with_context(|| format!("cannot tell how {what} ended"))?;
    drop(group);
    Ok(Finished { status, lines, took: started.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Result<Finished> {
        let mut command = Command::new("sh");
        run(command.args(["-c", script]), Errors::Kept, Deadline::after(limit), "the script")
    }

    #[test]
    fn both_outputs_come_in_order_with_the_status() {
        let finished = sh("echo a; echo b >&2; printf c; exit 3", Duration::from_mins(1)).unwrap();
        assert_eq!(finished.lines, ["a", "b", "c"]);
        assert_eq!(finished.status.code(), Some(3));
    }

    #[test]
    fn the_end_of_time_is_an_error_and_kills() {
        let error = sh("sleep 1000", Duration::from_millis(300)).unwrap_err().to_string();
        assert!(error.contains("the script was not finished"), "{error}");
    }

    #[test]
    fn a_leftover_process_does_not_hold_it_up() {
        let started = Instant::now();
        assert_eq!(sh("sleep 1000 & echo x", Duration::from_mins(1)).unwrap().lines, ["x"]);
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}
