//! The command line of `lucos-patch`, from the outside.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

// Shared with the tests of lucos-lup; a crate for it would be one more that the product has to be kept free of.
#[path = "../lup/tests/small_module/mod.rs"]
mod small_module;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use lucos_lup::Patch;
use lucos_patch::exit::ExitStatus;
use small_module::{manifest, module};

const BIN: &str = env!("CARGO_BIN_EXE_lucos-patch");

/// A folder with a module, a manifest and a patch, and a pair of keys without a password.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        fs::write(desk.path("fix.ko"), module()).unwrap();
        fs::write(desk.path("fix.toml"), toml::to_string(&manifest()).unwrap()).unwrap();
        desk.done(&["pack", "fix.toml", "fix.ko", "--output", "fix.lup"]);
        desk.done(&["keygen", "me", "--no-password"]);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn run(&self, arguments: &[&str]) -> (u8, String, String) {
        run(self.0.path(), BIN, arguments)
    }

    /// What it prints, all being well.
    fn done(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.run(arguments);
        assert_eq!((code, err.as_str()), (ExitStatus::Done.code(), ""), "{arguments:?}");
        out
    }

    /// Ends with `status`, says each of `pieces`, and changes nothing.
    fn refuses(&self, arguments: &[&str], status: ExitStatus, pieces: &[&str]) {
        let before = self.read("fix.lup");
        let (code, out, err) = self.run(arguments);
        assert_eq!((code, out.as_str()), (status.code(), ""), "{arguments:?}: {err}");
        for piece in pieces {
            assert!(err.contains(piece), "{arguments:?}: {piece:?} is not in {err:?}");
        }
        assert_eq!(self.read("fix.lup"), before, "{arguments:?}");
    }
}

fn run(folder: &Path, program: &str, arguments: &[&str]) -> (u8, String, String) {
    let output = Command::new(program).current_dir(folder).args(arguments).output().unwrap();
    let utf8 = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (u8::try_from(output.status.code().unwrap()).unwrap(), utf8(output.stdout), utf8(output.stderr))
}

#[test]
fn a_patch_from_its_making_to_its_parts() {
    let desk = Desk::new();
    assert_eq!(desk.read("fix.lup"), Patch::pack(&manifest(), &module()).unwrap());
    let shown = desk.done(&["inspect", "fix.lup"]);
    for piece in [
        "cve-2026-52923: ipc: no ids beyond the limit",
        "CVE-2026-52923",
        "6.1.0-47-cloud-amd64, build-id 0707070707070707070707070707070707070707",
        "ipc_addid (number 1), 16 bytes, by lucos_ipc_addid, 16 bytes",
        "ipc_addid (number 1) of ipc_test, 16 bytes",
        "coexist is safe: it only refuses more than before",
        "requires   earlier",
        "lup_ipc, ",
        "by the host: ipc_mni",
        "by the guest: _printk",
        "signature  none",
    ] {
        assert!(shown.contains(piece), "{piece:?} is not in {shown}");
    }
    let signed = desk.done(&["sign", "--key", "me.key", "fix.lup"]);
    assert!(signed.contains("cve-2026-52923 (ipc: no ids beyond the limit), signature by key "), "{signed}");
    let verified = desk.done(&["verify", "--key", "me.pub", "fix.lup"]);
    assert!(verified.contains("patch cve-2026-52923, signed by key "), "{verified}");
    assert!(verified.contains("file:cve-2026-52923.lup hashed"), "{verified}");
    assert!(desk.done(&["inspect", "fix.lup"]).contains(", not verified here: timestamp:"));

    let written = desk.done(&["inspect", "fix.lup", "--extract", "parts/of"]);
    for part in ["cve-2026-52923.lup", "cve-2026-52923.lup.minisig", "cve-2026-52923.json", "lup_ipc.ko"] {
        assert!(written.contains(&format!("written: parts/of/{part}\n")), "{written}");
    }
    assert_eq!(desk.read("parts/of/lup_ipc.ko"), module());
    let parts = ["parts/of/cve-2026-52923.json", "parts/of/lup_ipc.ko"];
    desk.done(&["pack", parts[0], parts[1], "-o", "again.lup"]);
    assert_eq!(desk.read("again.lup"), desk.read("parts/of/cve-2026-52923.lup"));
    desk.done(&["sign", "--attach", "parts/of/cve-2026-52923.lup.minisig", "again.lup"]);
    assert_eq!(desk.read("again.lup"), desk.read("fix.lup"));
    // Nothing that is there is overwritten.
    let there = ["parts/of/cve-2026-52923.lup is there already"];
    desk.refuses(&["inspect", "fix.lup", "--extract", "parts/of"], ExitStatus::Failed, &there);
}

#[test]
fn json_has_everything() {
    let desk = Desk::new();
    let read = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    let unsigned = read(desk.done(&["inspect", "--json", "fix.lup"]));
    assert_eq!(unsigned["signature"], serde_json::Value::Null);
    assert_eq!(unsigned["manifest"], serde_json::to_value(manifest()).unwrap());
    assert_eq!(unsigned["module"]["exported"], serde_json::json!(["_printk"]));
    assert_eq!(unsigned["module"]["new_sizes"], serde_json::json!([16, 16]));
    assert_eq!((&unsigned["format_version"], &unsigned["module_size"]), (&1.into(), &module().len().into()));
    desk.done(&["sign", "--key", "me.key", "fix.lup"]);
    let signed = read(desk.done(&["inspect", "--json", "fix.lup"]));
    assert_eq!(signed["signature"]["verified"], false);
    assert_eq!(signed["signature"]["key"].as_str().unwrap().len(), 16);
    assert_eq!(signed["size"], desk.read("fix.lup").len());
}

#[test]
fn a_patch_is_named_by_its_manifest_unless_told() {
    let desk = Desk::new();
    let said = desk.done(&["pack", "fix.toml", "fix.ko"]);
    assert!(said.starts_with("cve-2026-52923.lup: ") && said.ends_with(" bytes, not signed\n"), "{said}");
    assert_eq!(desk.read("cve-2026-52923.lup"), desk.read("fix.lup"));
}

#[test]
fn the_example_of_the_documentation_is_a_manifest() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/patch-format.md");
    let document = fs::read_to_string(document).unwrap();
    let example = document.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let desk = Desk::new();
    fs::write(desk.path("example.toml"), example).unwrap();
    desk.done(&["pack", "example.toml", "fix.ko", "-o", "example.lup"]);
    for field in [
        "release",
        "build_id",
        "object",
        "position",
        "new",
        "size",
        "code",
        "holes",
        "consistency",
        "coexist_is_safe",
        "draining",
        "tombstones",
        "requires",
        "source",
        "fixes",
        "summary",
    ] {
        assert!(document.contains(&format!("| `{field}` |")), "{field} is not in the tables");
    }
}

#[test]
fn only_a_given_key_and_an_unchanged_patch_are_trusted() {
    let desk = Desk::new();
    let verify = ["verify", "--key", "me.pub", "fix.lup"];
    desk.refuses(&verify, ExitStatus::NotTrusted, &["fix.lup: the patch is not signed"]);
    desk.done(&["sign", "--key", "me.key", "fix.lup"]);
    desk.done(&["keygen", "other", "--no-password"]);
    let by_other = ["verify", "--key", "other.pub", "fix.lup"];
    desk.refuses(&by_other, ExitStatus::NotTrusted, &["which is not trusted here; trusted: "]);
    desk.done(&["verify", "--key", "other.pub", "--key", "me.pub", "fix.lup"]);
    let mut changed = desk.read("fix.lup");
    let at = changed.len() / 2;
    changed[at] ^= 1;
    fs::write(desk.path("fix.lup"), &changed).unwrap();
    desk.refuses(&verify, ExitStatus::NotTrusted, &["does not fit the patch"]);
    changed.pop();
    fs::write(desk.path("fix.lup"), &changed).unwrap();
    desk.refuses(&verify, ExitStatus::Refused, &["what follows the patch at byte 0x", "differs at byte"]);
}

#[test]
fn a_signature_is_not_lost_unasked() {
    let desk = Desk::new();
    desk.done(&["sign", "--key", "me.key", "fix.lup"]);
    desk.done(&["keygen", "other", "--no-password"]);
    let sign = ["sign", "--key", "other.key", "fix.lup"];
    desk.refuses(&sign, ExitStatus::Refused, &["signed already, by key ", "--replace"]);
    desk.done(&[&sign[..], &["--replace"]].concat());
    desk.done(&["verify", "--key", "other.pub", "fix.lup"]);
    desk.refuses(&["verify", "--key", "me.pub", "fix.lup"], ExitStatus::NotTrusted, &[]);
}

#[test]
fn keys_are_made_once_and_kept_secret() {
    let desk = Desk::new();
    let mode = desk.path("me.key").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (public, secret) = (desk.read("me.pub"), desk.read("me.key"));
    let again = ["keygen", "me", "--no-password"];
    desk.refuses(&again, ExitStatus::Failed, &["me.pub is there already"]);
    fs::remove_file(desk.path("me.pub")).unwrap();
    desk.refuses(&again, ExitStatus::Failed, &["me.key is there already"]);
    assert_eq!(desk.read("me.key"), secret);
    assert!(public.starts_with(b"untrusted comment: minisign public key"));
    let nowhere = ["keygen", "no/such/folder", "--no-password"];
    desk.refuses(&nowhere, ExitStatus::Failed, &["cannot write no/such/folder.key"]);
    // A dot in a name is part of it.
    desk.done(&["keygen", "v1.2", "--no-password"]);
    assert!(desk.path("v1.2.pub").exists() && desk.path("v1.2.key").exists());
}

#[test]
fn a_locked_key_opens_with_its_password_only() {
    let desk = Desk::new();
    for (name, text) in [("right", "open sesame\n"), ("wrong", "open\n"), ("empty", "\nx\n")] {
        fs::write(desk.path(name), text).unwrap();
    }
    fs::write(desk.path("binary"), b"\xff\n").unwrap();
    desk.done(&["keygen", "locked", "--password-file", "right"]);
    let sign = |key, password| ["sign", "fix.lup", "--key", key, "--password-file", password];
    desk.refuses(&sign("locked.key", "wrong"), ExitStatus::Refused, &["locked.key: the key stays locked"]);
    desk.refuses(&sign("locked.key", "binary"), ExitStatus::Refused, &["binary: the password is no text"]);
    desk.refuses(&sign("me.key", "right"), ExitStatus::Refused, &["the key has no password"]);
    desk.refuses(&sign("me.pub", "right"), ExitStatus::Refused, &["me.pub: this is no secret key"]);
    // In a session of its own it has no terminal to ask at.
    let asked = ["--wait", BIN, "sign", "fix.lup", "--key", "locked.key"];
    let (code, _, err) = run(desk.0.path(), "setsid", &asked);
    assert!(code == ExitStatus::Failed.code() && err.contains("give it by --password-file"), "{code}: {err}");
    desk.done(&sign("locked.key", "right"));
    desk.done(&["verify", "--key", "locked.pub", "fix.lup"]);
    let empty = ["keygen", "bare", "--password-file", "empty"];
    desk.refuses(&empty, ExitStatus::Refused, &["the password is empty"]);
    assert!(!desk.path("bare.key").exists());
}

/// As minisign 0.11 writes keys that are not locked.
#[test]
fn a_key_without_a_checksum_is_taken_unless_it_is_damaged() {
    let desk = Desk::new();
    let text = String::from_utf8(desk.read("me.key")).unwrap();
    let (first, second) = text.trim_end().split_once('\n').unwrap();
    let mut bytes = BASE64.decode(second).unwrap();
    bytes[126..].fill(0);
    let write = |name, bytes: &[u8]| {
        fs::write(desk.path(name), format!("{first}\n{}\n", BASE64.encode(bytes))).unwrap();
    };
    write("its.key", &bytes);
    bytes[70] ^= 1;
    write("damaged.key", &bytes);
    let damaged = ["sign", "--key", "damaged.key", "fix.lup"];
    desk.refuses(&damaged, ExitStatus::Failed, &["does not fit: the secret key is damaged"]);
    let with_password = ["sign", "--key", "its.key", "--password-file", "fix.toml", "fix.lup"];
    desk.refuses(&with_password, ExitStatus::Refused, &["the key has no password"]);
    desk.done(&["sign", "--key", "its.key", "fix.lup"]);
    desk.done(&["verify", "--key", "me.pub", "fix.lup"]);
}

#[test]
fn what_cannot_be_used_is_refused_with_place_and_remedy() {
    let desk = Desk::new();
    let text = String::from_utf8(desk.read("fix.toml")).unwrap();
    fs::write(desk.path("no.toml"), text.replace("consistency", "consistence")).unwrap();
    fs::write(desk.path("bad.toml"), text.replace("CVE-2026-52923", "52923")).unwrap();
    fs::write(desk.path("name.toml"), text.replace("cve-2026-52923", "../etc")).unwrap();
    fs::write(desk.path("other.toml"), text.replace("lup_ipc", "lup_other")).unwrap();
    fs::write(desk.path("bad.json"), "{").unwrap();
    fs::write(desk.path("cut.ko"), &module()[..100]).unwrap();
    fs::write(desk.path("cut.lup"), &desk.read("fix.lup")[..100]).unwrap();
    let mut key = desk.read("me.key");
    // Within the key itself, of which there is a checksum.
    let at = key.iter().position(|&byte| byte == b'\n').unwrap() + 100;
    key[at] = if key[at] == b'A' { b'B' } else { b'A' };
    fs::write(desk.path("damaged.key"), key).unwrap();
    let pack = |manifest, module| vec!["pack", manifest, module, "-o", "fix.lup"];
    let table: [(Vec<&str>, ExitStatus, &[&str]); 19] = [
        (
            pack("no.toml", "fix.ko"),
            ExitStatus::Refused,
            &["no.toml: ", "docs/patch-format.md", "`consistence`"],
        ),
        (
            pack("bad.toml", "fix.ko"),
            ExitStatus::Refused,
            &["bad.toml: fixes[0] of the manifest is \"52923\""],
        ),
        (pack("name.toml", "fix.ko"), ExitStatus::Refused, &["\"../etc\" is no name of a patch"]),
        (pack("other.toml", "fix.ko"), ExitStatus::Refused, &["fix.ko: the module is named \"lup_ipc\""]),
        (pack("bad.json", "fix.ko"), ExitStatus::Refused, &["bad.json: line 1, column 1 of the manifest"]),
        (pack("fix.ko", "fix.toml"), ExitStatus::Refused, &["fix.ko: the name says neither .toml nor .json"]),
        (
            pack("fix.toml", "cut.ko"),
            ExitStatus::Refused,
            &["cut.ko: the module's table of sections makes no sense"],
        ),
        (
            pack("fix.toml", "me.key"),
            ExitStatus::Refused,
            &["me.key: the module's ELF header makes no sense"],
        ),
        (pack("fix.toml", "none.ko"), ExitStatus::Failed, &["cannot read none.ko", "check the path"]),
        (pack("fix.toml", "/dev/zero"), ExitStatus::Refused, &["/dev/zero has more than 0x1000000 bytes"]),
        (vec!["inspect", "fix.ko"], ExitStatus::Refused, &["fix.ko: this is no .lup file", "check the path"]),
        (
            vec!["inspect", "cut.lup"],
            ExitStatus::Refused,
            &["cut.lup: the .lup file is cut off", "whole file"],
        ),
        (
            vec!["verify", "--key", "fix.lup", "fix.lup"],
            ExitStatus::Refused,
            &["fix.lup has more than 0x800 bytes"],
        ),
        (vec!["verify", "--key", "me.key", "fix.lup"], ExitStatus::Refused, &["is it a secret key?"]),
        (vec!["sign", "--key", "me.pub", "fix.lup"], ExitStatus::Refused, &["me.pub: this is no secret key"]),
        (
            vec!["sign", "--key", "damaged.key", "fix.lup"],
            ExitStatus::Refused,
            &["damaged.key: the secret key is damaged"],
        ),
        (
            vec!["sign", "--attach", "me.pub", "fix.lup"],
            ExitStatus::Refused,
            &["me.pub: line 3 of the signature"],
        ),
        (vec!["sign", "--key", "me.key", "fix.ko"], ExitStatus::Refused, &["fix.ko: this is no .lup file"]),
        (vec!["sign", "fix.lup"], ExitStatus::Usage, &["--key"]),
    ];
    for (arguments, status, pieces) in table {
        desk.refuses(&arguments, status, pieces);
    }
}

#[test]
fn help_and_the_manual_list_every_exit_code() {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/commands.md");
    let manual = fs::read_to_string(manual).unwrap();
    let section = manual.split("## Exit codes of lucos-patch").nth(1).unwrap();
    let (_, help, _) = run(Path::new("/"), BIN, &["--help"]);
    for (status, meaning) in ExitStatus::TABLE {
        let code = status.code();
        assert!(help.contains(&format!("{code}  {meaning}")), "{help}");
        assert!(section.contains(&format!("| {code} | {meaning} |")), "{code} is not in docs/commands.md");
    }
    let codes: HashSet<u8> = ExitStatus::TABLE.iter().map(|(status, _)| status.code()).collect();
    assert_eq!(codes.len(), ExitStatus::TABLE.len());
}

#[test]
fn completions_and_version() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = run(Path::new("/"), BIN, &["completions", shell]);
        assert!(code == 0 && script.contains("password-file"), "{shell}");
    }
    assert_eq!(
        run(Path::new("/"), BIN, &["--version"]).1,
        format!("lucos-patch {}\n", env!("CARGO_PKG_VERSION"))
    );
}

/// minisign's own program, if it is installed.
fn minisign(test: &str) -> Option<&'static str> {
    let there = Command::new("minisign").arg("-v").output().is_ok_and(|output| output.status.success());
    if !there {
        println!("SKIPPED: {test}: minisign is not installed");
    }
    there.then_some("minisign")
}

#[test]
fn minisign_takes_what_is_signed_here() {
    let Some(minisign) = minisign("minisign_takes_what_is_signed_here") else { return };
    let desk = Desk::new();
    desk.done(&["sign", "--key", "me.key", "fix.lup"]);
    desk.done(&["inspect", "fix.lup", "--extract", "parts"]);
    let verify = ["-Vm", "parts/cve-2026-52923.lup", "-p", "me.pub"];
    let (code, out, err) = run(desk.0.path(), minisign, &verify);
    assert!(code == 0 && out.contains("Signature and comment signature verified"), "{out}{err}");
    // It does not say so of everything.
    fs::write(desk.path("parts/cve-2026-52923.lup"), desk.read("fix.lup")).unwrap();
    assert_ne!(run(desk.0.path(), minisign, &verify).0, 0);
    // And it signs with a secret key that was made here.
    let sign = ["-Sm", "fix.lup", "-s", "me.key", "-W"];
    assert_eq!(run(desk.0.path(), minisign, &sign).0, 0);
}

#[test]
fn what_minisign_has_signed_is_taken_here() {
    let Some(minisign) = minisign("what_minisign_has_signed_is_taken_here") else { return };
    let desk = Desk::new();
    assert_eq!(run(desk.0.path(), minisign, &["-G", "-W", "-p", "its.pub", "-s", "its.key"]).0, 0);
    let sign = ["-Sm", "fix.lup", "-s", "its.key", "-W", "-c", "whatever", "-t", "reviewed by two"];
    assert_eq!(run(desk.0.path(), minisign, &sign).0, 0);
    let attached = desk.done(&["sign", "--attach", "fix.lup.minisig", "fix.lup"]);
    assert!(
        attached.contains("`lucos-patch verify --key PUB fix.lup` says whether it is right"),
        "{attached}"
    );
    let verified = desk.done(&["verify", "--key", "its.pub", "fix.lup"]);
    assert!(verified.contains(": reviewed by two\n"), "{verified}");
    desk.done(&["sign", "--key", "its.key", "--replace", "fix.lup"]);
    desk.done(&["verify", "--key", "its.pub", "fix.lup"]);
    // The signature of a file itself is another algorithm.
    let old = [&sign[..], &["-l", "-x", "old"]].concat();
    assert_eq!(run(desk.0.path(), minisign, &old).0, 0);
    desk.refuses(&["sign", "--attach", "old", "--replace", "fix.lup"], ExitStatus::Refused, &["without -l"]);
}
