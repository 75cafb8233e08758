//! The control API over a real socket, in front of a machine that follows a script.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use common::{Scripted, ask, converse};
use lucos_vmm::control::model::MachineState;
use lucos_vmm::control::{ControlServer, ServerError, openapi_json};
use lucos_vmm::socket::SocketError;
use lucos_vmm::trap::MOST_PAGES;

struct Bench {
    machine: Arc<Scripted>,
    server: Option<ControlServer>,
    socket: PathBuf,
    directory: tempfile::TempDir,
}

fn bench() -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let machine = Scripted::running();
    let server = Some(ControlServer::start(&socket, machine.clone()).unwrap());
    Bench { machine, server, socket, directory }
}

#[test]
fn every_endpoint_answers_as_described() {
    let bench = bench();
    let get = |path: &str| ask(&bench.socket, "GET", &format!("/api/v1/{path}"), b"");
    let put = |path: &str| ask(&bench.socket, "PUT", &format!("/api/v1/{path}"), b"");
    let (status, version) = get("vmm.version");
    assert_eq!((status, version["pid"].as_u64()), (200, Some(u64::from(std::process::id()))));
    let (status, info) = get("vm.info");
    assert_eq!((status, &info["state"], &info["memory"]), (200, &"running".into(), &(512 << 20).into()));
    let (status, config) = get("vm.config");
    assert_eq!(
        (status, &config["disk"][0]["readonly"], &config["serial"]),
        (200, &true.into(), &"tty".into())
    );
    let (status, counters) = get("vm.counters");
    assert_eq!((status, &counters["exits"]["io"]), (200, &1234.into()));
    assert_eq!(counters["pauses"]["buckets"][0], serde_json::json!({"from_us": 128, "count": 1}));
    let (status, stacks) = get("vm.stacks");
    assert_eq!((status, &stacks["stacks"][0]["pid"], &stacks["paused_us"]), (200, &17.into(), &1500.into()));
    let (status, symbols) = get("vm.symbols?filter=schedule");
    assert_eq!((status, &symbols["symbols"][0]["name"]), (200, &"schedule".into()));
    let (status, modules) = get("vm.modules?name=ext4");
    assert_eq!((status, &modules["modules"][0]["sites"][0]["bytes"]), (200, &5.into()));
    assert_eq!((get("vm.tasks").0, &get("vm.tasks").1["code"]), (409, &"unknown_kernel".into()));
    assert_eq!(put("vm.pause"), (200, serde_json::json!({"took_us": 42, "vcpus": 1})));
    assert_eq!(get("vm.info").1["state"], "paused");
    assert_eq!(put("vm.resume"), (200, serde_json::json!({"paused_us": 1000})));
    assert_eq!(put("vm.power-button").0, 202);
    assert_eq!(bench.machine.buttons.load(Ordering::SeqCst), 1);
    assert_eq!(put("vmm.shutdown").0, 202);
    assert!(bench.machine.shut_down.load(Ordering::SeqCst));
    let (status, description) = get("openapi.json");
    assert_eq!(
        (status, description.to_string()),
        (200, {
            let text = openapi_json().unwrap();
            serde_json::from_str::<serde_json::Value>(&text).unwrap().to_string()
        })
    );
}

#[test]
fn a_wrong_state_is_a_conflict_with_a_next_step() {
    let bench = bench();
    let conflicts = [
        (MachineState::Paused, "vm.pause", "resume it first"),
        (MachineState::Running, "vm.resume", "pause it first"),
        (MachineState::Paused, "vm.power-button", "resume it first"),
        (MachineState::Stopping, "vm.pause", "about to end"),
        (MachineState::Starting, "vm.pause", "wait until"),
    ];
    for (state, path, next_step) in conflicts {
        *bench.machine.state.lock().unwrap() = state;
        let (status, error) = ask(&bench.socket, "PUT", &format!("/api/v1/{path}"), b"");
        assert_eq!((status, &error["code"]), (409, &"wrong_state".into()), "{path}");
        assert!(error["message"].as_str().unwrap().contains(&format!("is {state}")), "{error}");
        assert!(error["next_step"].as_str().unwrap().contains(next_step), "{error}");
    }
    assert_eq!(bench.machine.pauses.load(Ordering::SeqCst), 0);
}

#[test]
fn what_is_no_request_of_this_api_is_refused_in_json() {
    let bench = bench();
    let refused = |method: &str, path: &str, body: &[u8]| {
        let (status, error) = ask(&bench.socket, method, path, body);
        assert!(error["message"].is_string() && error["next_step"].is_string(), "{error}");
        (status, error["code"].as_str().unwrap().to_owned())
    };
    assert_eq!(refused("GET", "/api/v1/vm.nothing", b""), (404, "no_such_endpoint".into()));
    assert_eq!(refused("GET", "/", b""), (404, "no_such_endpoint".into()));
    assert_eq!(refused("GET", "/api/v1/vm.pause", b""), (405, "wrong_method".into()));
    assert_eq!(refused("DELETE", "/api/v1/vm.info", b""), (405, "wrong_method".into()));
    assert_eq!(refused("GET", "/api/v1/vm.stacks?verify=perhaps", b""), (400, "bad_query".into()));
    assert_eq!(refused("PUT", "/api/v1/patch.rollback", b""), (400, "bad_query".into()));
    assert_eq!(refused("PUT", "/api/v1/patch.apply?limit=0", b"x"), (400, "bad_limit".into()));
    assert_eq!(refused("PUT", "/api/v1/patch.apply", &vec![0; 22 << 20]), (413, "body_too_large".into()));
    assert_eq!(refused("PUT", "/api/v1/vm.pause", b"{}"), (400, "unexpected_body".into()));
    assert_eq!(refused("PUT", "/api/v1/vm.pause", &vec![b'x'; 1 << 20]), (413, "body_too_large".into()));
    let endless =
        [b"PUT /api/v1/vm.pause HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()]
            .into_iter()
            .chain((0..64).map(|_| [b"400\r\n".to_vec(), vec![b'x'; 1024], b"\r\n".to_vec()].concat()))
            .collect::<Vec<_>>()
            .concat();
    assert!(converse(&bench.socket, &endless).contains("413"));
    assert_eq!(bench.machine.pauses.load(Ordering::SeqCst), 0, "a refused request did something");
}

#[test]
fn as_many_pages_as_can_be_watched_are_named_in_one_request() {
    let bench = bench();
    let arm = |body: &[u8]| ask(&bench.socket, "PUT", "/api/v1/vm.arm", body);
    let pages = |count: usize| -> Vec<String> {
        (0..count as u64).map(|page| format!("{:#x}", u64::MAX - 0xfff - (page << 12))).collect()
    };
    let most = serde_json::json!({"pages": pages(MOST_PAGES), "all": true});
    for body in [most.to_string(), serde_json::to_string_pretty(&most).unwrap()] {
        let (status, report) = arm(body.as_bytes());
        assert_eq!((status, &report["pages"]), (200, &most["pages"]));
    }
    assert_eq!(arm(br#"{"busiest": 2}"#).1["pages"], serde_json::json!(["0x0", "0x1000"]));

    let refused = |body: &[u8], status: u16, code: &str, said: &str, next_step: &str| {
        let (found, error) = arm(body);
        assert_eq!((found, &error["code"]), (status, &code.into()), "{error}");
        for (field, piece) in [("message", said), ("next_step", next_step)] {
            assert!(error[field].as_str().unwrap().contains(piece), "{piece:?} is not in {error}");
        }
    };
    let more = serde_json::json!({"pages": pages(MOST_PAGES + 1)}).to_string();
    refused(more.as_bytes(), 400, "too_many_pages", "30001 pages are named, and 30000", "fewer");
    let far_more = serde_json::json!({"pages": pages(MOST_PAGES * 2)}).to_string();
    refused(
        far_more.as_bytes(),
        413,
        "body_too_large",
        "/api/v1/vm.arm takes no body of more than",
        "30,000 pages",
    );
    refused(b"", 400, "bad_body", "EOF", "send JSON such as");
    refused(b"{\"pages\": [\n0x1000]}", 400, "bad_body", "at line 2 column 1", "send JSON such as");
    refused(br#"{"page": ["0x1000"]}"#, 400, "bad_body", "unknown field `page`", "\"pages\": [");
    refused(br#"{"pages": [4096]}"#, 400, "bad_body", "integer `4096`, expected a string", "0x1c05000");
    refused(br#"{"busiest": -1}"#, 400, "bad_body", "integer `-1`", "send JSON such as");
    let bad = br#"{"pages": ["0x1000", "1000h"]}"#;
    refused(bad, 400, "bad_page", "\"1000h\" is no address (`pages[1]`)", "hexadecimal");
    refused(b"{}", 400, "bad_page", "no page is named", "busiest");
    refused(
        br#"{"pages": ["0x1001"]}"#,
        422,
        "not_watched",
        "0x1001 is in the middle of the page at 0x1000",
        "first byte",
    );
}

#[test]
fn pages_are_given_up_by_name_or_all_together() {
    let bench = bench();
    let disarm = |body: &[u8]| ask(&bench.socket, "PUT", "/api/v1/vm.disarm", body);
    // The machine of this test answers with the pages that were named.
    for all in [&b""[..], b"null"] {
        assert_eq!(disarm(all).1["pages"], serde_json::json!([]));
    }
    assert_eq!(
        disarm(br#"{"pages": ["0x2000", "1000"]}"#).1["pages"],
        serde_json::json!(["0x2000", "0x1000"])
    );
    let many = serde_json::json!({"pages": vec!["0x1000"; MOST_PAGES + 1]}).to_string();
    for (body, code, said, next_step) in [
        // A list that came out empty by mistake does not give all up.
        ("{\"pages\": []}", "bad_page", "no page is named", "send no body to give all up"),
        ("{}", "bad_body", "missing field `pages`", "or no body"),
        ("{\"busiest\": 1}", "bad_body", "unknown field `busiest`", "or no body"),
        ("{\"pages\": [\"no\"]}", "bad_page", "\"no\" is no address (`pages[0]`)", "hexadecimal"),
        (&many, "too_many_pages", "30001 pages are named", "fewer"),
    ] {
        let (status, error) = disarm(body.as_bytes());
        assert_eq!((status, &error["code"]), (400, &code.into()), "{error}");
        for (field, piece) in [("message", said), ("next_step", next_step)] {
            assert!(error[field].as_str().unwrap().contains(piece), "{piece:?} is not in {error}");
        }
    }
}

#[test]
fn garbage_ends_only_its_own_connection() {
    let bench = bench();
    let mut random = vec![0; 4096];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut random).unwrap();
    let long_line = [b"GET /".to_vec(), vec![b'a'; 100_000], b" HTTP/1.1\r\n\r\n".to_vec()].concat();
    let many_headers = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(2000)).into_bytes();
    let bad: [&[u8]; 6] =
        [&random, &long_line, &many_headers, b"\0\0\0\0\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\n\n\n"];
    for bytes in bad {
        let mut stream = UnixStream::connect(&bench.socket).unwrap();
        let _ = stream.write_all(bytes);
        drop(stream);
    }
    let too_long = converse(&bench.socket, &long_line);
    assert!(too_long.starts_with("HTTP/1.1 4"), "{too_long:?}");
    assert_eq!(ask(&bench.socket, "GET", "/api/v1/vm.info", b"").0, 200);
}

#[test]
fn fifty_clients_at_once_are_all_answered() {
    let bench = bench();
    thread::scope(|scope| {
        for client in 0..50 {
            let socket = &bench.socket;
            scope.spawn(move || {
                for _ in 0..10 {
                    let (method, path) =
                        [("GET", "vm.counters"), ("PUT", "vm.pause"), ("PUT", "vm.resume")][client % 3];
                    let (status, _) = ask(socket, method, &format!("/api/v1/{path}"), b"");
                    assert!([200, 409].contains(&status), "{path}: {status}");
                }
            });
        }
    });
    assert!(bench.machine.pauses.load(Ordering::SeqCst) > 0);
}

#[test]
fn slow_and_silent_clients_hold_up_nobody_and_are_let_go() {
    let bench = bench();
    let mut silent: Vec<_> = (0..20).map(|_| UnixStream::connect(&bench.socket).unwrap()).collect();
    let start = Instant::now();
    // The others' answers meanwhile, one byte of the slow one's head after the other.
    for byte in b"GET /api/v1/vm.i" {
        silent[0].write_all(&[*byte]).unwrap();
        let asked = Instant::now();
        assert_eq!(ask(&bench.socket, "GET", "/api/v1/vm.info", b"").0, 200);
        assert!(asked.elapsed() < Duration::from_secs(2));
    }
    for stream in &mut silent {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // Closed by the server, with or without a word.
        let _ = std::io::Read::read_to_end(stream, &mut Vec::new()).unwrap();
    }
    let taken = start.elapsed();
    assert!(taken > Duration::from_secs(3) && taken < Duration::from_secs(20), "{taken:?}");
}

#[test]
fn more_silent_clients_than_places_only_delay_the_next() {
    let bench = bench();
    let silent: Vec<_> = (0..100).map(|_| UnixStream::connect(&bench.socket).unwrap()).collect();
    assert_eq!(ask(&bench.socket, "GET", "/api/v1/vm.info", b"").0, 200);
    drop(silent);
}

#[test]
fn a_pause_that_hangs_keeps_nobody_from_looking_or_shutting_down() {
    let bench = bench();
    bench.machine.set_hang(true);
    thread::scope(|scope| {
        let hanging: Vec<_> =
            (0..5).map(|_| scope.spawn(|| ask(&bench.socket, "PUT", "/api/v1/vm.pause", b"").0)).collect();
        thread::sleep(Duration::from_millis(200));
        for path in ["vm.info", "vm.counters", "vm.config"] {
            assert_eq!(ask(&bench.socket, "GET", &format!("/api/v1/{path}"), b"").0, 200);
        }
        assert_eq!(ask(&bench.socket, "PUT", "/api/v1/vmm.shutdown", b"").0, 202);
        bench.machine.set_hang(false);
        let mut statuses: Vec<_> = hanging.into_iter().map(|client| client.join().unwrap()).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409, 409, 409, 409]);
    });
}

#[test]
fn the_server_ends_although_the_machine_hangs_and_clients_stay() {
    let mut bench = bench();
    bench.machine.set_hang(true);
    let _silent = UnixStream::connect(&bench.socket).unwrap();
    let mut asking = UnixStream::connect(&bench.socket).unwrap();
    asking.write_all(b"PUT /api/v1/vm.pause HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    drop(bench.server.take());
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(!bench.socket.exists());
    bench.machine.set_hang(false);
}

#[test]
fn an_answer_under_way_is_sent_before_the_end() {
    let mut bench = bench();
    bench.machine.set_hang(true);
    let socket = bench.socket.clone();
    let client = thread::spawn(move || ask(&socket, "PUT", "/api/v1/vm.pause", b"").0);
    thread::sleep(Duration::from_millis(200));
    let machine = Arc::clone(&bench.machine);
    let unhang = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        machine.set_hang(false);
    });
    drop(bench.server.take());
    assert_eq!(client.join().unwrap(), 200);
    unhang.join().unwrap();
}

#[test]
fn the_socket_is_its_owners_and_goes_with_the_server() {
    let mut bench = bench();
    let metadata = fs::metadata(&bench.socket).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let names: Vec<_> = fs::read_dir(bench.directory.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "something lies beside the socket");
    drop(bench.server.take());
    assert!(!bench.socket.exists());
}

#[test]
fn a_socket_in_use_is_refused_and_left_alone() {
    let bench = bench();
    let before = fs::metadata(&bench.socket).unwrap().ino();
    let error = ControlServer::start(&bench.socket, Scripted::running()).unwrap_err();
    assert!(matches!(error, ServerError::Socket(SocketError::InUse { .. })), "{error}");
    assert_eq!(fs::metadata(&bench.socket).unwrap().ino(), before);
    assert_eq!(ask(&bench.socket, "GET", "/api/v1/vm.info", b"").0, 200);
}

#[test]
fn a_dead_vmms_socket_is_replaced_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let server = ControlServer::start(&socket, Scripted::running()).unwrap();
    assert_eq!(ask(&socket, "GET", "/api/v1/vm.info", b"").0, 200);
    // Somebody took the path over: theirs stays.
    fs::remove_file(&socket).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    drop(server);
    assert!(socket.exists());

    let file = directory.path().join("file");
    fs::write(&file, "precious").unwrap();
    let error = ControlServer::start(&file, Scripted::running()).unwrap_err();
    assert!(matches!(error, ServerError::Socket(SocketError::NoSocket { .. })), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

    let error = ControlServer::start(&directory.path().join("no/api.sock"), Scripted::running()).unwrap_err();
    assert!(
        matches!(error, ServerError::Socket(SocketError::Host { .. }))
            && error.to_string().contains("directory"),
        "{error}"
    );
}

#[test]
fn of_many_that_start_at_once_one_gets_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let servers: Vec<_> = thread::scope(|scope| {
        let starting: Vec<_> =
            (0..8).map(|_| scope.spawn(|| ControlServer::start(&socket, Scripted::running()))).collect();
        starting.into_iter().map(|server| server.join().unwrap()).collect()
    });
    assert_eq!(servers.iter().filter(|server| server.is_ok()).count(), 1);
    assert_eq!(ask(&socket, "GET", "/api/v1/vm.info", b"").0, 200);
}
