//! The `lucos` command against the control API, and both against the API's description.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

use common::{Scripted, ask};
use lucos_vmm::client::{EXIT_CODES, Method, Verb};
use lucos_vmm::config::MachineSpec;
use lucos_vmm::control::model::PatchState;
use lucos_vmm::control::{ControlServer, openapi, openapi_json};
use lucos_vmm::trap::MOST_PAGES;
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
    assert_eq!(verbs.len(), Verb::ALL.len(), "two verbs share an endpoint");
    // Five verbs for patches share these.
    let patches = [("put", "apply"), ("put", "rollback"), ("get", "list")]
        .map(|(method, name)| (method.to_owned(), format!("/api/v1/patch.{name}")));
    assert_eq!(verbs.into_iter().chain(patches).collect::<BTreeSet<_>>(), described());
    // Verb::ALL holds what else the command line offers.
    let (_, help, _) = text(&lucos(&["--help"]));
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let offered = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   ")).count();
    assert_eq!(offered, Verb::ALL.len() + 5 + 2, "{commands}");
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
fn a_patch_is_watched_until_it_is_applied_or_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let machine = Scripted::running();
    let _server = ControlServer::start(&socket, machine.clone()).unwrap();
    let socket = socket.to_str().unwrap();
    let file = directory.path().join("fix.lup");
    std::fs::write(&file, "fix").unwrap();
    let file = file.to_str().unwrap();

    let (code, _, err) = text(&lucos(&["--api-socket", socket, "apply", file]));
    assert_eq!(code, Some(4));
    assert!(err.contains("nobody vouches for it; get a patch that"), "{err}");
    let (code, _, err) = text(&lucos(&["--api-socket", socket, "apply", "/nowhere"]));
    assert_eq!(code, Some(1));
    assert!(err.contains("cannot read the patch /nowhere"), "{err}");

    let show = |state, why: Option<&str>| {
        let mut patch = common::patch(1, "fix".into(), state);
        patch.why = why.map(str::to_owned);
        machine.board.show(None, None, vec![patch]);
    };
    let run = |arguments: &[&str], states: &[(PatchState, Option<&str>)]| {
        // What was there before is not what is waited for.
        show(states[0].0, states[0].1);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| text(&lucos(&[&["--api-socket", socket], arguments].concat())));
            for (state, why) in states {
                std::thread::sleep(std::time::Duration::from_millis(300));
                show(*state, *why);
            }
            client.join().unwrap()
        })
    };
    let busy = Some("sleepy (17) stands where fix is to jump");
    let states = [
        (PatchState::Loading, None),
        (PatchState::Applying, busy),
        (PatchState::Draining, None),
        (PatchState::Closed, None),
    ];
    let (code, out, err) = run(&["apply", file, "--unsigned", "--wait"], &states);
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("warning"), "{err}");
    let lines = ["loaded\n", "applied: sleepy (17) stands", "closed for new calls\n", ": closed\n"];
    let places: Vec<_> = lines.iter().map(|line| out.find(line)).collect();
    assert!(places.is_sorted() && places.iter().all(Option::is_some), "{out}");

    let refused = [(PatchState::Loading, None), (PatchState::Failed, Some("the guest's kernel refuses it"))];
    let (code, out, err) = run(&["apply", file, "--unsigned"], &refused);
    assert_eq!(code, Some(5), "{out}");
    assert!(err.contains("not applied: the guest's kernel refuses it"), "{err}");
    let gone = [(PatchState::Loading, None), (PatchState::Gone, Some("another kernel"))];
    assert_eq!(run(&["apply", file, "--unsigned"], &gone).0, Some(6));

    let back = [(PatchState::RollingBack, None), (PatchState::Leaving, None), (PatchState::Resident, None)];
    let (code, out, _) = run(&["rollback", "1", "--wait"], &back);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.ends_with("rolled back; its module stays resident\n"), "{out}");
    let removed = [(PatchState::Leaving, None), (PatchState::Removing, None), (PatchState::Removed, None)];
    let (code, out, _) = run(&["rollback", "1", "--wait"], &removed);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains(": rolled back; its module is being removed\n"), "{out}");
    assert!(out.ends_with(": rolled back and removed\n"), "{out}");
    assert_eq!(run(&["rollback", "1"], &removed[1..]).0, Some(0));
    let stays = [(PatchState::RollingBack, None), (PatchState::Draining, Some("a probe is on the jump"))];
    assert_eq!(run(&["rollback", "1"], &stays).0, Some(5));
    let (code, _, err) = text(&lucos(&["--api-socket", socket, "rollback", "7"]));
    assert_eq!((code, err.contains("there is no patch 7")), (Some(1), true), "{err}");
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
        (
            "list",
            "  1  one  closed for new calls, 30000 threads in old code (1 redirected, 29999 watched), 9 stacks",
        ),
        ("status", "taint      4096: a module from outside its source was loaded\npatch 1    one: mends"),
        (
            "status",
            "       17 sleepy, in do_sys_poll for 5 s\n            schedule+0x10/0x20\n            and 440 more\n",
        ),
        ("status", " more\n          and 29999 more\n  ? the stack ends\n  ? and 8 more\n"),
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
fn pages_come_from_the_command_line_a_file_or_standard_input() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let _server = ControlServer::start(&socket, Scripted::running()).unwrap();
    let socket = socket.to_str().unwrap();
    let list = |name: &str, lines: &[String]| {
        let file = directory.path().join(name);
        std::fs::write(&file, lines.join("\n") + "\n").unwrap();
        file.to_str().unwrap().to_owned()
    };
    let arm =
        |arguments: &[&str]| text(&lucos(&[&["--api-socket", socket, "--json", "arm"], arguments].concat()));
    let watched = |(code, out, err): (Option<i32>, String, String)| {
        assert_eq!((code, err.as_str()), (Some(0), ""));
        serde_json::from_str::<Value>(&out).unwrap()["pages"].clone()
    };
    let mut pages: Vec<String> = (1..=MOST_PAGES as u64).map(|page| format!("{:#x}", page << 12)).collect();
    let most = list("most", &pages);
    assert_eq!(watched(arm(&["--pages-from", &most])), serde_json::json!(pages));
    // As many as fit on a command line, and do not fit in the head of a request.
    let some: Vec<&str> = pages[..2000].iter().map(String::as_str).collect();
    assert_eq!(watched(arm(&some)), serde_json::json!(some));
    let one = list("one", &pages[1..2]);
    assert_eq!(
        watched(arm(&["1000", "--pages-from", &one, "--busiest", "1"])),
        serde_json::json!(["0x1000", "0x2000", "0x0"])
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_lucos"));
    command.args(["--api-socket", socket, "--json", "arm", "--pages-from", "-"]);
    let output = command.stdin(File::open(&one).unwrap()).output().unwrap();
    assert_eq!(watched(text(&output)), serde_json::json!(["0x2000"]));

    let disarm = |arguments: &[&str]| {
        text(&lucos(&[&["--api-socket", socket, "--json", "disarm"], arguments].concat()))
    };
    // The machine of this test answers with the pages that were named.
    assert_eq!(watched(disarm(&[])), serde_json::json!([]));
    assert_eq!(watched(disarm(&["1000", "--pages-from", &one])), serde_json::json!(["0x1000", "0x2000"]));
    for (expected, arguments, said) in [
        (1, ["--pages-from", &list("none", &[])], "no page is named in "),
        (2, ["0x1000", "nonsense"], "'nonsense' for '[ADDRESS]...': it is no address"),
    ] {
        let (code, out, err) = disarm(&arguments);
        assert!(code == Some(expected) && err.contains(said), "{code:?} {out} {err}");
    }

    pages.push("0x1000".into());
    let refusals: [(i32, &[&str], &str); 7] = [
        (
            1,
            &["--pages-from", &list("more", &pages)],
            "30001 pages are named, and 30000 can be watched at once; name fewer",
        ),
        (1, &["--pages-from", &list("bad", &["0x1000".into(), "no".into()])], "line 2 of "),
        (1, &["--pages-from", &list("empty", &[])], "no page is named in "),
        (1, &["--pages-from", "/nowhere"], "cannot read pages from /nowhere: No such file"),
        // Mistakes of the command line.
        (
            2,
            &["0x1000", "nonsense"],
            "'nonsense' for '[ADDRESS]...': it is no address; give a hexadecimal number",
        ),
        (2, &["--busiest", "0"], "'0' for '--busiest <N>'"),
        (2, &[], "--busiest <N>"),
    ];
    for (expected, arguments, said) in refusals {
        let (code, out, err) = arm(arguments);
        assert_eq!(code, Some(expected), "{arguments:?}");
        assert!((out + &err).contains(said), "{arguments:?}: {err}");
    }
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
