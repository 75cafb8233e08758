//! An emulator process from its start to its end: its channels followed, its time limited, nothing left behind.
//!
//! Every channel is a plain file in the run's folder which the emulator appends to and we follow. Sockets would
//! save the polling, but the path of a Unix socket may have 108 bytes only, Bochs has none, and a file still holds
//! the last words of an emulator that has died.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Cpu, Ending, Host, HostSpec, Input, Sink, Stream, interrupt, terminal};
use crate::cache::Cache;
use crate::command::is_installed;
use crate::progress;

/// The pace of following; short against anything that a command on an emulated host does.
const PACE: Duration = Duration::from_millis(10);

/// How long a host may go without a sign of life, the first of which is that it is up. `init.sh` gives one every few
/// seconds of the host's time, of which one lasts up to a minute here if it is Bochs'.
const STANDSTILL: Duration = Duration::from_mins(5);

/// The most that one look counts for: we may be stopped ourselves, or wait for whoever takes the command's output.
const MOST_PER_LOOK: Duration = Duration::from_secs(1);

/// How much of a log a message repeats.
const LAST_LINES: usize = 40;

/// The names of the channel files, which are also the emulators' arguments.
pub(super) const OUT: &str = "out";
/// The command's standard error.
pub(super) const ERR: &str = "err";
/// What the host's init says about the command: `up SECONDS`, `alive`, `exit STATUS`, `fail REASON`.
pub(super) const STATUS: &str = "status";
/// The host kernel's messages.
pub(super) const CONSOLE: &str = "console";
/// What the emulator itself says.
pub(super) const EMULATOR: &str = "emulator";

/// The folder of one run, removed with all that is in it when dropped.
#[derive(Debug)]
pub(super) struct RunFolder {
    place: PathBuf,
    /// Locked while the run lasts, by which others know that the folder is in use; a kill unlocks it too.
    _lock: File,
}

/// The name of the lock within the folder.
const LOCK: &str = "lock";

impl RunFolder {
    /// Makes the folder in the cache, and removes those that killed runs have left there.
    pub(super) fn new(cache: &Cache) -> Result<Self> {
        let runs = cache.root().join("run");
        // A folder that is not yet locked must not be taken for one that is no longer.
        let _all = cache.lock("run")?;
        let make = || -> std::io::Result<Self> {
            fs::create_dir_all(&runs)?;
            sweep(&runs)?;
            let place = tempfile::Builder::new().prefix("").tempdir_in(&runs)?.keep();
            let lock = File::create(place.join(LOCK))?;
            lock.lock()?;
            for channel in [OUT, ERR, STATUS, CONSOLE, EMULATOR] {
                File::create(place.join(channel))?;
            }
            Ok(Self { place, _lock: lock })
        };
        make().with_context(|| format!("cannot make a folder for this run in {}", runs.display()))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.place
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // The next run sweeps what cannot be removed now.
        let _ = fs::remove_dir_all(&self.place);
    }
}

/// Removes the folders that nobody has locked.
fn sweep(runs: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(runs)? {
        let place = entry?.path();
        if File::open(place.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_err()) {
            continue;
        }
        match fs::remove_dir_all(&place) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// `command` such that it is killed when we are, even by SIGKILL.
pub(super) fn bound_to_us(program: impl AsRef<OsStr>) -> Command {
    if is_installed("setpriv") {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

/// One file being followed.
#[derive(Debug)]
pub(super) struct Follower {
    file: File,
}

impl Follower {
    pub(super) fn open(folder: &Path, channel: &str) -> Result<Self> {
        let path = folder.join(channel);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { file })
    }

    /// Hands on what has been appended since the last call.
    pub(super) fn follow(
        &mut self,
        take: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.file.read(&mut buffer)? {
                0 => return Ok(()),
                count => take(&buffer[..count])?,
            }
        }
    }
}

/// What the host's init has said so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    text: String,
    seen: usize,
}

/// One word from the host's init.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    /// The command starts; the host's uptime in seconds.
    Up(String),
    /// The command ended with this status.
    Exit(u8),
    /// The host could not be put together.
    Fail(String),
}

impl Status {
    /// The words in the lines completed by `bytes`.
    fn push(&mut self, bytes: &[u8]) -> Vec<Word> {
        self.text.push_str(&String::from_utf8_lossy(bytes));
        let mut words = Vec::new();
        while let Some(end) = self.text[self.seen..].find('\n') {
            let line = self.text[self.seen..self.seen + end].trim();
            self.seen += end + 1;
            words.extend(match line.split_once(' ') {
                Some(("up", seconds)) => Some(Word::Up(seconds.to_owned())),
                Some(("exit", code)) => code.parse().ok().map(Word::Exit),
                Some(("fail", why)) => Some(Word::Fail(why.to_owned())),
                _ => None,
            });
        }
        words
    }
}

/// A started emulator; killed when dropped.
#[derive(Debug)]
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `emulator`, which writes the channel files in `run`, and follows it until the command in it has ended.
pub(super) fn supervise(
    spec: &HostSpec,
    mut emulator: Command,
    run: &RunFolder,
    sink: &mut Sink,
) -> Result<Ending> {
    let started = Instant::now();
    let mut out = Follower::open(run.path(), OUT)?;
    let mut err = Follower::open(run.path(), ERR)?;
    let mut words = Follower::open(run.path(), STATUS)?;
    let mut status = Status::default();
    // Two may run at once.
    let host = match spec.host().0 {
        Host::Emulated(Cpu::Intel) => "Intel",
        _ => "AMD",
    };
    let own = File::create(run.path().join(EMULATOR)).context("cannot create the emulator's log")?;
    emulator.stderr(own);
    let mut restore = None;
    match spec.input {
        // A group of its own, so that Ctrl-C reaches it through us only; who reads from a terminal cannot have one.
        Input::Nothing => {
            emulator.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        }
        Input::Ours => {
            emulator.stdout(Stdio::null());
        }
        Input::Terminal => restore = Some(terminal::Restore::new()),
    }
    let name = emulator.get_program().to_string_lossy().into_owned();
    let child = emulator.spawn().with_context(|| format!("cannot start {name}"))?;
    let mut emulator = Emulator(child);

    let (mut silence, mut last_look) = (Duration::ZERO, Instant::now());
    let mut watch = || -> Result<Ending> {
        loop {
            // Asked before the channels are read: what an ended emulator has written is then read in full.
            let ended = emulator.0.try_wait().context("cannot wait for the emulator")?;
            let mut said = Vec::new();
            words.follow(&mut |bytes| {
                silence = Duration::ZERO;
                said.extend(status.push(bytes));
                Ok(())
            })?;
            out.follow(&mut |bytes| sink(Stream::Out, bytes))
                .context("cannot pass on the command's output")?;
            err.follow(&mut |bytes| sink(Stream::Err, bytes))
                .context("cannot pass on the command's errors")?;

            let mut last = None;
            for word in said {
                match word {
                    Word::Up(uptime) => progress::note(format!(
                        "the {host} host is up after {:.1} s ({uptime} s by its own clock)",
                        started.elapsed().as_secs_f64()
                    )),
                    Word::Exit(code) => last = Some(Ending::Exited(code)),
                    Word::Fail(why) => bail!("the host does not start: {why}\n{}", logs(run, ended)),
                }
            }
            if let Some(ending) = last {
                return Ok(ending);
            }
            if interrupt::requested() {
                return Ok(Ending::Interrupted);
            }
            if let Some(how) = ended {
                bail!("the host ended before the command in it did\n{}", logs(run, Some(how)));
            }
            silence += last_look.elapsed().min(MOST_PER_LOOK);
            last_look = Instant::now();
            if silence >= STANDSTILL {
                let silence = STANDSTILL.as_secs() / 60;
                bail!(
                    "the {host} host stands still: no sign of life for {silence} minutes\n{}",
                    logs(run, None)
                );
            }
            if started.elapsed() >= spec.timeout {
                let up = if status.seen == 0 { "; the host was not even up" } else { "" };
                progress::note(format!("time limit: ended after {} s{up}", spec.timeout.as_secs()));
                progress::note(logs(run, None));
                return Ok(Ending::TimedOut);
            }
            std::thread::sleep(PACE);
        }
    };
    let ending = watch();
    drop(emulator);
    drop(restore);
    if let Some(place) = &spec.console {
        fs::copy(run.path().join(CONSOLE), place)
            .with_context(|| format!("cannot keep the host's console in {}", place.display()))?;
    }
    ending
}

/// The last words of the host's kernel and of the emulator, for an error message.
fn logs(run: &RunFolder, ended: Option<ExitStatus>) -> String {
    let mut text = Vec::new();
    for (channel, whose) in [(CONSOLE, "the host's console"), (EMULATOR, "the emulator")] {
        let all = fs::read(run.path().join(channel)).unwrap_or_default();
        let all = String::from_utf8_lossy(&all);
        let lines: Vec<&str> = all.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        let from = lines.len().saturating_sub(LAST_LINES);
        text.push(format!("the last words of {whose}:"));
        text.extend(lines[from..].iter().map(|line| format!("  | {line}")));
    }
    if let Some(how) = ended {
        text.push(format!("the emulator ended with {how}"));
    }
    text.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_whole_however_the_bytes_come() {
        let mut status = Status::default();
        assert_eq!(status.push(b"up 2."), []);
        assert_eq!(status.push(b"35\r\nexit 7"), [Word::Up("2.35".to_owned())]);
        assert_eq!(status.push(b"\n"), [Word::Exit(7)]);
        assert_eq!(status.push(b"exit 256\nnoise\nfail no disk\n"), [Word::Fail("no disk".to_owned())]);
    }

    #[test]
    fn folders_of_dead_runs_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path()).unwrap();
        let dead = root.path().join("run/abc");
        fs::create_dir_all(&dead).unwrap();
        File::create(dead.join(LOCK)).unwrap();
        let run = RunFolder::new(&cache).unwrap();
        assert!(!dead.exists() && run.path().join(STATUS).exists());
        let again = RunFolder::new(&cache).unwrap();
        let place = run.path().to_owned();
        assert!(place.exists());
        drop(run);
        assert!(!place.exists() && again.path().exists());
    }
}
