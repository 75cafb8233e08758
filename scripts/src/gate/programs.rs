//! The test programs, and where cargo puts them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::deadline::Deadline;
use super::process::{self, Errors};
use crate::cargo::cargo;

/// A test program made by cargo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TestProgram {
    /// Package and target, as in `lucos-vmm tests/cli`.
    pub(super) name: String,
    /// The target alone.
    pub(super) target: String,
    /// The folder of its package, in which it expects to run.
    pub(super) package: PathBuf,
    pub(super) executable: PathBuf,
}

impl TestProgram {
    /// Whether it tests the VMM on real KVM, by the name that such files have: `vmm/tests/kvm_*.rs`.
    pub(super) fn needs_kvm(&self) -> bool {
        self.target.starts_with("kvm_")
    }

    /// Whether it reads kernel images, by the name that such files have: `images_*.rs`.
    pub(super) fn needs_images(&self) -> bool {
        self.target.starts_with("images_")
    }
}

/// The part of cargo's messages (`cargo help test`, `--message-format`) that is of use here.
#[derive(Debug, Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

/// Builds every program and every test program of the workspace; returns the test programs.
pub(super) fn build(deadline: Deadline) -> Result<Vec<TestProgram>> {
    let mut programs = cargo();
    programs.args(["build", "--workspace", "--locked"]);
    let built = process::run(&mut programs, Errors::Shown, deadline, "`cargo build`")?;
    if !built.status.success() {
        bail!("the workspace does not build; cargo says why above");
    }
    let mut tests = cargo();
    tests.args(["test", "--workspace", "--locked", "--no-run", "--message-format=json-render-diagnostics"]);
    let built = process::run(&mut tests, Errors::Shown, deadline, "`cargo test --no-run`")?;
    if !built.status.success() {
        bail!("the tests do not build; cargo says why above");
    }
    test_programs(&built.lines)
}

fn test_programs(lines: &[String]) -> Result<Vec<TestProgram>> {
    // Two targets of one package may have the same name; the executable is what there is one of.
    let mut programs = BTreeMap::new();
    for line in lines.iter().filter(|line| line.starts_with('{')) {
        let message: Message = serde_json::from_str(line).context("cargo's messages have a new format")?;
        if message.reason != "compiler-artifact" {
            continue;
        }
        let (Some(target), Some(manifest), Some(executable)) =
            (message.target, message.manifest_path, message.executable)
        else {
            continue;
        };
        if !message.profile.is_some_and(|profile| profile.test) {
            continue;
        }
        let package = manifest.parent().context("a package has no folder")?.to_owned();
        let folder = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let part = match target.kind.first().map(String::as_str) {
            Some("lib") => "the library".to_owned(),
            Some("bin") => format!("bin {}", target.name),
            _ => format!("tests/{}", target.name),
        };
        let name = format!("{folder}: {part}");
        programs.insert(executable.clone(), TestProgram { name, target: target.name, package, executable });
    }
    if programs.is_empty() {
        bail!("cargo named no test program; its messages have a new format");
    }
    let mut programs: Vec<TestProgram> = programs.into_values().collect();
    programs.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_among_the_messages() {
        let line = |kind: &str, name: &str, test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"x","manifest_path":"/w/vmm/Cargo.toml","target":{{"kind":["{kind}"],"name":"{name}","test":true}},"profile":{{"opt_level":"1","test":{test}}},"executable":{executable}}}"#
            )
        };
        let lines = [
            line("lib", "lucos_vmm", false, "null"),
            line("lib", "lucos_vmm", true, r#""/t/deps/lucos_vmm-1""#),
            line("bin", "lucos-vmm", false, r#""/t/lucos-vmm""#),
            line("test", "kvm_exits", true, r#""/t/deps/kvm_exits-2""#),
            "not json".to_owned(),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ];
        let found = test_programs(&lines).unwrap();
        let names: Vec<&str> = found.iter().map(|program| program.name.as_str()).collect();
        assert_eq!(names, ["vmm: tests/kvm_exits", "vmm: the library"]);
        assert!(found[0].needs_kvm() && !found[1].needs_kvm());
        assert_eq!(found[0].package, PathBuf::from("/w/vmm"));
        assert!(test_programs(&lines[4..]).is_err());
    }
}
