//! The C header says what the crate says: every value, and every structure's size, offsets and sizes of fields.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::fs;
use std::mem::{offset_of, size_of, size_of_val};
use std::process::Command;

use lucos_abi::{
    CALL_BYTES, Call, ERRNO_MAX, ErrorCode, Hello, Known, Lockdown, MODULE_BYTES, MODULE_NAME_BYTES,
    PATCH_NAME_BYTES, PORT, PORTS, Place, Report, Request, RequestKind, UPLOAD_BYTES, VERSION, WAKE,
};
use zerocopy::FromZeros;

const HEADER: &str = include_str!("../include/lucos_abi.h");

/// Values by the expressions that have them in C.
type Values = BTreeMap<String, u64>;

fn constants() -> Values {
    let mut all = Values::new();
    let mut add = |kind: &str, name: &dyn Debug, value: u32| {
        // `BadVersion` is `BAD_VERSION` in C.
        let mut in_c = format!("LUCOS_{kind}");
        for character in format!("{name:?}").chars() {
            if character.is_ascii_uppercase() {
                in_c.push('_');
            }
            in_c.push(character.to_ascii_uppercase());
        }
        assert!(all.insert(in_c, value.into()).is_none(), "{name:?} twice");
    };
    for call in Call::ALL {
        add("CALL", &call, call as u32);
    }
    for code in ErrorCode::ALL {
        add("ERROR", &code, code as u32);
    }
    for each in Lockdown::ALL {
        add("LOCKDOWN", &each, each as u32);
    }
    for each in Known::ALL {
        add("KNOWN", &each, each as u32);
    }
    for kind in RequestKind::ALL {
        add("REQUEST", &kind, kind as u32);
    }
    all.extend(
        [
            ("PORT", u64::from(PORT)),
            ("PORTS", u64::from(PORTS)),
            ("VERSION", u64::from(VERSION)),
            ("CALL_BYTES", CALL_BYTES as u64),
            ("UPLOAD_BYTES", UPLOAD_BYTES),
            ("MODULE_BYTES", MODULE_BYTES),
            ("MODULE_NAME_BYTES", MODULE_NAME_BYTES as u64),
            ("PATCH_NAME_BYTES", PATCH_NAME_BYTES as u64),
            ("ERRNO_MAX", u64::from(ERRNO_MAX)),
            ("WAKE", u64::from(WAKE)),
        ]
        .map(|(name, value)| (format!("LUCOS_{name}"), value)),
    );
    all
}

/// Sizes and offsets of a structure; it does not compile unless all fields are named.
macro_rules! structure {
    ($all:ident, $rust:ident is $c:literal { $($field:ident is $in_c:literal),+ }) => {
        let $rust { $($field),+ } = $rust::new_zeroed();
        $all.insert(format!("sizeof(struct {})", $c), size_of::<$rust>() as u64);
        $(
            $all.insert(format!("offsetof(struct {}, {})", $c, $in_c), offset_of!($rust, $field) as u64);
            $all.insert(format!("sizeof(((struct {} *)0)->{})", $c, $in_c), size_of_val(&$field) as u64);
        )+
    };
}

fn structures() -> Values {
    let mut all = Values::new();
    structure!(all, Hello is "lucos_hello" {
        pid is "pid", lockdown is "lockdown", sig_enforce is "sig_enforce",
        modules_disabled is "modules_disabled", taint is "taint", version is "version", release is "release"
    });
    structure!(all, Request is "lucos_request" {
        id is "id", kind is "kind", bytes is "bytes", name is "name"
    });
    structure!(all, Report is "lucos_report" {
        id is "id", errno is "errno_value", taint is "taint", text_bytes is "text_bytes", reserved is "reserved"
    });
    all
}

fn places() -> Values {
    let all = [(0x12_3456, 0x98_7654_3210), (1, u64::MAX), (0, 0)];
    let value = |number, offset| Place { number, offset }.register();
    all.map(|(number, offset)| (format!("lucos_place({number}, {offset}ULL)"), value(number, offset))).into()
}

/// What a C compiler makes of the expressions.
fn in_c(expressions: &Values) -> Values {
    let mut source =
        "#include <stddef.h>\n#include <stdio.h>\n#include \"lucos_abi.h\"\nint main(void)\n{\n".to_owned();
    for expression in expressions.keys() {
        writeln!(source, "printf(\"%s=%llu\\n\", \"{expression}\", (unsigned long long)({expression}));")
            .unwrap();
    }
    source.push_str("return 0;\n}\n");
    let folder = std::env::temp_dir().join(format!("lucos-abi-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("lucos_abi.h"), HEADER).unwrap();
    fs::write(folder.join("values.c"), source).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", "values", "values.c"]).current_dir(&folder);
    assert!(cc.status().unwrap().success(), "the header does not compile");
    let output = Command::new(folder.join("values")).output().unwrap();
    fs::remove_dir_all(&folder).unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let value =
        |line: &str| line.rsplit_once('=').map(|(name, value)| (name.to_owned(), value.parse().unwrap()));
    lines.lines().filter_map(value).collect()
}

#[test]
fn values_sizes_and_offsets_are_the_same_in_c() {
    let expected: Values = [constants(), structures(), places()].into_iter().flatten().collect();
    assert!(expected.len() > 60);
    assert_eq!(in_c(&expected), expected);
}

#[test]
fn the_header_has_no_value_that_the_crate_lacks() {
    let expected = constants();
    let defined = HEADER.lines().filter_map(|line| {
        let line = line.trim();
        let macros =
            line.strip_prefix("#define ").and_then(|rest| rest.split_once(' ')).map(|(name, _)| name);
        macros.or_else(|| {
            line.split_once(" = ").map(|(name, _)| name).filter(|name| name.starts_with("LUCOS_"))
        })
    });
    let defined: Vec<&str> = defined.collect();
    assert_eq!(defined.len(), expected.len());
    assert!(defined.iter().all(|name| expected.contains_key(*name)), "{defined:?}");
}
