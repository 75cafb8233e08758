use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use super::*;

#[test]
fn facts_come_whole_however_the_bytes_come() {
    let mut notes = Notes::default();
    notes.take(b"fact bo");
    notes.take(b"ot 1.5\nfact off 2.0\nfact half");
    assert_eq!(notes.facts.get("boot").map(String::as_str), Some("1.5"));
    assert_eq!(notes.facts.len(), 2);
}

/// A guest with as much behind its console as the script asks for. The file `patched` says whether it is.
const GUEST: &str = "\
echo 'lucos-guest login: '
while read -r line; do
    # What bash tells the terminal behind each line that it has read.
    printf '\\033[?2004l\\r'
    case $line in
    root) echo 'root@lucos-guest:~#' ;;
    echo*) eval \"$line\" ;;
    'cat /proc/version')
        [ ! -e patched ] || printf 'patched: '
        echo 'Linux version 6.1.0'
        ;;
    *msg_next_id*)
        echo 'Message queue id: 32767'
        [ -e patched ] && echo 'No space left on device' || echo 'Message queue id: 65535'
        ;;
    poweroff) echo 'reboot: Power down'; exit ;;
    esac
done";
const CLIENT: &str = "\
case $* in
*status*) echo '{\"paused_us\": 1500}' ;;
apply*) : > patched ;;
rollback*) rm patched ;;
esac";
/// One that patches nothing.
const IDLE: &str = "exit 0";

/// Runs the script with programs of ours in the place of those that it calls.
fn play(patch: &str, client: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str, mode| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    };
    for file in ["debian.img", "vmlinuz", &format!("{patch}.lup")] {
        put(file, "", 0o644);
    }
    let programs = [("lucos-vmm", GUEST), ("lucos", client), ("lucos-patch", IDLE), ("e2fsck", IDLE)];
    for (name, text) in programs {
        put(name, &format!("#!/bin/sh\n{text}\n"), 0o755);
    }
    let work = tempfile::tempdir().unwrap();
    let ours_first = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let mut script = Command::new("sh");
    script.args(["-c", PLAY, "demo", "2", "1G", "20", patch]).current_dir(work.path());
    script.env("PATH", ours_first).env("LUCOS_IMAGES", folder.path());
    script.output().unwrap()
}

#[test]
fn the_script_shows_a_hole_closed_and_where_there_is_none_a_patch_that_closes_none() {
    for (patch, said) in [("ipc-next-id", "it is refused"), (HARMLESS, "new code runs")] {
        let output = play(patch, CLIENT);
        let notes = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{patch}: {notes}");
        assert!(notes.contains(&format!("say patched while it runs: {said}")), "{patch}: {notes}");
        assert!(
            notes.contains("fact paused 1500") && notes.contains("say and applied again"),
            "{patch}: {notes}"
        );
    }
}

#[test]
fn the_script_fails_when_a_patch_shows_nothing() {
    for patch in ["ipc-next-id", HARMLESS] {
        let output = play(patch, IDLE);
        let notes = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{patch}: {notes}");
        assert!(notes.contains("the guest does not show what it should: closed"), "{patch}: {notes}");
    }
}
