//! What of the tests of traps the interpreter gets through that the Intel host is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Context, Result, bail};

use super::deadline::Deadline;
use super::process::{self, Errors};
use super::programs::TestProgram;
use super::session::Step;
use super::step;

/// The test program.
const TRAPS: &str = "kvm_traps";

/// Bochs notes that an instruction is stepped before that is carried out, and keeps the note for the next entry when the instruction
/// leaves the guest, where a processor forgets it (Intel SDM vol. 3C, "Saving Non-Register State"). Versions after Debian's forget it, too.
const LINGERS: &str =
    "a step that leaves the guest in the middle is followed by a stray debug exception in Bochs";

/// What it does not, and why.
const LEFT_OUT: [(&str, &str); 7] = [
    ("classes::all_accesses_are_exact", LINGERS),
    ("exceptions::are_as_without_a_trap", LINGERS),
    ("exceptions::a_register_that_is_refused_is_a_fault_as_without_a_trap", LINGERS),
    ("unemulated::a_mapping_between_a_device_and_a_watched_page_stops_nobody", LINGERS),
    ("unemulated::code_that_talks_to_a_device_may_be_watched_meanwhile", LINGERS),
    (
        "escapes::a_handler_that_moves_lets_a_vcpu_go_for_a_moment",
        "an interpreter with one processor comes to something else in a step once in thousands of them",
    ),
    ("fuzz::instructions_at_random_do_what_they_do_untrapped", "an interpreter needs hours for it"),
];

/// The one of these that tests traps.
pub(super) fn program(programs: &[TestProgram]) -> Option<&TestProgram> {
    programs.iter().find(|program| program.target == TRAPS)
}

/// The tests of traps without those, by their modules, so that what is through is not run anew on another host if one dies; what is
/// left out stands in the report. They are meant for a host that is given the program by itself.
pub(super) fn traps(program: &TestProgram, deadline: Deadline) -> Result<Vec<Step>> {
    let mut list = std::process::Command::new(&program.executable);
    let list = process::run(list.arg("--list"), Errors::Shown, deadline, "the list of the tests of traps")?;
    if !list.status.success() {
        bail!("{} does not list its tests: {}", program.executable.display(), list.status);
    }
    steps(program, &list.lines)
}

/// The same, from what the program says of its tests: a line `module::name: test` for each.
fn steps(program: &TestProgram, list: &[String]) -> Result<Vec<Step>> {
    let all: BTreeSet<&str> = list.iter().filter_map(|line| line.strip_suffix(": test")).collect();
    if let Some((test, _)) = LEFT_OUT.iter().find(|(test, _)| !all.contains(test)) {
        bail!("{test} is to be left out on Bochs, and {} has no such test", program.name);
    }
    let mut modules: BTreeMap<&str, Module> = BTreeMap::new();
    for test in all {
        let name = test.split_once("::").map_or(test, |(module, _)| module);
        let module = modules.entry(name).or_default();
        match LEFT_OUT.iter().find(|(out, _)| *out == test) {
            Some((_, why)) => module.left_out.push((test, why)),
            None => module.tests.push(test),
        }
    }
    // A module of which nothing is run has no step to say so in; the first one does.
    let silent: Vec<_> = modules
        .values_mut()
        .filter(|module| module.tests.is_empty())
        .flat_map(|module| std::mem::take(&mut module.left_out))
        .collect();
    modules.retain(|_, module| !module.tests.is_empty());
    let first = modules.values_mut().next().context("every test of traps is left out on Bochs")?;
    first.left_out.extend(silent);
    Ok(modules.iter().map(|(name, module)| module.step(program, name)).collect())
}

/// Of one module: what is run of it, and what not, with the reason.
#[derive(Default)]
struct Module<'a> {
    tests: Vec<&'a str>,
    left_out: Vec<(&'a str, &'static str)>,
}

impl Module<'_> {
    fn step(&self, program: &TestProgram, name: &str) -> Step {
        let arguments = format!("--test-threads=1 --exact {}", self.tests.join(" "));
        let mut step = step(&format!("{}, {name}", program.name), "LUCOS_WITH", program, &arguments);
        if !self.left_out.is_empty() {
            let count = self.left_out.len();
            let _ = write!(step.command, "\nstatus=$?\necho 'left out, {count} tests:'\n");
            for (test, why) in &self.left_out {
                let _ = writeln!(step.command, "echo '  {test}: {why}'");
            }
            step.command += "( exit $status )";
        }
        step
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_left_out_is_named_and_hides_no_failure() {
        let program = TestProgram {
            name: "vmm: tests/kvm_traps".into(),
            target: TRAPS.into(),
            package: "/w".into(),
            executable: "/w/false".into(),
        };
        assert_eq!(super::program(&[]), None);
        let more = ["exceptions::one", "other::a", "other::b", "unemulated::one"];
        let list: Vec<String> =
            LEFT_OUT.iter().map(|(test, _)| *test).chain(more).map(|test| format!("{test}: test")).collect();
        let found = steps(super::program(std::slice::from_ref(&program)).unwrap(), &list).unwrap();
        let names: Vec<&str> = found.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(
            names,
            ["exceptions", "other", "unemulated"].map(|name| format!("vmm: tests/kvm_traps, {name}"))
        );
        let runs: Vec<&str> = found.iter().map(|step| step.command.lines().next().unwrap()).collect();
        assert!(runs[1].ends_with("/false\" --test-threads=1 --exact other::a other::b"), "{}", runs[1]);
        let said: Vec<String> = found
            .iter()
            .map(|step| {
                let mut run = Command::new("sh");
                let run = run.args(["-c", &step.command]).env("LUCOS_WITH", "/nowhere").output().unwrap();
                assert!(!run.status.success());
                String::from_utf8(run.stdout).unwrap()
            })
            .collect();
        // Its own two, and the three of modules of which all is left out.
        assert!(said[0].starts_with("left out, 5 tests:\n  exceptions::a_register"), "{}", said[0]);
        assert_eq!(said[1], "");
        assert!(said[2].starts_with("left out, 2 tests:\n  unemulated::a_mapping"), "{}", said[2]);
        for (test, _) in LEFT_OUT {
            assert_eq!(said.iter().filter(|said| said.contains(test)).count(), 1);
            assert!(runs.iter().all(|run| !run.contains(test)));
        }
        let error = traps(&program, Deadline::after(Duration::from_mins(1))).unwrap_err().to_string();
        assert!(error.starts_with("cannot start the list of the tests of traps"), "{error}");
        let broken = TestProgram { executable: "/bin/false".into(), ..program.clone() };
        let error = traps(&broken, Deadline::after(Duration::from_mins(1))).unwrap_err().to_string();
        assert!(error.starts_with("/bin/false does not list its tests: exit status: 1"), "{error}");
        // A test that has another name now would be run after all, and nobody told.
        let error = steps(&program, &list[1..]).unwrap_err().to_string();
        assert!(error.starts_with("classes::all_accesses_are_exact is to be left out"), "{error}");
    }
}
