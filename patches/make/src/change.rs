//! What a fix changes: a patch of the kernel's source, applied to copies of the files that it names.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::MakeError;
use crate::run::{absolute, read, run, scratch, text, write};

/// Bytes of a fix, as a patch. The longest of Debian's kernel package has a quarter of them.
const PATCH_BYTES: usize = 4 << 20;

/// Files that one fix changes.
const FILES: usize = 256;

/// A changed file of the kernel's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its path from the top of the source.
    pub path: String,
    /// Its text before.
    pub original: String,
    /// Its text afterwards.
    pub fixed: String,
}

/// Applies the patch in the file `patch`, as git and diff(1) write them, to the kernel's `source`, which stays as it is.
///
/// Every line around a change must be there: a patch that was made for another version is refused.
pub fn changes(source: &Path, patch: &Path) -> Result<Vec<Change>, MakeError> {
    let bytes = read(patch)?;
    let wrong = |why: String| MakeError::Patch { patch: patch.to_owned(), why };
    if bytes.len() > PATCH_BYTES {
        return Err(wrong(format!("it has more than {PATCH_BYTES:#x} bytes")));
    }
    let paths = paths(&text(&bytes)).map_err(wrong)?;
    let folder = scratch()?;
    let mut changes = Vec::new();
    for path in paths {
        let from = source.join(&path);
        if !from.is_file() {
            return Err(wrong(format!("{path} is not in {}", source.display())));
        }
        let original = text(&read(&from)?);
        write(&folder.path().join(&path), &original)?;
        changes.push(Change { path, original, fixed: String::new() });
    }
    let mut program = Command::new("patch");
    program.arg("-d").arg(folder.path()).args(["-p1", "-F0", "-f", "-s", "-r", "-"]);
    // A file's copy is changed in place, whatever the user's own settings say.
    program.env_remove("POSIXLY_CORRECT").env_remove("VERSION_CONTROL");
    program.arg("--no-backup-if-mismatch").arg("-i").arg(absolute(patch)?);
    run(&mut program, &format!("apply {}", patch.display()))?;
    for change in &mut changes {
        change.fixed = text(&read(&folder.path().join(&change.path))?);
    }
    changes.retain(|change| change.original != change.fixed);
    Ok(changes)
}

/// The files that a patch names as the new ones.
fn paths(patch: &str) -> Result<Vec<String>, String> {
    let mut paths = Vec::new();
    let mut lines = patch.lines().peekable();
    while let Some(line) = lines.next() {
        // Text that a patch removes can look like the first line; then the second is none of a header.
        let Some(new) = line.starts_with("--- ").then(|| lines.peek()?.strip_prefix("+++ ")).flatten() else {
            continue;
        };
        let new = new.split('\t').next().unwrap_or_default().trim_end();
        let old = line.trim_start_matches("--- ").split('\t').next().unwrap_or_default().trim_end();
        if old == "/dev/null" || new == "/dev/null" {
            return Err(format!(
                "it adds or removes a file ({old} to {new}); only changed files can be compared"
            ));
        }
        let below = new.split_once('/').map(|(_, below)| below).unwrap_or_default();
        if !is_below(below) {
            return Err(format!("{new} is no path as `b/net/core/sock.c`"));
        }
        if !paths.iter().any(|other| other == below) {
            paths.push(below.to_owned());
        }
    }
    match paths.len() {
        0 => Err("it names no file with `+++ b/PATH`".to_owned()),
        count if count > FILES => Err(format!("it changes {count} files; {FILES} is the limit")),
        _ => Ok(paths),
    }
}

/// Whether a path leads to a file below the folder that it begins at.
pub(crate) fn is_below(path: &str) -> bool {
    let is_normal = |part| matches!(part, std::path::Component::Normal(_));
    !path.is_empty() && PathBuf::from(path).components().all(is_normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = "Subject: x\n---\n a/b.c | 2 +-\n\n--- a/sub/b.c\t2020\n+++ b/sub/b.c\t2021\n@@ -1,2 +1,2 @@\n one;\n-two;\n+three;\n";

    #[test]
    fn a_patch_is_applied_to_copies() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("source/sub/b.c");
        write(&file, "one;\ntwo;\n").unwrap();
        let patch = folder.path().join("fix.patch");
        write(&patch, PATCH).unwrap();
        let found = changes(&folder.path().join("source"), &patch).unwrap();
        let wanted = Change {
            path: "sub/b.c".into(),
            original: "one;\ntwo;\n".into(),
            fixed: "one;\nthree;\n".into(),
        };
        assert_eq!(found, [wanted]);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "one;\ntwo;\n");
        write(&file, "one;\nother;\n").unwrap();
        let said = changes(&folder.path().join("source"), &patch).unwrap_err().to_string();
        assert!(said.contains("cannot apply") && said.contains("FAILED"), "{said}");
        let said = changes(folder.path(), &patch).unwrap_err().to_string();
        assert!(said.contains("sub/b.c is not in"), "{said}");
    }

    #[test]
    fn paths_stay_below_the_source() {
        for (patch, why) in [
            ("", "names no file"),
            ("--- a/x\n+++ b/../x\n", "is no path"),
            ("--- a/x\n+++ x\n", "is no path"),
            ("--- a/x\n+++ b//etc/x\n", "is no path"),
            ("--- /dev/null\n+++ b/x.c\n", "adds or removes"),
            ("--- a/x.c\n+++ /dev/null\n", "adds or removes"),
        ] {
            let said = paths(patch).unwrap_err();
            assert!(said.contains(why), "{patch:?}: {said}");
        }
        assert_eq!(paths(PATCH).unwrap(), ["sub/b.c"]);
    }
}
