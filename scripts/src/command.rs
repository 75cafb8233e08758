//! Running other programs: quiet when they succeed, and with their last words in the error when they fail.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How much of a failed program's output an error repeats.
const TAIL_LINES: usize = 25;

/// A command with the C locale (its output is read by us) and no standard input (nothing may ask a question).
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    command
}

/// Runs `command` to its end and returns its standard output.
///
/// `what` completes the sentence "cannot ...", for example "unpack the kernel".
pub fn run(command: &mut Command, what: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| {
        format!("cannot {what}: `{program}` does not start; is it installed and in PATH?")
    })?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let mut said = stdout;
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        bail!("cannot {what}: `{program}` ended with {}; its last words:\n{}", output.status, tail(&said));
    }
    Ok(stdout)
}

/// Whether `program` is in `PATH`.
pub fn is_installed(program: &str) -> bool {
    // Debian keeps mke2fs, depmod and the like in sbin, which is not in a plain user's PATH.
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .any(|folder| folder.join(program).is_file())
}

/// The current `PATH` with the folders for system programs, for commands that a plain user runs too.
pub fn path_with_sbin() -> String {
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_owned());
    format!("{path}:/usr/sbin:/sbin")
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines[from..].iter().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_the_purpose_and_repeats_the_last_words() {
        let error =
            run(command("sh").args(["-c", "echo lost >&2; exit 3"]), "find it").unwrap_err().to_string();
        assert!(
            error.contains("cannot find it") && error.contains("exit status: 3") && error.contains("lost")
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut command("no-such-program"), "go on").unwrap_err().to_string();
        assert!(error.contains("no-such-program") && error.contains("installed"));
    }
}
