//! This machine as the host: the command is just run, in the surroundings that it would find on the others.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

use super::machine::{ERR, Follower, OUT, RunFolder};
use super::{Ending, HostSpec, Input, Sink, Stream, interrupt, link, target_folder};
use crate::cache::Cache;
use crate::progress;

const PACE: Duration = Duration::from_millis(10);

/// Runs `argv` here.
pub(super) fn run(spec: &HostSpec, argv: &[OsString], sink: &mut Sink) -> Result<Ending> {
    let cache = Cache::open()?;
    let folder = RunFolder::new(&cache)?;
    let mut command = prepare(spec, argv, &folder)?;
    let mut followers = Vec::new();
    if spec.input == Input::Terminal {
        // A group of its own would lose the terminal.
        command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    } else {
        let create = |channel: &str| {
            let path = folder.path().join(channel);
            File::options()
                .append(true)
                .open(&path)
                .with_context(|| format!("cannot open {}", path.display()))
        };
        command.stdin(if spec.input == Input::Ours { Stdio::inherit() } else { Stdio::null() });
        command.stdout(create(OUT)?).stderr(create(ERR)?).process_group(0);
        followers.push((Stream::Out, Follower::open(folder.path(), OUT)?));
        followers.push((Stream::Err, Follower::open(folder.path(), ERR)?));
    }
    let name = argv.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let started = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let mut group = Group { child, own: spec.input != Input::Terminal };
    loop {
        let ended = group.child.try_wait().with_context(|| format!("cannot wait for {name}"))?;
        for (stream, follower) in &mut followers {
            let stream = *stream;
            follower
                .follow(&mut |bytes| sink(stream, bytes))
                .context("cannot pass on the command's output")?;
        }
        if let Some(status) = ended {
            return Ok(Ending::Exited(code(status)));
        }
        if interrupt::requested() {
            return Ok(Ending::Interrupted);
        }
        if started.elapsed() >= spec.timeout {
            progress::note(format!("time limit: ended after {} s", spec.timeout.as_secs()));
            return Ok(Ending::TimedOut);
        }
        std::thread::sleep(PACE);
    }
}

/// The command with the variables and folders that [`super`] promises.
fn prepare(spec: &HostSpec, argv: &[OsString], folder: &RunFolder) -> Result<Command> {
    let bin = target_folder().join(&spec.profile);
    let place = |name: &str| -> Result<std::path::PathBuf> {
        let place = folder.path().join("lucos").join(name);
        fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;
        Ok(place)
    };
    let (with, images, scratch) = (place("with")?, place("images")?, place("scratch")?);
    for file in &spec.with {
        let name = file.file_name().with_context(|| format!("{} names no file", file.display()))?;
        link(file, &with.join(name))?;
    }
    for image in &spec.images {
        image.link_in(&images)?;
    }
    let out = match &spec.out {
        Some(out) => {
            fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
            out.canonicalize().with_context(|| format!("cannot find {}", out.display()))?
        }
        None => place("out")?,
    };
    let paths = std::env::var_os("PATH").unwrap_or_default();
    // Debian gives a plain user no sbin, where e2fsck and ip are.
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into);
    let paths = [with.clone(), bin.clone()].into_iter().chain(std::env::split_paths(&paths)).chain(sbin);
    let paths = std::env::join_paths(paths).context("a folder's name cannot be part of PATH")?;
    let (program, arguments) = argv.split_first().context("there is no command to run")?;
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", paths).current_dir(&scratch);
    command.env("LUCOS_BIN", bin).env("LUCOS_WITH", with).env("LUCOS_IMAGES", images);
    command.env("LUCOS_SCRATCH", scratch).env("LUCOS_OUT", out);
    Ok(command)
}

/// As a shell counts.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    u8::try_from(code).unwrap_or(255)
}

/// The command and all that it started; killed when dropped.
#[derive(Debug)]
struct Group {
    child: Child,
    own: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.own
            && let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
        {
            // Also when the command has ended: what it left running ends with it. Fails when there is nothing left.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(seconds: u64) -> HostSpec {
        HostSpec { timeout: Duration::from_secs(seconds), ..HostSpec::default() }
    }

    fn sh(script: &str) -> Vec<OsString> {
        ["sh", "-c", script].map(OsString::from).to_vec()
    }

    #[test]
    fn output_and_status_come_back() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let script = "echo $LUCOS_SCRATCH; pwd; echo lost >&2; exit 7";
        let ending = run(&spec(20), &sh(script), &mut |stream, bytes| {
            if stream == Stream::Out { &mut out } else { &mut err }.extend_from_slice(bytes);
            Ok(())
        });
        assert_eq!(ending.unwrap(), Ending::Exited(7));
        let out = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines.len() == 2 && lines[0] == lines[1], "{out}");
        assert_eq!(err, b"lost\n");
        assert_eq!(run(&spec(20), &sh("kill -TERM $$"), &mut |_, _| Ok(())).unwrap(), Ending::Exited(143));
    }

    #[test]
    fn the_limit_ends_the_whole_group() {
        let mut out = Vec::new();
        let ending = run(&spec(1), &sh("sleep 1000 & echo $!; wait"), &mut |_, bytes| {
            out.extend_from_slice(bytes);
            Ok(())
        });
        assert_eq!(ending.unwrap(), Ending::TimedOut);
        let child = String::from_utf8(out).unwrap();
        // SIGKILL is sent, not awaited, for processes that are not our children.
        let gone = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        let deadline = Instant::now() + Duration::from_secs(5);
        while !gone() {
            assert!(Instant::now() < deadline, "process {child} still runs");
            std::thread::sleep(PACE);
        }
    }
}
