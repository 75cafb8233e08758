//! What of the tests of traps the interpreter gets through that the Intel host is.

use std::fmt::Write;

use super::programs::TestProgram;
use super::session::Step;
use super::step;

/// The test program.
const TRAPS: &str = "kvm_traps";

/// Bochs notes that an instruction is stepped before that is carried out, and keeps the note for the next entry when the instruction
/// leaves the guest, where a processor forgets it (Intel SDM vol. 3C, "Saving Non-Register State"). Versions after Debian's forget it, too.
const LINGERS: &str =
    "a step that leaves the guest in the middle is followed by a stray debug exception in Bochs";

/// Seen with several vCPUs, one of which begins anew, or while pages begin to be watched: not where one of them runs alone, but behind
/// others. What the host waits for is not known.
const STANDS_STILL: &str = "the host that Bochs is stands still in it";

/// What it does not, and why.
const LEFT_OUT: [(&str, &str); 9] = [
    ("classes::all_accesses_are_exact", LINGERS),
    ("exceptions::are_as_without_a_trap", LINGERS),
    ("exceptions::a_register_that_is_refused_is_a_fault_as_without_a_trap", LINGERS),
    ("unemulated::a_mapping_between_a_device_and_a_watched_page_stops_nobody", LINGERS),
    ("unemulated::code_that_talks_to_a_device_may_be_watched_meanwhile", LINGERS),
    (
        "escapes::a_handler_that_moves_lets_a_vcpu_go_for_a_moment",
        "an interpreter with one processor comes to something else in a step once in thousands of them",
    ),
    ("endings::a_vcpu_that_is_started_anew_meanwhile_goes_on", STANDS_STILL),
    ("sharing::watching_begins_and_ends_under_writers", STANDS_STILL),
    ("fuzz::instructions_at_random_do_what_they_do_untrapped", "an interpreter needs hours for it"),
];

/// The one of these that tests traps.
pub(super) fn program(programs: &[TestProgram]) -> Option<&TestProgram> {
    programs.iter().find(|program| program.target == TRAPS)
}

/// The tests of traps without those; their names stand in the report. The host is given the program by itself.
pub(super) fn traps(program: &TestProgram) -> Step {
    let (mut arguments, mut names) = ("--test-threads=1".to_owned(), String::new());
    for (test, why) in LEFT_OUT {
        let _ = write!(arguments, " --skip {test}");
        let _ = writeln!(names, "echo '  {test}: {why}'");
    }
    let Step { name, command } = step(&program.name, "LUCOS_WITH", program, &arguments);
    let command =
        format!("{command}\nstatus=$?\necho 'left out, {} tests:'\n{names}( exit $status )", LEFT_OUT.len());
    Step { name, command }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

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
        let step = traps(super::program(&[program]).unwrap());
        let run =
            Command::new("sh").args(["-c", &step.command]).env("LUCOS_WITH", "/nowhere").output().unwrap();
        let said = String::from_utf8(run.stdout).unwrap();
        assert!(said.starts_with("left out, 9 tests:\n  classes::all") && !run.status.success(), "{said}");
        for (test, _) in LEFT_OUT {
            assert!(step.command.contains(&format!("--skip {test}")));
        }
    }
}
