//! Debian's kernels, read whole. `LUCOS_IMAGES` names the folder that has them; `cargo xtask test` sees to it.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use update_server::addr::Gva;
use update_server::census::flow;
use update_server::image::{FrameKind, Image, SiteKind, Symbol};
use update_server::kernel::model::Model;
use update_server::steps::Steps;

/// Every kernel image there is, by the name that tests know it by; empty, and said so, without a folder.
fn kernels(test: &str) -> Vec<(String, PathBuf)> {
    let Some(folder) = images::folder(test) else { return Vec::new() };
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.path()));
    let mut kernels: Vec<_> = named.filter(|(name, _)| name.starts_with("vmlinu")).collect();
    kernels.sort();
    assert!(kernels.len() >= 6, "kernels are missing: {kernels:?}");
    kernels
}

fn i32_at(bytes: &[u8]) -> i64 {
    i64::from(i32::from_le_bytes(bytes[..4].try_into().unwrap()))
}

/// The kernel's table of exported symbols, which kallsyms was not made from: `struct kernel_symbol` has offsets of value
/// and name (`include/linux/export-internal.h`).
fn exported(image: &Image) -> HashMap<String, Gva> {
    let mut found = HashMap::new();
    for table in ["__ksymtab", "__ksymtab_gpl"] {
        let (_, start, len) = image.sections().find(|(name, _, _)| *name == table).unwrap();
        for at in (0..len as u64).step_by(12).map(|offset| start.wrapping_add(offset)) {
            let entry = image.bytes(at, 12).unwrap();
            let value = at.wrapping_offset(i32_at(entry));
            let name = at.wrapping_add(4).wrapping_offset(i32_at(&entry[4..]));
            let text = (1..512)
                .map(|len| image.bytes(name, len).unwrap())
                .find(|text| text.ends_with(&[0]))
                .unwrap();
            found.insert(String::from_utf8(text[..text.len() - 1].to_vec()).unwrap(), value);
        }
    }
    found
}

#[test]
fn symbols_are_where_the_exports_say() {
    for (name, path) in kernels("symbols_are_where_the_exports_say") {
        let image = Image::read(&fs::read(path).unwrap()).unwrap();
        let exports = exported(&image);
        assert!(exports.len() > 9000, "{name} exports {}", exports.len());
        for (symbol, at) in exports {
            let own: Vec<_> = image.symbols().named(&symbol).map(|own| own.address).collect();
            assert!(own.contains(&at), "{name}: {symbol} is exported at {at} and in kallsyms at {own:?}");
        }
    }
}

#[test]
fn every_table_is_found_and_points_at_what_it_should() {
    for (name, path) in kernels("every_table_is_found_and_points_at_what_it_should") {
        let image = Image::read(&fs::read(path).unwrap()).unwrap();
        // Tables that one series has and the other has not: 6.3 and 6.8 changed some into alternatives.
        let (old, new) = (name.contains("6.1-"), name.contains("6.12-"));
        assert!(old || new, "{name} is of an unknown series");
        for (kind, table) in SiteKind::TABLES {
            let expected = match kind {
                SiteKind::Paravirt => old,
                SiteKind::Call | SiteKind::Endbr | SiteKind::RuntimeConstant => new,
                _ => true,
            };
            // These are two or three.
            let least = if kind == SiteKind::FtraceCaller { 1 } else { 100 };
            assert_eq!(image.sites().count(kind) > least, expected, "{name}: {table}");
        }
        let fentry = image.symbols().only("__fentry__").unwrap().address;
        let thunk = image.symbols().only("__x86_return_thunk").unwrap().address;
        for site in image.sites().iter() {
            let bytes = image.bytes(site.start, usize::from(site.len));
            let bytes = bytes.unwrap_or_else(|| panic!("{name}: {site:?} is outside the image"));
            let target = || site.start.wrapping_add(5).wrapping_offset(i32_at(&bytes[1..]));
            match site.kind {
                SiteKind::Ftrace => assert_eq!((bytes[0], target()), (0xe8, fentry), "{name}: {site:?}"),
                SiteKind::Return => assert_eq!((bytes[0], target()), (0xe9, thunk), "{name}: {site:?}"),
                SiteKind::SmpLock => assert!(matches!(bytes[0], 0xf0 | 0x3e), "{name}: {site:?} {bytes:x?}"),
                SiteKind::Bug => assert_eq!(bytes, [0x0f, 0x0b], "{name}: {site:?}"),
                SiteKind::Endbr => assert_eq!(bytes, [0xf3, 0x0f, 0x1e, 0xfa], "{name}: {site:?}"),
                SiteKind::Call => assert_eq!(bytes[0], 0xe8, "{name}: {site:?}"),
                SiteKind::StaticCall => assert!(matches!(bytes[0], 0xe8 | 0xe9 | 0x0f), "{name}: {site:?}"),
                SiteKind::StaticCallTrampoline => {
                    assert!(matches!(bytes[0], 0xe9 | 0xc3), "{name}: {site:?}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn every_function_can_be_unwound_from() {
    for (name, path) in kernels("every_function_can_be_unwound_from") {
        let image = Image::read(&fs::read(path).unwrap()).unwrap();
        let (_, start, len) = image.sections().find(|(section, _, _)| *section == ".text").unwrap();
        let text = start..start.wrapping_add(len as u64);
        let functions =
            image.symbols().iter().filter(|symbol| symbol.is_function() && text.contains(&symbol.address));
        let (mut all, mut none) = (0, 0);
        for function in functions {
            all += 1;
            none += usize::from(image.orc().entry(function.address).is_none());
        }
        assert!(all > 40_000 && none == 0, "{name}: {none} of {all} functions have no entry");
    }
}

#[test]
fn everything_that_is_read_of_a_guest_is_there() {
    for (name, path) in kernels("everything_that_is_read_of_a_guest_is_there") {
        let image = Image::read(&fs::read(path).unwrap()).unwrap();
        assert!(image.release().starts_with("6."), "{name}: {}", image.release());
        assert_eq!(image.build_id().bytes().len(), 20, "{name}");
        assert!(image.relocations().len() > 100_000, "{name}: {}", image.relocations().len());
        let model = Model::new(image).unwrap_or_else(|error| panic!("{name}: {error}"));
        let locks = model.text_locks().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(locks.len(), 2, "{name}");
    }
}

#[test]
fn a_packed_kernel_is_the_one_it_unpacks_to() {
    let kernels = kernels("a_packed_kernel_is_the_one_it_unpacks_to");
    let Some((_, elf)) = kernels.iter().find(|(name, _)| name == "vmlinux-6.1-cloud") else { return };
    let (_, packed) = kernels.iter().find(|(name, _)| name == "vmlinuz-6.1-cloud").unwrap();
    let [elf, packed] = [elf, packed].map(|path| Image::read(&fs::read(path).unwrap()).unwrap());
    assert_eq!((elf.banner(), elf.build_id()), (packed.banner(), packed.build_id()));
    assert!(elf.symbols().iter().eq(packed.symbols().iter()));
    assert!(elf.sites().iter().eq(packed.sites().iter()));
}

#[test]
fn a_cut_or_damaged_kernel_is_an_error_and_no_panic() {
    let kernels = kernels("a_cut_or_damaged_kernel_is_an_error_and_no_panic");
    let Some((_, path)) = kernels.iter().find(|(name, _)| name == "vmlinux-6.1-cloud") else { return };
    let whole = fs::read(path).unwrap();
    for part in [0, 63, 64, 4096, whole.len() / 2] {
        assert!(Image::read(&whole[..part]).is_err(), "{part} bytes of {}", whole.len());
    }
    let image = Image::read(&whole).unwrap();
    for section in [".BTF", ".orc_unwind_ip", ".altinstructions", ".rodata"] {
        let (_, start, len) = image.sections().find(|(name, _, _)| *name == section).unwrap();
        let contents = image.bytes(start, len).unwrap();
        let at = whole.windows(64).position(|window| window == &contents[..64]).unwrap();
        let mut damaged = whole.clone();
        damaged[at..at + len].fill(0xa5);
        assert!(Image::read(&damaged).is_err(), "{section} may be anything");
    }
}

#[test]
fn a_kernel_with_random_damage_is_an_error_or_a_kernel_and_no_panic() {
    let kernels = kernels("a_kernel_with_random_damage_is_an_error_or_a_kernel_and_no_panic");
    let Some((_, path)) = kernels.iter().find(|(name, _)| name == "vmlinux-6.1-cloud") else { return };
    let whole = fs::read(path).unwrap();
    let image = Image::read(&whole).unwrap();
    // Where each table is in the file; the headers are a table, too.
    let mut tables = vec![(0, 4096)];
    for section in
        [".BTF", ".orc_unwind_ip", ".orc_unwind", ".altinstructions", ".rodata", "__bug_table", ".smp_locks"]
    {
        let (_, start, len) = image.sections().find(|(name, _, _)| *name == section).unwrap();
        let contents = image.bytes(start, len).unwrap();
        tables.push((whole.windows(256).position(|window| window == &contents[..256]).unwrap(), len));
    }
    let mut state = 0x5eed_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut refused = 0;
    for round in 0..48 {
        let mut damaged = whole.clone();
        let (at, len) = tables[round % tables.len()];
        for _ in 0..=random(64) {
            damaged[at + random(len)] = u8::try_from(random(256)).unwrap();
        }
        refused += usize::from(Image::read(&damaged).map(|image| Model::new(image).map(drop)).is_err());
    }
    assert!(refused > 0, "damage is never noticed");
}

/// The kernel's own table is true, so that what is said of the code itself must be the same: wherever it says anything.
#[test]
fn the_code_says_the_same_of_its_frames_as_the_unwind_table() {
    for (name, path) in kernels("the_code_says_the_same_of_its_frames_as_the_unwind_table") {
        let image = Image::read(&fs::read(path).unwrap()).unwrap();
        let (_, text, len) = image.sections().find(|(section, ..)| *section == ".text").unwrap();
        let end = text.wrapping_add(len as u64);
        let (mut same, mut silent, mut other) = (0, 0, Vec::new());
        let functions = image.symbols().iter().filter(Symbol::is_function);
        let functions = functions.filter(|symbol| symbol.address >= text && symbol.address < end);
        for function in functions.step_by(17).filter(|function| !function.name.contains(".cold")) {
            let Some(next) = image.symbols().next_behind(function.address) else { continue };
            let bytes = usize::try_from(next.min(end).0 - function.address.0).unwrap();
            let code = image.bytes(function.address, bytes).unwrap();
            // Places within it at which no two instructions are alike.
            for offset in (0..bytes as u64).step_by(11) {
                let at = function.address.wrapping_add(offset);
                let orc = image.orc().entry(at).unwrap();
                // The table is that of what may replace the code, too.
                let replaced = image
                    .sites()
                    .overlapping(at, 1)
                    .any(|site| matches!(site.kind, SiteKind::Alternative | SiteKind::Paravirt));
                if orc.kind != FrameKind::Call || replaced {
                    continue;
                }
                let states = flow::states(code, function.address.0, at.0, &Steps::new(1 << 20));
                match states.iter().any(|state| state.agrees(orc)) {
                    true => same += 1,
                    false if states.is_empty() => silent += 1,
                    false => other.push(format!(
                        "{} {}+{offset:#x}: {orc:?} {states:?}",
                        function.address, function.name
                    )),
                }
            }
        }
        println!("{name}: {same} the same, {silent} not said, {} other", other.len());
        other.dedup_by(|a, b| a.split('+').next() == b.split('+').next());
        // A weak function that another took the place of is still there, and has no symbol to begin at; and hand-written
        // code has symbols in its middle.
        assert!(other.len() < 8, "{name}: {other:#?}");
        assert!(same > 5 * silent, "{name}: {same} the same, and {silent} not said");
    }
}
