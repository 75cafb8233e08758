//! The `lucos` command against the control API, and both against the API's description.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;

use std::collections::BTreeSet;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use common::{Scripted, ask};
use lucos_vmm::client::{EXIT_CODES, Method, Verb};
use lucos_vmm::config::MachineSpec;
use lucos_vmm::control::{ControlServer, openapi, openapi_json};
use serde_json::Value;

fn lucos(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lucos")).env_remove("LUCOS_API_SOCKET").args(arguments).output().unwrap()
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), utf8(&output.stdout), utf8(&output.stderr))
}

/// Method and path of every endpoint in the description.
fn described() -> BTreeSet<(String, String)> {
    let description = serde_json::to_value(openapi()).unwrap();
    let paths = description["paths"].as_object().unwrap();
    let methods = |(path, item): (&String, &Value)| {
        let methods = item.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        methods.into_iter().map(|method| (method, path.clone())).collect::<Vec<_>>()
    };
    paths.iter().flat_map(methods).collect()
}

#[test]
fn the_committed_description_is_the_codes() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let committed = std::fs::read_to_string(file).unwrap();
    assert!(
        committed == openapi_json().unwrap(),
        "docs/openapi.json is out of date: run `cargo run --bin lucos-vmm -- openapi > docs/openapi.json`"
    );
}

#[test]
fn every_endpoint_has_a_verb_and_every_verb_an_endpoint() {
    let method = |verb: &Verb| match verb.method() {
        Method::Get => "get".to_owned(),
        Method::Put => "put".to_owned(),
    };
    let verbs: BTreeSet<_> = Verb::ALL.iter().map(|verb| (method(verb), verb.path().to_owned())).collect();
    assert_eq!(verbs, described());
    assert_eq!(verbs.len(), Verb::ALL.len(), "two verbs share an endpoint");
    // Verb::ALL holds what the command line offers.
    let (_, help, _) = text(&lucos(&["--help"]));
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let offered = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   ")).count();
    assert_eq!(offered, Verb::ALL.len() + 2, "{commands}");
}

#[test]
fn every_described_endpoint_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let _server = ControlServer::start(&socket, Scripted::running()).unwrap();
    for (method, path) in described() {
        let (status, body) = ask(&socket, &method.to_uppercase(), &path, b"");
        assert!(![404, 405].contains(&status), "{method} {path}: {body}");
    }
}

#[test]
fn every_verb_prints_for_people_and_for_programs() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let _server = ControlServer::start(&socket, Scripted::running()).unwrap();
    let socket = socket.to_str().unwrap();
    for (verb, human) in [
        ("version", "lucos-vmm "),
        ("info", "state   running"),
        ("config", "kernel = \"bzImage\""),
        ("pause", "paused: 1 vCPU stands still after 42 us"),
        ("resume", "running again; it had stood still for 1.00 ms"),
        ("counters", "  io  1234"),
        ("stacks", "6.1.0: 1 stacks, 0 of them proven to be complete; the guest stood still for 1.50 ms"),
        ("stacks", "     17 D sleepy, of process 16\n    schedule+0x10/0x20\n    ? the stack ends"),
        ("symbols", "0000000000000010 T all"),
        ("modules", "nvme  live      ffffffffc0000000       8 KiB      3 symbols      40 unwind entries\n"),
        (
            "modules",
            "    __mcount_loc 2, 1 gone with its init function\n    ? .smp_locks: nothing is there\n",
        ),
        ("text-check", "  __mcount_loc        2 sites        10 bytes\ndiffering for no known reason:"),
        ("text-check", "  schedule+0x10/0x20: cc instead of 90"),
        ("power-button", "the guest decides"),
        ("shutdown", "ends now"),
        ("openapi", "\"openapi\": \"3.1.0\""),
    ] {
        let (code, out, err) = text(&lucos(&["--api-socket", socket, verb]));
        assert_eq!((code, err.as_str()), (Some(0), ""), "{verb}");
        assert!(out.contains(human), "{verb}: {out}");
    }
    for verb in [
        "version",
        "info",
        "config",
        "pause",
        "resume",
        "counters",
        "stacks",
        "symbols",
        "power-button",
        "openapi",
    ] {
        let (code, out, _) = text(&lucos(&[verb, "--json", "--api-socket", socket]));
        assert_eq!(code, Some(0), "{verb}");
        assert!(serde_json::from_str::<Value>(&out).unwrap().is_object(), "{verb}: {out}");
    }
    let (_, out, _) = text(&lucos(&["--api-socket", socket, "modules", "ext4"]));
    assert!(out.contains("\next4 ") && out.ends_with("    0x30   5 __mcount_loc\n"), "{out}");
    // What has a meaning of its own in a query arrives as it was written.
    let (_, out, _) = text(&lucos(&["--api-socket", socket, "symbols", "a&b=c d+%"]));
    assert!(out.ends_with(" T a&b=c d+%\n"), "{out}");
    let (_, toml, _) = text(&lucos(&["--api-socket", socket, "config"]));
    assert_eq!(toml::from_str::<MachineSpec>(&toml).unwrap(), Scripted::running().spec);
}

#[test]
fn each_failure_has_its_exit_code_and_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let socket = path.to_str().unwrap();
    let (code, _, err) = text(&lucos(&["--api-socket", socket, "info"]));
    assert!(code == Some(3) && err.contains(socket) && err.contains("lucos-vmm --api-socket"), "{err}");
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(text(&lucos(&["--api-socket", socket, "info"])).0, Some(3));
    let (code, _, err) = text(&lucos(&["info"]));
    assert!(code == Some(2) && err.contains("LUCOS_API_SOCKET"), "{err}");
    assert_eq!(text(&lucos(&["--api-socket", socket, "explode"])).0, Some(2));

    let _server = ControlServer::start(&path, Scripted::running()).unwrap();
    let (code, out, err) = text(&lucos(&["--api-socket", socket, "resume"]));
    assert!(code == Some(1) && out.is_empty() && err.contains("pause it first"), "{err}");
    let (code, out, _) = text(&lucos(&["--api-socket", socket, "--json", "resume"]));
    assert_eq!(code, Some(1));
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["code"], "wrong_state");
    let (code, out, err) = text(&lucos(&["--api-socket", socket, "tasks"]));
    assert!(code == Some(1) && out.is_empty() && err.contains("no kernel yet; ask again"), "{err}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_lucos"));
    let output = command.env("LUCOS_API_SOCKET", socket).arg("info").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn what_is_no_vmm_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, b"220 mail.example ESMTP\r\n").unwrap();
    });
    let (code, _, err) = text(&lucos(&["--api-socket", path.to_str().unwrap(), "info"]));
    assert!(code == Some(1) && err.contains("does not answer as a VMM does"), "{err}");
    other.join().unwrap();
}

#[test]
fn help_lists_every_exit_code() {
    let (_, help, _) = text(&lucos(&["--help"]));
    for (code, meaning) in EXIT_CODES {
        assert!(help.contains(&format!("{code}  {meaning}")), "{help}");
    }
}
