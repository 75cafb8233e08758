//! A small kernel module, and a patch with it: what Kbuild makes, with nothing in it that is not needed to be one.
#![allow(dead_code, reason = "each test takes its own part")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use lucos_lup::manifest::{
    BuildId, Consistency, Draining, Function, Import, Kernel, Manifest, ModuleInfo, Policy, Symbol,
};

pub(crate) const RELEASE: &str = "6.1.0-47-cloud-amd64";

/// Bytes of the ELF header, of an entry of the table of sections, of the table of symbols, and of one of relocations.
pub(crate) const HEADER: usize = 64;
pub(crate) const SECTION: usize = 64;
pub(crate) const SYMBOL: usize = 24;

/// The sections, by their place in the table.
pub(crate) const TEXT: usize = 1;
pub(crate) const RELA: usize = 2;
pub(crate) const THIS_MODULE: usize = 3;
pub(crate) const MODINFO: usize = 4;
pub(crate) const BSS: usize = 5;
pub(crate) const SYMTAB: usize = 6;
pub(crate) const STRTAB: usize = 7;
pub(crate) const SHSTRTAB: usize = 8;
pub(crate) const SECTIONS: usize = 9;

/// Where fields are in an entry of the table of sections (`Elf64_Shdr`).
pub(crate) mod field {
    pub(crate) const NAME: usize = 0;
    pub(crate) const TYPE: usize = 4;
    pub(crate) const OFFSET: usize = 24;
    pub(crate) const SIZE: usize = 32;
    pub(crate) const LINK: usize = 40;
    pub(crate) const INFO: usize = 44;
    pub(crate) const ALIGN: usize = 48;
    pub(crate) const ENTSIZE: usize = 56;
}

/// A module as bytes, and where its tables are.
#[derive(Debug, Clone)]
pub(crate) struct SmallModule {
    pub(crate) file: Vec<u8>,
    pub(crate) sections_at: usize,
    pub(crate) symbols_at: usize,
}

/// The symbols, in the order of the table behind its empty entry: name, `st_info`, section, size.
const SYMBOLS: [(&str, u8, u16, u64); 6] = [
    ("", 0x03, 1, 0),
    ("lucos_ipc_addid", 0x12, 1, 16),
    ("lucos_counter", 0x11, 5, 8),
    ("__this_module", 0x11, 3, 0),
    ("ipc_mni", 0x10, 0, 0),
    ("_printk", 0x10, 0, 0),
];

impl SmallModule {
    /// A module of that name for that kernel.
    pub(crate) fn new(name: &str, release: &str) -> Self {
        let mut file = vec![0; HEADER];
        let mut headers = vec![[0; SECTION]];
        let mut names = vec![0];
        let mut add = |file: &mut Vec<u8>, name: &str, kind: u32, flags: u64, contents: &[u8], entry: u64| {
            file.resize(file.len().next_multiple_of(8), 0);
            let (offset, size) = (file.len() as u64, contents.len() as u64);
            let name_at = u32::try_from(names.len()).unwrap();
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            file.extend_from_slice(contents);
            let (link, info) = match kind {
                4 => (SYMTAB, TEXT),
                2 => (STRTAB, 2),
                _ => (0, 0),
            };
            let parts = [
                name_at.to_le_bytes().to_vec(),
                kind.to_le_bytes().to_vec(),
                flags.to_le_bytes().to_vec(),
                vec![0; 8],
                offset.to_le_bytes().to_vec(),
                size.to_le_bytes().to_vec(),
                u32::try_from(link).unwrap().to_le_bytes().to_vec(),
                u32::try_from(info).unwrap().to_le_bytes().to_vec(),
                8_u64.to_le_bytes().to_vec(),
                entry.to_le_bytes().to_vec(),
            ];
            headers.push(parts.concat().try_into().unwrap());
        };
        // What a function does is of no matter to whoever does not run it: nop, ret, int3.
        add(&mut file, ".text", 1, 6, &[&[0x90; 14][..], &[0xc3, 0xcc]].concat(), 0);
        // R_X86_64_PLT32 against symbol 6, with the addend -4.
        let relocation =
            [1_u64.to_le_bytes(), (6 << 32 | 4_u64).to_le_bytes(), (-4_i64).to_le_bytes()].concat();
        add(&mut file, ".rela.text", 4, 0x40, &relocation, 24);
        let mut this_module = vec![0; 896];
        this_module[24..24 + name.len()].copy_from_slice(name.as_bytes());
        add(&mut file, ".gnu.linkonce.this_module", 1, 3, &this_module, 0);
        let modinfo = format!(
            "license=GPL\0depends=\0name={name}\0vermagic={release} SMP preempt mod_unload modversions \0"
        );
        add(&mut file, ".modinfo", 1, 2, modinfo.as_bytes(), 0);
        add(&mut file, ".bss", 8, 3, &[0; 8], 0);
        let (symbols, strings) = tables();
        add(&mut file, ".symtab", 2, 0, &symbols, 24);
        add(&mut file, ".strtab", 3, 0, &strings, 0);
        let shstrtab_at = file.len().next_multiple_of(8);
        add(&mut file, ".shstrtab", 3, 0, &[], 0);
        let len = names.len() as u64;
        file.extend_from_slice(&names);
        headers[SHSTRTAB][field::OFFSET..field::OFFSET + 8]
            .copy_from_slice(&(shstrtab_at as u64).to_le_bytes());
        headers[SHSTRTAB][field::SIZE..field::SIZE + 8].copy_from_slice(&len.to_le_bytes());
        file.resize(file.len().next_multiple_of(8), 0);
        let sections_at = file.len();
        file.extend_from_slice(&headers.concat());
        file[..HEADER].copy_from_slice(&elf_header(sections_at));
        let offset = &headers[SYMTAB][field::OFFSET..field::OFFSET + 8];
        let symbols_at = usize::try_from(u64::from_le_bytes(offset.try_into().unwrap())).unwrap();
        Self { file, sections_at, symbols_at }
    }

    /// The offset of a field in the table of sections.
    pub(crate) fn section(&self, index: usize, field: usize) -> usize {
        self.sections_at + index * SECTION + field
    }

    /// The offset of symbol number `index`.
    pub(crate) fn symbol(&self, index: usize) -> usize {
        self.symbols_at + index * SYMBOL
    }

    /// The file with other bytes at `at`.
    pub(crate) fn with(&self, at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = self.file.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    }
}

fn tables() -> (Vec<u8>, Vec<u8>) {
    let (mut symbols, mut strings) = (vec![0; SYMBOL], vec![0]);
    for (name, info, section, size) in SYMBOLS {
        let at = if name.is_empty() { 0 } else { u32::try_from(strings.len()).unwrap() };
        symbols.extend_from_slice(&at.to_le_bytes());
        symbols.extend_from_slice(&[info, 0]);
        symbols.extend_from_slice(&section.to_le_bytes());
        symbols.extend_from_slice(&0_u64.to_le_bytes());
        symbols.extend_from_slice(&size.to_le_bytes());
        if !name.is_empty() {
            strings.extend_from_slice(name.as_bytes());
            strings.push(0);
        }
    }
    (symbols, strings)
}

/// `Elf64_Ehdr` of a relocatable file for x86-64.
fn elf_header(sections_at: usize) -> Vec<u8> {
    let half = |value: usize| u16::try_from(value).unwrap().to_le_bytes().to_vec();
    [
        b"\x7fELF\x02\x01\x01".to_vec(),
        vec![0; 9],
        half(1),
        half(62),
        1_u32.to_le_bytes().to_vec(),
        vec![0; 16],
        (sections_at as u64).to_le_bytes().to_vec(),
        vec![0; 4],
        half(HEADER),
        half(0),
        half(0),
        half(SECTION),
        half(SECTIONS),
        half(SHSTRTAB),
    ]
    .concat()
}

/// The module of [`manifest`].
pub(crate) fn module() -> Vec<u8> {
    SmallModule::new("lup_ipc", RELEASE).file
}

/// A manifest that fits the module, with something in each field.
pub(crate) fn manifest() -> Manifest {
    let symbol = Symbol { name: "ipc_mni".into(), object: None, position: 0 };
    Manifest {
        name: "cve-2026-52923".parse().unwrap(),
        summary: "ipc: no ids beyond the limit".into(),
        fixes: vec!["CVE-2026-52923".into()],
        kernels: vec![Kernel { release: RELEASE.into(), build_id: BuildId::from([7; 20]) }],
        module: ModuleInfo {
            name: "lup_ipc".into(),
            symbols: vec![Import { name: "ipc_mni".into(), source: symbol }],
        },
        functions: vec![
            function("ipc_addid", None, &[]),
            function("ipc_addid", Some("ipc_test"), &[(1, 4), (8, 4)]),
        ],
        policy: Policy {
            consistency: Consistency::Coexist,
            coexist_is_safe: Some("it only refuses more than before".into()),
            draining: Draining::Redirect,
            tombstones: true,
        },
        requires: vec!["earlier".parse().unwrap()],
    }
}

fn function(name: &str, object: Option<&str>, holes: &[(u32, u32)]) -> Function {
    Function {
        name: name.into(),
        object: object.map(Into::into),
        position: 1,
        new: format!("lucos_{name}"),
        size: 16,
        code: vec![0x90; 16].into(),
        holes: holes.iter().copied().map(Into::into).collect(),
    }
}
