//! The command line of `lucos-vmm`, from the outside.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::path::Path;
use std::process::Command;

use lucos_vmm::cli::ExitStatus;

fn vmm(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_lucos-vmm")).args(arguments).output().unwrap();
    let utf8 = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), utf8(output.stdout), utf8(output.stderr))
}

#[test]
fn a_refused_configuration_names_flag_value_problem_and_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm.toml");
    fs::write(&file, "kernel = 'k'\nmemory = '1Q'\n").unwrap();
    let file = file.to_str().unwrap();
    let table: &[(&[&str], &[&str])] = &[
        (&[], &["no kernel is given", "--kernel PATH"]),
        (&["--kernel", "k", "--memory", "511M"], &["--memory", "511M", "510M and 512M"]),
        (&["--kernel", "k", "--cpus", "0"], &["--cpus", "'0'", "1 to 254"]),
        (&["--kernel", "k", "--disk", "a", "b,ro=on"], &["--disk", "b,ro=on", "known keys: path, readonly"]),
        (&["--kernel", "k", "--disk", "a", "--disk", "a"], &["--disk a", "given twice"]),
        (&["--kernel", "k", "--net", "mac=52:54:00:00:00:01"], &["--net", "`tap` is missing", "write tap="]),
        (&["--kernel", "k", "--serial", "pty"], &["--serial", "pty", "tty, null or file=PATH"]),
        (&["--kernel", "k", "--cpu-profile", "max"], &["--cpu-profile", "stock, host"]),
        (
            &["--kernel", "k", "--cpu-profile", "host", "--traps", "hold-all"],
            &["--traps hold-all", "leave it out"],
        ),
        (&["--kernel", "k", "--log-level", "loud"], &["--log-level", "error, warn, info"]),
        (&["--kernel", "k", "--api-socket", ""], &["--api-socket", "empty"]),
        (&["--config", "/nowhere.toml"], &["--config /nowhere.toml", "check the path"]),
        (&["--config", file], &["line 2", "1Q", "no size", "names of the flags"]),
        (&["--kernel", "k", "--turbo"], &["--turbo"]),
        (&["bzImage"], &["bzImage"]),
    ];
    for (arguments, pieces) in table {
        let (code, out, err) = vmm(arguments);
        assert_eq!((code, out.as_str()), (Some(i32::from(ExitStatus::Refused.code())), ""), "{arguments:?}");
        for piece in *pieces {
            assert!(err.contains(piece), "{arguments:?}: {piece:?} is not in {err:?}");
        }
    }
}

#[test]
fn help_and_the_manual_list_every_exit_code() {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/commands.md");
    let manual = fs::read_to_string(manual).unwrap();
    let (code, help, _) = vmm(&["--help"]);
    assert_eq!(code, Some(0));
    for (code, meaning) in ExitStatus::TABLE {
        assert!(help.contains(&format!("{code:<7}{meaning}")), "{help}");
        assert!(manual.contains(&format!("| {code} | {meaning} |")), "{code} is not in docs/commands.md");
    }
    for (code, meaning) in lucos_vmm::client::EXIT_CODES {
        assert!(manual.contains(&format!("| {code} | {meaning} |")), "{code} is not in docs/commands.md");
    }
}

#[test]
fn exit_codes_are_distinct() {
    let all = [
        ExitStatus::Off,
        ExitStatus::HostFailure,
        ExitStatus::Refused,
        ExitStatus::GuestCrash,
        ExitStatus::Signal(15),
    ];
    assert_eq!(all.map(ExitStatus::code), [0, 1, 2, 3, 143]);
}

#[test]
fn completions_and_version() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = vmm(&["completions", shell]);
        assert!(code == Some(0) && script.contains("api-socket"), "{shell}");
    }
    assert_eq!(vmm(&["--version"]).1, format!("lucos-vmm {}\n", env!("CARGO_PKG_VERSION")));
}
