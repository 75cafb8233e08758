//! Who depends on whom.

use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Outcome;
use super::tree::Tree;
use crate::cargo::cargo;
use crate::command::run;

/// For each crate: those of ours it may depend on, and those of others' it must not.
const RULES: [Rule; 10] = [
    // It has no I/O, so that any VMM can embed it and all of it can be tested without one.
    Rule {
        name: "update-server",
        ours: &["lucos-lup"],
        never: &["kvm-bindings", "kvm-ioctls", "libc", "rustix", "tokio", "vm-memory", "vmm-sys-util"],
    },
    // What anybody may send is read by it: bytes in, types out, so that all of it can be fuzzed.
    Rule {
        name: "lucos-lup",
        ours: &[],
        never: &["kvm-bindings", "kvm-ioctls", "libc", "minisign", "rustix", "tokio", "vm-memory"],
    },
    // It compiles, and knows of kernels what a table of symbols says.
    Rule { name: "lucos-make", ours: &["lucos-lup"], never: &["clap", "kvm-bindings", "kvm-ioctls", "libc"] },
    // It makes patches on machines that run no guest, and reads kernel images as whoever applies them does.
    Rule {
        name: "lucos-patch",
        ours: &["lucos-lup", "lucos-make", "update-server"],
        never: &["kvm-bindings", "kvm-ioctls", "vm-memory"],
    },
    // It is what a guest and its host agree on, and must fit into both.
    Rule { name: "lucos-abi", ours: &[], never: &["libc", "rustix", "serde"] },
    // It is in guests, and knows of the host what every guest may know.
    Rule { name: "lucos-agent", ours: &["lucos-abi"], never: &["kvm-bindings", "kvm-ioctls", "vm-memory"] },
    // It runs guests; what fetches, builds and tests it is not part of it.
    Rule { name: "lucos-vmm", ours: &["lucos-abi", "lucos-lup", "update-server"], never: &[] },
    // They use the product from outside, as its users do, and may read and write with its own types.
    Rule { name: "lucos-bench", ours: &["lucos-vmm"], never: &[] },
    Rule { name: "lucos-tests", ours: &["lucos-abi", "lucos-lup", "lucos-vmm", "update-server"], never: &[] },
    // It must build when the product does not.
    Rule { name: "xtask", ours: &[], never: &["kvm-bindings", "kvm-ioctls", "libc", "vm-memory"] },
];

/// Crates whose types are exchanged between others: two versions of one do not fit together.
const ONE_COPY: [&str; 3] = ["kvm-bindings", "vm-memory", "vmm-sys-util"];

#[derive(Debug)]
struct Rule {
    name: &'static str,
    ours: &'static [&'static str],
    never: &'static [&'static str],
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `None` if the crate itself is built with it; tests have others.
    kind: Option<String>,
}

pub(super) fn check_crates(tree: &Tree) -> Result<Outcome> {
    let mut metadata: Command = cargo();
    metadata.current_dir(tree.root()).args(["metadata", "--format-version", "1", "--no-deps", "--locked"]);
    let text = run(&mut metadata, "ask cargo for the workspace's packages")?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo's metadata has a new format")?;
    Ok(Outcome::of("crates depend on what they may", judge(&metadata)))
}

fn judge(metadata: &Metadata) -> Vec<String> {
    let is_ours = |name: &str| metadata.packages.iter().any(|package| package.name == name);
    let mut findings = Vec::new();
    for Package { name, dependencies } in &metadata.packages {
        let Some(rule) = RULES.iter().find(|rule| rule.name == name) else {
            findings.push(format!(
                "{name} is new: say in scripts/src/tidy/dependencies.rs what it may depend on"
            ));
            continue;
        };
        let bad = |Dependency { name: on, kind }: &&Dependency| {
            let of_tests = kind.as_deref() == Some("dev");
            (!of_tests && rule.never.contains(&on.as_str()))
                || (is_ours(on) && !rule.ours.contains(&on.as_str()))
        };
        let bad = dependencies.iter().filter(bad);
        findings.extend(bad.map(|dependency| format!("{name} must not depend on {}", dependency.name)));
    }
    findings
}

pub(super) fn check_copies(tree: &Tree) -> Outcome {
    let lock = tree.text("Cargo.lock").unwrap_or_default();
    let copies = |name: &str| lock.lines().filter(|line| *line == format!("name = \"{name}\"")).count();
    let findings = ONE_COPY.iter().filter(|name| copies(name) > 1).map(|name| {
        format!("Cargo.lock has {} versions of {name}; make all who use it agree on one", copies(name))
    });
    Outcome::of("shared crates have one version", findings.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[&str]) -> Package {
        let dependency = |name: &&str| Dependency { name: (*name).to_owned(), kind: None };
        Package { name: name.to_owned(), dependencies: dependencies.iter().map(dependency).collect() }
    }

    #[test]
    fn forbidden_and_unknown_ones_are_found() {
        let packages = vec![
            package("lucos-vmm", &["libc", "xtask"]),
            package("xtask", &["serde", "libc"]),
            package("lucos-tests", &["lucos-vmm"]),
            package("novel", &[]),
        ];
        let findings = judge(&Metadata { packages });
        assert_eq!(findings.len(), 3);
        assert_eq!(findings[..2], ["lucos-vmm must not depend on xtask", "xtask must not depend on libc"]);
        assert!(findings[2].starts_with("novel is new"));
    }

    #[test]
    fn two_versions_are_found() {
        let lock = "name = \"vm-memory\"\nname = \"libc\"\nname = \"vm-memory\"\n";
        assert_eq!(check_copies(&Tree::of(&[("Cargo.lock", lock)])).findings.len(), 1);
    }
}
