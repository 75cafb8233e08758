//! Code that the guest's BPF has made: programs, and what calls them (kernel/bpf/core.c, kernel/bpf/trampoline.c; Linux 6.1 and
//! 6.12). Allegations, like all that is read of modules.

use std::ops::Range;

use super::list;
use super::running::Running;
use super::space::ReadError;
use crate::addr::Gva;
use crate::bytes::u64_at;
use crate::guest::Memory;
use crate::image::{Btf, TypeError};
use crate::limits::{BPF_PACKS, BPF_TEXT_BYTES, BPF_TEXTS};

/// Programs share large pages, in whole chunks, with one bit for each (`BPF_PROG_CHUNK_SHIFT`). A pack has 2 MiB for each
/// NUMA node; guests of ours have one.
const CHUNK_BITS: u32 = 6;
const CHUNKS: usize = (2 << 20) >> CHUNK_BITS;
/// What a program is preceded by: its size, then up to a chunk of INT3 (`struct bpf_binary_header`, `jit_fill_hole`).
const HEADER: u64 = 8;
const FILL: u8 = 0xcc;

/// Where BPF keeps what it has made, in a kernel that has BPF.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BpfLayout {
    symbols: Gva,
    link: u64,
    start: u64,
    end: u64,
    name: u64,
    name_bytes: usize,
    packs: Option<PackLayout>,
}

#[derive(Debug, Clone, Copy)]
struct PackLayout {
    list: Gva,
    link: u64,
    pointer: u64,
    bitmap: u64,
}

impl BpfLayout {
    pub(super) fn of(types: &Btf, one: impl Fn(&str) -> Option<Gva>) -> Option<Self> {
        let offset = |member: &str| types.offset("bpf_ksym", member).ok();
        let packs = || -> Result<Option<PackLayout>, TypeError> {
            let Some(list) = one("pack_list") else { return Ok(None) };
            let offset = |member: &str| types.offset("bpf_prog_pack", member);
            Ok(Some(PackLayout {
                list,
                link: offset("list")?,
                pointer: offset("ptr")?,
                bitmap: offset("bitmap")?,
            }))
        };
        Some(Self {
            symbols: one("bpf_kallsyms")?,
            link: offset("lnode")?,
            start: offset("start")?,
            end: offset("end")?,
            name: offset("name")?,
            name_bytes: usize::try_from(types.field("bpf_ksym", "name").ok()?.size()).ok()?,
            packs: packs().unwrap_or(None),
        })
    }
}

/// One piece of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpfText {
    /// From its first instruction to where other code may begin.
    pub text: Range<Gva>,
    /// Its name: `bpf_prog_…`, `bpf_trampoline_…`. Classic filters, of sockets and seccomp, have none.
    pub name: Option<String>,
}

/// Every piece that can be found, by its first address.
pub fn bpf_texts(kernel: &Running<'_, impl Memory>) -> Result<Vec<BpfText>, ReadError> {
    let Some(layout) = &kernel.model().bpf else { return Ok(Vec::new()) };
    let space = kernel.space();
    let mut found = Vec::new();
    list::walk(space, kernel.now(layout.symbols), |link| {
        let symbol = Gva(link.0.wrapping_sub(layout.link));
        let start = space.pointer(symbol.wrapping_add(layout.start))?;
        let end = space.pointer(symbol.wrapping_add(layout.end))?;
        let len = end.offset_from(start).unwrap_or(0).min(BPF_TEXT_BYTES);
        let name = space.text(symbol.wrapping_add(layout.name), layout.name_bytes)?;
        found.push(BpfText { text: start..start.wrapping_add(len), name: Some(name) });
        Ok(found.len() < BPF_TEXTS)
    })?;
    found.sort_by_key(|piece| piece.text.start);
    if let Some(packs) = &layout.packs {
        let unnamed = in_packs(kernel, packs, &found)?;
        found.extend(unnamed);
        found.sort_by_key(|piece| piece.text.start);
    }
    Ok(found)
}

/// Programs in packs that are not among `named`.
fn in_packs(
    kernel: &Running<'_, impl Memory>,
    layout: &PackLayout,
    named: &[BpfText],
) -> Result<Vec<BpfText>, ReadError> {
    let space = kernel.space();
    let mut packs = Vec::new();
    list::walk(space, kernel.now(layout.list), |link| {
        packs.push(Gva(link.0.wrapping_sub(layout.link)));
        Ok(packs.len() < BPF_PACKS)
    })?;
    let mut found = Vec::new();
    for pack in packs {
        let start = space.pointer(pack.wrapping_add(layout.pointer))?;
        let mut bitmap = [0; CHUNKS / 8];
        space.read(pack.wrapping_add(layout.bitmap), &mut bitmap)?;
        let mut chunk = 0;
        while chunk < CHUNKS && named.len() + found.len() < BPF_TEXTS {
            if bitmap[chunk / 8] >> (chunk % 8) & 1 == 0 {
                // Most of a pack is empty.
                let word = u64_at(&bitmap, chunk / 64 * 8).unwrap_or(0);
                chunk += if word == 0 && chunk % 64 == 0 { 64 } else { 1 };
                continue;
            }
            let place = start.wrapping_add((chunk as u64) << CHUNK_BITS);
            let of = |bytes: u64| usize::try_from(bytes >> CHUNK_BITS).unwrap_or(0).clamp(1, CHUNKS - chunk);
            let next = named.partition_point(|piece| piece.text.start < place);
            let next = named.get(next).map(|piece| &piece.text);
            // Trampolines are in packs, too, since 6.9, and have no header.
            if let Some(text) = next.filter(|text| text.start == place) {
                chunk += of(text.end.0 - text.start.0 + (1 << CHUNK_BITS) - 1);
                continue;
            }
            let bytes = u64::from(space.u32(place)?);
            let chunks = of(bytes);
            chunk += chunks;
            let end = place.wrapping_add((chunks as u64) << CHUNK_BITS);
            if next.is_some_and(|text| text.start < end) {
                continue;
            }
            // A program begins within its first chunk (`bpf_jit_binary_pack_hdr`).
            let head: [u8; 1 << CHUNK_BITS] = space.array(place)?;
            let code = (HEADER..1 << CHUNK_BITS).zip(&head[8..]).find(|&(_, &byte)| byte != FILL);
            // There is none yet while it is being made.
            if let Some((offset, _)) = code.filter(|_| bytes != 0) {
                found.push(BpfText { text: place.wrapping_add(offset)..end, name: None });
            }
        }
    }
    Ok(found)
}
