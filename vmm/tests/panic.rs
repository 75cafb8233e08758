//! A panic in any thread ends the VMM.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::process::Command;
use std::thread;
use std::time::Duration;

use lucos_vmm::cli::{ExitStatus, end_on_panic};

const CHILD: &str = "LUCOS_TEST_PANIC";

#[test]
fn a_panic_in_any_thread_ends_the_process_and_says_that_it_is_a_bug() {
    if std::env::var_os(CHILD).is_some() {
        end_on_panic();
        thread::Builder::new().name("vcpu7".into()).spawn(|| panic!("out of ideas")).unwrap();
        thread::sleep(Duration::from_mins(1));
        return;
    }
    let name = "a_panic_in_any_thread_ends_the_process_and_says_that_it_is_a_bug";
    let own = std::env::current_exe().unwrap();
    let output = Command::new(own).args([name, "--exact", "--nocapture"]).env(CHILD, "1").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(i32::from(ExitStatus::HostFailure.code())), "{errors}");
    for piece in ["vcpu7", "out of ideas", "this is a bug in lucos-vmm", "lucos-vmm doctor"] {
        assert!(errors.contains(piece), "{piece:?} is not in {errors:?}");
    }
}
