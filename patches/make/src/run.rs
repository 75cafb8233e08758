//! Running other programs: their last words are in the error when they fail.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::MakeError;

/// How many lines of a failed program's output an error repeats.
const TAIL_LINES: usize = 25;

/// Runs `command` to its end; `what` completes "cannot ...". Its output is read here, so it speaks no other language.
pub(crate) fn run(command: &mut Command, what: &str) -> Result<Output, MakeError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null()).output();
    let output = match output {
        Ok(output) => output,
        Err(source) => return Err(MakeError::Start { program, source }),
    };
    if output.status.success() {
        return Ok(output);
    }
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    let lines: Vec<&str> = said.lines().collect();
    let said: Vec<String> =
        lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("  | {line}")).collect();
    let (what, status) = (what.to_owned(), output.status.to_string());
    Err(MakeError::Failed { what, program, status, said: said.join("\n") })
}

/// What a program wrote.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, MakeError> {
    std::fs::read(path).map_err(|source| MakeError::File { what: "read", path: path.to_owned(), source })
}

/// Writes a file, and makes the folders that it is in.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), MakeError> {
    let wrong = |source| MakeError::File { what: "write", path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(wrong)?;
    }
    std::fs::write(path, text).map_err(wrong)
}

/// A folder for what is needed on the way, which goes with the value.
pub(crate) fn scratch() -> Result<tempfile::TempDir, MakeError> {
    tempfile::tempdir().map_err(|source| MakeError::File {
        what: "make a folder in",
        path: std::env::temp_dir(),
        source,
    })
}

/// The whole path of something that is there.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, MakeError> {
    std::fs::canonicalize(path).map_err(|source| MakeError::File {
        what: "find",
        path: path.to_owned(),
        source,
    })
}

/// Makes a link in `to` for each file of the folder `from` that is not there.
pub(crate) fn link_missing(from: &Path, to: &Path) -> Result<(), MakeError> {
    let wrong = |source| MakeError::File { what: "link the files of", path: from.to_owned(), source };
    let from = from.canonicalize().map_err(wrong)?;
    for entry in std::fs::read_dir(&from).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        let link = to.join(entry.file_name());
        if entry.file_type().map_err(wrong)?.is_file() && !link.exists() {
            std::os::unix::fs::symlink(entry.path(), link).map_err(wrong)?;
        }
    }
    Ok(())
}
