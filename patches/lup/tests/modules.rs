//! Modules: what is read of a good one, and what is refused of others.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod small_module;

use lucos_lup::Manifest;
use lucos_lup::limits::{MODULE_BYTES, SECTIONS as SECTION_LIMIT};
use lucos_lup::module::{Module, ModuleError, StockModule};
use small_module::{
    BSS, HEADER, MODINFO, RELA, RELEASE, SECTION, SECTIONS, SHSTRTAB, STRTAB, SYMTAB, SmallModule, TEXT,
    THIS_MODULE, field, manifest,
};

type Change = fn(&mut Manifest);

fn small() -> SmallModule {
    SmallModule::new("lup_ipc", RELEASE)
}

#[test]
fn a_module_says_what_it_is() {
    let small = small();
    // A part of a file begins at any offset.
    for padding in 0..8 {
        let file = [vec![0; padding], small.file.clone()].concat();
        let module = Module::read(&file[padding..]).unwrap();
        assert_eq!((module.name(), module.release(), module.sections()), ("lup_ipc", RELEASE, SECTIONS));
        assert_eq!(module.vermagic(), format!("{RELEASE} SMP preempt mod_unload modversions "));
        assert_eq!(module.undefined(), ["ipc_mni", "_printk"]);
        assert_eq!(module.function_size("lucos_ipc_addid"), Ok(16));
        assert_eq!(module.check(&manifest()), Ok(()));
    }
}

#[test]
fn each_part_of_the_manifest_that_does_not_fit_is_named() {
    let small = small();
    let module = Module::read(&small.file).unwrap();
    let table: [(&str, Change); 7] = [
        ("module.name \"other\"", |m| m.module.name = "other".into()),
        ("kernels of the manifest has 6.1.0-56-amd64", |m| m.kernels[0].release = "6.1.0-56-amd64".into()),
        ("functions[1].new of the manifest is \"nothing\"", |m| m.functions[1].new = "nothing".into()),
        ("which the module only refers to", |m| m.functions[0].new = "ipc_mni".into()),
        ("which the module has as something else", |m| m.functions[0].new = "lucos_counter".into()),
        ("module.symbols[0].name of the manifest is \"nothing\"", |m| {
            m.module.symbols[0].name = "nothing".into();
        }),
        ("does not leave undefined", |m| m.module.symbols[0].name = "lucos_ipc_addid".into()),
    ];
    for (wanted, change) in table {
        let mut manifest = manifest();
        change(&mut manifest);
        let error = module.check(&manifest).unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    // The symbol of the counter is made a second one of the function.
    let twice = small.with(small.symbol(3), &small.file[small.symbol(2)..small.symbol(3)]);
    let error = Module::read(&twice).unwrap().check(&manifest()).unwrap_err().to_string();
    assert!(error.contains("has more than once"), "{error}");
}

#[test]
fn a_function_is_code_that_is_all_there() {
    let small = small();
    let symbol = small.symbol(2);
    for (at, bytes) in [
        (symbol + 4, &[0x11][..]),                      // data, by its type
        (symbol + 6, &5_u16.to_le_bytes()),             // in .bss
        (symbol + 6, &0xfff1_u16.to_le_bytes()),        // at a fixed address
        (symbol + 8, &1_u64.to_le_bytes()),             // one byte longer than its section
        (symbol + 8, &u64::MAX.to_le_bytes()),          // and far beyond
        (symbol + 16, &0_u64.to_le_bytes()),            // empty
        (small.section(TEXT, 8), &2_u64.to_le_bytes()), // in a section that is not run
    ] {
        let file = small.with(at, bytes);
        let size = Module::read(&file).unwrap().function_size("lucos_ipc_addid");
        assert!(size.unwrap_err().starts_with("has as something else"), "{at:#x}");
    }
}

#[test]
fn each_absurd_header_is_named() {
    let small = small();
    let long = u64::MAX.to_le_bytes();
    let half = |value: u16| value.to_le_bytes().to_vec();
    let word = |value: u32| value.to_le_bytes().to_vec();
    let table: [(usize, Vec<u8>, &str); 27] = [
        (0, vec![0], "ELF header makes no sense"),
        (4, vec![1], "ELF header makes no sense"),
        (5, vec![2], "it is big-endian"),
        (16, half(2), "with type 0x2 in its header"),
        (18, half(3), "with machine 0x3 in its header"),
        (40, vec![0; 8], "names of sections are in no section"),
        (40, long.to_vec(), "table of sections makes no sense"),
        (58, half(0), "table of sections makes no sense"),
        (60, half(0xfeff), "table of sections makes no sense"),
        (62, half(0), "makes no sense"),
        (62, half(200), "names of sections are in no section"),
        (small.section(TEXT, field::NAME), word(u32::MAX), "name of entry 1 is no text"),
        (
            small.section(TEXT, field::OFFSET),
            long.to_vec(),
            "section 1 (.text) of the module has 0x10 bytes at 0xff",
        ),
        (small.section(TEXT, field::SIZE), long.to_vec(), "beyond the end of the file"),
        (small.section(TEXT, field::ALIGN), 3_u64.to_le_bytes().to_vec(), "aligned to 0x3"),
        (small.section(TEXT, field::ALIGN), 8192_u64.to_le_bytes().to_vec(), "aligned to 0x2000"),
        (
            small.section(BSS, field::SIZE),
            long.to_vec(),
            "section 5 (.bss) of the module brings the module's memory",
        ),
        (small.section(RELA, field::TYPE), word(9), "relocations without addends"),
        (small.section(RELA, field::INFO), word(0), "no table of relocations of another section"),
        (small.section(RELA, field::INFO), word(200), "no table of relocations of another section"),
        (small.section(RELA, field::LINK), word(1), "no table of relocations of another section"),
        (small.section(RELA, field::ENTSIZE), long.to_vec(), "no table of relocations of another section"),
        (small.section(SYMTAB, field::ENTSIZE), vec![0; 8], "entries do not have 24 bytes"),
        (small.section(SYMTAB, field::LINK), word(200), "its names are in no section"),
        (small.section(STRTAB, field::TYPE), word(2), "there is more than one"),
        (small.symbol(2), word(u32::MAX), "name of entry 2 is no text"),
        (small.symbol(2) + 6, half(0xfff2), "is in section 0xfff2, which the module does not have"),
    ];
    for (at, bytes, wanted) in table {
        let error = Module::read(&small.with(at, &bytes)).unwrap_err().to_string();
        assert!(error.contains(wanted), "{at:#x} {bytes:x?}: {error}");
    }
    let error = Module::read(&small.with(small.symbol(2) + 6, &half(200))).unwrap_err();
    assert!(matches!(error, ModuleError::Symbol { index: 2, .. }), "{error}");
}

#[test]
fn what_makes_it_a_module_must_be_there() {
    let small = small();
    let at = |index| small.section(index, field::NAME);
    for (section, what) in [(THIS_MODULE, "section .gnu.linkonce.this_module"), (MODINFO, "section .modinfo")]
    {
        let name = small.file[at(SHSTRTAB)..at(SHSTRTAB) + 4].to_vec();
        let error = Module::read(&small.with(at(section), &name)).unwrap_err();
        assert_eq!(error, ModuleError::Missing { what });
    }
    let no_symbols = small.with(small.section(SYMTAB, field::TYPE), &1_u32.to_le_bytes());
    let no_symbols = Module::read(&no_symbols).unwrap_err();
    // Relocations name their table of symbols, so that it is missed there first.
    assert!(matches!(no_symbols, ModuleError::Section { index: RELA, .. }), "{no_symbols}");
    for (name, release, what) in [
        ("", RELEASE, "name in .gnu.linkonce.this_module"),
        ("a b", RELEASE, "name in .gnu.linkonce.this_module"),
        ("lup_ipc", "6.1\x1b", "vermagic in .modinfo"),
        ("lup_ipc", &"x".repeat(300), "vermagic in .modinfo"),
    ] {
        let error = Module::read(&SmallModule::new(name, release).file).unwrap_err();
        assert_eq!(error, ModuleError::Missing { what });
    }
}

#[test]
fn each_truncation_is_an_error_and_so_is_too_much() {
    let small = small();
    for len in 0..small.file.len() {
        assert!(Module::read(&small.file[..len]).is_err(), "{len}");
    }
    let mut file = small.file.clone();
    file.resize(MODULE_BYTES, 0);
    assert!(Module::read(&file).is_ok());
    file.push(0);
    assert_eq!(Module::read(&file).unwrap_err(), ModuleError::TooLong { len: MODULE_BYTES + 1 });
}

#[test]
fn no_section_beyond_the_limit() {
    let small = small();
    for (count, taken) in [(SECTION_LIMIT, true), (SECTION_LIMIT + 1, false)] {
        let mut file = small.with(60, &u16::try_from(count).unwrap().to_le_bytes());
        file.resize(small.sections_at + count * SECTION, 0);
        assert_eq!(Module::read(&file).is_ok(), taken, "{count}");
    }
}

/// Names that begin at each byte of one long text, in a table that has as many entries as fit.
#[test]
fn names_that_lie_in_each_other_take_no_time() {
    let mut small = small();
    let end = small.sections_at;
    let mut names = vec![b'x'; 4 << 20];
    names.push(0);
    let mut symbols = vec![0; 24];
    let entry = small.file[small.symbol(2)..small.symbol(3)].to_vec();
    for _ in 0..300_000 {
        symbols.extend_from_slice(&entry);
    }
    let headers = small.file.split_off(end);
    let names_at = small.file.len() as u64;
    small.file.extend_from_slice(&names);
    let symbols_at = small.file.len() as u64;
    small.file.extend_from_slice(&symbols);
    small.sections_at = small.file.len();
    small.file.extend_from_slice(&headers);
    let mut put = |at: usize, value: u64| small.file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    let section = |index, field| small.sections_at + index * SECTION + field;
    put(40, small.sections_at as u64);
    put(section(STRTAB, field::OFFSET), names_at);
    put(section(STRTAB, field::SIZE), names.len() as u64);
    put(section(SYMTAB, field::OFFSET), symbols_at);
    put(section(SYMTAB, field::SIZE), symbols.len() as u64);
    let error = Module::read(&small.file).unwrap_err();
    assert!(error.to_string().contains("name of entry 1 is no text, or too long"), "{error}");
}

#[test]
fn whatever_the_bytes_are_it_ends() {
    let small = small();
    // Every field of the headers is of 1, 2, 4 or 8 bytes that begin at a multiple of their length.
    let places =
        (0..HEADER).chain(small.sections_at..small.file.len()).chain(small.symbol(0)..small.symbol(7));
    for at in places {
        for len in [1, 2, 4, 8].into_iter().filter(|len| at % len == 0 && at + len <= small.file.len()) {
            for byte in [0, 0x7f, 0x80, 0xff] {
                if let Ok(module) = Module::read(&small.with(at, &vec![byte; len])) {
                    assert_eq!(module.name(), "lup_ipc", "{at:#x}");
                }
            }
        }
    }
}

#[test]
fn a_stock_modules_function_has_holes_where_loading_fills_it_in() {
    let small = small();
    let stock = StockModule::read(&small.file).unwrap();
    assert_eq!((stock.name(), stock.release()), ("lup_ipc", RELEASE));
    // What is undefined is not its own; by address, code comes before data.
    let symbols: Vec<_> = stock.symbols().collect();
    assert_eq!(symbols, [("lucos_ipc_addid", true), ("__this_module", true), ("lucos_counter", true)]);
    let original = stock.function("lucos_ipc_addid", 0).unwrap();
    assert_eq!(original.code.as_bytes(), &[&[0x90; 14][..], &[0xc3, 0xcc]].concat()[..]);
    assert_eq!(original.holes, [(1, 4).into()]);
    assert_eq!(stock.function("lucos_ipc_addid", 1).unwrap(), original);
    for (name, position) in
        [("lucos_ipc_addid", 2), ("lucos_ipc_addid", u32::MAX), ("lucos_counter", 0), ("ipc_mni", 0)]
    {
        let error = stock.function(name, position).unwrap_err();
        assert!(matches!(error, ModuleError::NoFunction { .. }), "{name}: {error}");
    }
}

#[test]
fn holes_reach_no_further_than_the_function() {
    let small = small();
    let relocation = small.section(RELA, field::OFFSET);
    let at = usize::try_from(u64::from_le_bytes(small.file[relocation..relocation + 8].try_into().unwrap()))
        .unwrap();
    for (offset, kind, holes) in [
        (14, 4, vec![(14, 2)]), // PLT32 that reaches out of it
        (10, 1, vec![(10, 6)]), // 64
        (12, 0, vec![]),        // NONE
        (16, 4, vec![]),        // behind it
        (u64::MAX, 4, vec![]),  // nowhere
    ] {
        let moved = small.with(at, &u64::to_le_bytes(offset));
        let file = [&moved[..at + 8], &u32::to_le_bytes(kind), &moved[at + 12..]].concat();
        let original = StockModule::read(&file).unwrap().function("lucos_ipc_addid", 0).unwrap();
        let found: Vec<_> = original.holes.iter().map(|hole| (hole.offset, hole.len)).collect();
        assert_eq!(found, holes, "{offset:#x}");
    }
    let odd = small.with(at + 8, &99_u32.to_le_bytes());
    let error = StockModule::read(&odd).unwrap().function("lucos_ipc_addid", 0).unwrap_err();
    assert!(error.to_string().contains("+0x1 of the module has a relocation of type 99"), "{error}");
}

#[test]
fn one_of_several_functions_is_told_by_its_position() {
    let small = small();
    // The counter becomes a second function of that name, 8 bytes long, 4 bytes behind the first.
    let mut entry = small.file[small.symbol(2)..small.symbol(3)].to_vec();
    entry[8..16].copy_from_slice(&4_u64.to_le_bytes());
    entry[16..24].copy_from_slice(&8_u64.to_le_bytes());
    let file = small.with(small.symbol(3), &entry);
    let stock = StockModule::read(&file).unwrap();
    assert!(stock.function("lucos_ipc_addid", 0).is_err());
    let len = |position| stock.function("lucos_ipc_addid", position).unwrap().code.as_bytes().len();
    assert_eq!((len(1), len(2)), (16, 8));
}
