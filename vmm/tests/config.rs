//! What a user may write for a machine, and what each mistake is told.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::path::{Path, PathBuf};
use std::str::FromStr;

use lucos_vmm::config::{
    ConfigError, CpuCount, CpuProfile, DiskSpec, Draft, GuestPatches, LogLevel, MacAddress, MachineSpec,
    MemorySize, NetSpec, SerialSpec, Trapping, ValueError,
};

fn disk(path: &str, readonly: bool) -> DiskSpec {
    DiskSpec { path: path.into(), readonly }
}

fn net(tap: &str, mac: Option<[u8; 6]>) -> NetSpec {
    NetSpec { tap: tap.into(), mac: mac.map(|bytes| MacAddress::new(bytes).unwrap()) }
}

fn good<T: FromStr<Err = ValueError> + PartialEq + std::fmt::Debug>(table: &[(&str, T)]) {
    for (text, expected) in table {
        assert_eq!(text.parse::<T>().as_ref(), Ok(expected), "{text}");
    }
}

/// Each bad value, and a piece of what it is told.
fn bad<T: FromStr<Err = ValueError> + std::fmt::Debug>(table: &[(&str, &str)]) {
    for (text, piece) in table {
        let told = text.parse::<T>().expect_err(text).to_string();
        assert!(told.contains(piece), "{text}: told {told:?}, not {piece:?}");
    }
}

fn memory(bytes: u64) -> MemorySize {
    bytes.try_into().unwrap()
}

#[test]
fn memory_sizes() {
    good(&[
        ("512M", memory(512 << 20)),
        ("size=512M", memory(512 << 20)),
        ("2G", memory(2 << 30)),
        ("2g", memory(2 << 30)),
        ("2GiB", memory(2 << 30)),
        ("33554432", memory(32 << 20)),
        ("65536K", memory(64 << 20)),
        ("64T", memory(64 << 40)),
    ]);
    bad::<MemorySize>(&[
        ("", "empty"),
        ("size=", "empty"),
        ("M", "no size"),
        ("-1G", "no size"),
        ("1.5G", "no size"),
        ("1X", "no size"),
        ("0", "at least 32M"),
        ("30M", "at least 32M"),
        ("511M", "nearest sizes are 510M and 512M"),
        ("536870913", "nearest sizes are 512M and 514M"),
        ("65T", "at most 64T"),
        ("99999999999999999999", "no size"),
        ("99999999999999T", "at most 64T"),
        ("mem=1G", "known keys: size"),
        ("1G,hotplug_size=2G", "known keys: size"),
        ("size=1G,size=2G", "given twice"),
    ]);
}

#[test]
fn cpu_counts() {
    let count = |count: u64| CpuCount::try_from(count).unwrap();
    good(&[("1", count(1)), ("boot=2", count(2)), ("254", count(254))]);
    bad::<CpuCount>(&[
        ("0", "1 to 254"),
        ("255", "1 to 254"),
        ("-1", "1 to 254"),
        ("two", "`two` is no number"),
        ("boot=1,max=2", "known keys: boot"),
        ("", "empty"),
    ]);
}

#[test]
fn disks() {
    good(&[
        ("root.img", disk("root.img", false)),
        ("path=root.img", disk("root.img", false)),
        ("root.img,readonly=on", disk("root.img", true)),
        ("readonly=off,path=/a b/root.img", disk("/a b/root.img", false)),
        ("path=\"a,b=c.img\",readonly=on", disk("a,b=c.img", true)),
        ("\"a=b.img\"", disk("a=b.img", false)),
    ]);
    bad::<DiskSpec>(&[
        ("", "empty"),
        ("path=", "empty"),
        ("readonly=on", "`path` is missing; write path="),
        ("root.img,readonly=yes", "write readonly=on or readonly=off"),
        ("root.img,readonly", "empty"),
        ("root.img,ro=on", "no key `ro`; known keys: path, readonly"),
        ("a=b.img", "double quotes"),
        ("a.img,path=b.img", "given twice"),
        ("path=\"a.img", "never closed"),
        ("root.img,", "no key ``"),
    ]);
}

#[test]
fn networks() {
    good(&[
        ("tap=tap0", net("tap0", None)),
        ("tap0", net("tap0", None)),
        ("tap=tap0,mac=52:54:00:AB:cd:01", net("tap0", Some([0x52, 0x54, 0, 0xab, 0xcd, 1]))),
        ("mac=52-54-00-00-00-01,tap=vm", net("vm", Some([0x52, 0x54, 0, 0, 0, 1]))),
    ]);
    bad::<NetSpec>(&[
        ("mac=52:54:00:00:00:01", "`tap` is missing"),
        ("tap=a-name-too-long-for-linux", "1 to 15 bytes"),
        ("tap=a/b", "1 to 15 bytes"),
        ("tap=..", "1 to 15 bytes"),
        ("tap=tap0,mac=52:54:00:00:00", "six pairs"),
        ("tap=tap0,mac=52:54:00:00:00:00:01", "six pairs"),
        ("tap=tap0,mac=+2:54:00:00:00:01", "six pairs"),
        ("tap=tap0,mac=01:00:5e:00:00:01", "multicast"),
        ("tap=tap0,mac=00:00:00:00:00:00", "all-zero"),
        ("tap=tap0,ip=10.0.0.1", "known keys: tap, mac"),
    ]);
}

#[test]
fn serial_and_words() {
    good(&[
        ("tty", SerialSpec::Tty),
        ("null", SerialSpec::Null),
        ("file=a=b,c.log", SerialSpec::File("a=b,c.log".into())),
    ]);
    bad::<SerialSpec>(&[
        ("", "empty"),
        ("file=", "`file` is missing"),
        ("off", "tty, null or file=PATH"),
        ("pty", "tty, null or file=PATH"),
    ]);
    good(&[("stock", CpuProfile::Stock), ("host", CpuProfile::Host)]);
    bad::<CpuProfile>(&[("max", "one of stock, host"), ("", "empty")]);
    good(&[("error", LogLevel::Error), ("trace", LogLevel::Trace)]);
    bad::<LogLevel>(&[("loud", "error, warn, info, debug, trace")]);
}

#[test]
fn every_value_reads_back_what_it_prints() {
    for text in ["path=a.img", "path=\"a,b.img\",readonly=on"] {
        assert_eq!(text.parse::<DiskSpec>().unwrap().to_string(), text);
    }
    for text in ["tap=tap0", "tap=tap0,mac=52:54:00:ab:cd:01"] {
        assert_eq!(text.parse::<NetSpec>().unwrap().to_string(), text);
    }
    for text in ["tty", "null", "file=a b.log"] {
        assert_eq!(text.parse::<SerialSpec>().unwrap().to_string(), text);
    }
    for text in ["512M", "2G", "34M", "64T"] {
        assert_eq!(text.parse::<MemorySize>().unwrap().to_string(), text);
    }
}

const WHOLE: &str = r#"
kernel = "bzImage"
initrd = "initrd.img"
cmdline = "quiet"
disk = ["root.img", "path=data.img,readonly=on", { path = "more.img", readonly = true }]
cpus = 2
memory = "1G"
net = ["tap=tap0", { tap = "tap1", mac = "52:54:00:00:00:01" }]
serial = "file=console.log"
agent = "agent.sock"
api_socket = "api.sock"
patch_key = ["me.pub"]
guest_patches = "signed"
traps = "hold-all"
cpu_profile = "stock"
log_level = "info"
"#;

fn whole() -> MachineSpec {
    MachineSpec {
        kernel: "bzImage".into(),
        initrd: Some("initrd.img".into()),
        cmdline: "quiet".into(),
        disks: vec![disk("root.img", false), disk("data.img", true), disk("more.img", true)],
        cpus: 2.try_into().unwrap(),
        memory: memory(1 << 30),
        net: vec![net("tap0", None), net("tap1", Some([0x52, 0x54, 0, 0, 0, 1]))],
        serial: SerialSpec::File("console.log".into()),
        agent: Some("agent.sock".into()),
        api_socket: Some("api.sock".into()),
        patch_keys: vec!["me.pub".into()],
        guest_patches: GuestPatches::Signed,
        traps: Trapping::HoldAll,
        cpu_profile: CpuProfile::Stock,
        log_level: LogLevel::Info,
    }
}

#[test]
fn a_file_says_everything_that_flags_can() {
    assert_eq!(toml::from_str::<Draft>(WHOLE).unwrap().build().unwrap(), whole());
    let dashed = WHOLE.replace("api_socket", "api-socket").replace("log_level", "log-level");
    let dashed = dashed.replace("patch_key", "patch-key").replace("guest_patches", "guest-patches");
    assert_eq!(toml::from_str::<MachineSpec>(&dashed).unwrap(), whole());
}

#[test]
fn a_spec_survives_toml_and_json() {
    for spec in [whole(), MachineSpec::new("vmlinux")] {
        let text = toml::to_string(&spec).unwrap();
        assert_eq!(toml::from_str::<MachineSpec>(&text).unwrap(), spec, "{text}");
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<MachineSpec>(&text).unwrap(), spec, "{text}");
    }
}

#[test]
fn the_smallest_file_has_the_documented_defaults() {
    let spec: MachineSpec = toml::from_str("kernel = 'bzImage'").unwrap();
    assert_eq!(spec, MachineSpec::new("bzImage"));
    assert_eq!((spec.cpus.get(), spec.memory.bytes(), spec.serial), (1, 512 << 20, SerialSpec::Tty));
    // Not with a way to trap accesses.
    let spec: MachineSpec = toml::from_str("kernel = 'bzImage'\ncpu_profile = 'host'").unwrap();
    assert_eq!(spec.cpu_profile, CpuProfile::Host);
}

#[test]
fn files_with_mistakes() {
    for (text, piece) in [
        ("kernel = 'k'\nmemroy = '1G'", "unknown field `memroy`"),
        ("kernel = 'k'\nmemory = '1Q'", "no size"),
        ("kernel = 'k'\nmemory = 5", "at least 32M"),
        ("kernel = 'k'\nmemory = -5", "a size such as"),
        ("kernel = 'k'\ncpus = 0", "1 to 254"),
        ("kernel = 'k'\ncpus = true", "a number of vCPUs"),
        ("kernel = 'k'\ndisk = [{ readonly = true }]", "missing field `path`"),
        ("kernel = 'k'\ndisk = [{ path = 'a', ro = true }]", "unknown field `ro`"),
        ("kernel = 'k'\ndisk = 'a.img'", "expected a sequence"),
        ("kernel = 'k'\nserial = 'pty'", "tty, null or file=PATH"),
        ("kernel = ", "TOML parse error"),
        ("cpus = 1", "no kernel is given"),
        ("kernel = ''", "--kernel : it is empty"),
        ("kernel = 'k'\nnet = [{ tap = 'a/b' }]", "1 to 15 bytes"),
        ("kernel = 'k'\nnet = ['tap0', 'tap0']", "given twice"),
        ("kernel = 'k'\ndisk = ['a.img', 'a.img,readonly=on']", "--disk a.img: it is given twice"),
        ("kernel = 'k'\ndisk = ['a.img']\nserial = 'file=a.img'", "--serial a.img: it is given twice"),
        ("kernel = 'k'\nagent = 's'\napi_socket = 's'", "--api-socket s: it is given twice"),
        ("kernel = 'k'\ncmdline = \"a\\nb\"", "control character (code 10)"),
    ] {
        let told = toml::from_str::<MachineSpec>(text).expect_err(text).to_string();
        assert!(told.contains(piece), "{text:?}: told {told:?}, not {piece:?}");
    }
    // One image, read-only twice, does no harm.
    toml::from_str::<MachineSpec>("kernel='k'\ndisk=['a,readonly=on','a,readonly=on']").unwrap();
}

#[test]
fn flags_are_laid_over_the_file() {
    let flags = Draft {
        cmdline: Some("debug".into()),
        disks: vec![disk("last.img", false)],
        memory: Some(memory(64 << 20)),
        serial: Some(SerialSpec::Null),
        ..Draft::default()
    };
    let spec = toml::from_str::<Draft>(WHOLE).unwrap().overlaid_by(flags).build().unwrap();
    assert_eq!(spec.cmdline, "quiet debug");
    assert_eq!(spec.disks.first(), Some(&disk("root.img", false)));
    assert_eq!(spec.disks.last(), Some(&disk("last.img", false)));
    assert_eq!((spec.memory, spec.serial), (memory(64 << 20), SerialSpec::Null));
    assert_eq!((spec.cpus.get(), spec.kernel), (2, PathBuf::from("bzImage")));
}

#[test]
fn limits_on_text() {
    let mut spec = Draft { kernel: Some("k".into()), ..Draft::default() };
    spec.cmdline = Some("x".repeat(2048));
    assert!(spec.clone().build().unwrap_err().to_string().contains("at most 2047"));
    spec.cmdline = None;
    spec.api_socket = Some("s".repeat(108).into());
    assert!(spec.build().unwrap_err().to_string().contains("at most 107 bytes"));
}

#[test]
fn files_that_are_no_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let missing = Draft::read(&directory.path().join("none.toml")).unwrap_err();
    assert!(matches!(missing, ConfigError::Read { .. }) && missing.to_string().contains("none.toml"));
    assert!(matches!(Draft::read(directory.path()).unwrap_err(), ConfigError::Read { .. }));
    assert!(matches!(Draft::read(Path::new("/dev/zero")).unwrap_err(), ConfigError::TooLong { .. }));
}
