//! Code that the guest's BPF has made: programs, and what calls them (kernel/bpf/core.c, kernel/bpf/trampoline.c; Linux 6.1 and
//! 6.12). Allegations, like all that is read of modules.

use std::ops::Range;

use super::list::{self, Cut, Listed};
use super::running::Running;
use super::space::ReadError;
use crate::addr::Gva;
use crate::bytes::{index_at, u64_at};
use crate::guest::Memory;
use crate::image::{Btf, NOP5, TypeError};
use crate::limits::{BPF_CHUNKS, BPF_PACKS, BPF_TEXT_BYTES, BPF_TEXTS};
use crate::steps::Steps;

/// Programs share large pages, in whole chunks, with one bit for each (`BPF_PROG_CHUNK_SHIFT`). A pack has 2 MiB for each
/// NUMA node; guests of ours have one.
const CHUNK_BITS: u32 = 6;
const CHUNKS: usize = (2 << 20) >> CHUNK_BITS;
const CHUNK: usize = 1 << CHUNK_BITS;
/// What is listed.
const TEXTS: &str = "programs of BPF";
/// What a program is preceded by: its size, then INT3 as far as the end of the first chunk (`struct bpf_binary_header`,
/// `jit_fill_hole`). What calls programs has neither.
const HEADER: usize = 8;
const FILL: u8 = 0xcc;
/// How every program begins: where its code may be entered from anywhere with a mark for that, then with room for a call
/// (`emit_prologue`). What is a classic filter goes on with a frame at once.
const ENTRY_MARK: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
const PUSH_RBP: u8 = 0x55;

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
    /// Its name: `bpf_prog_…`, `bpf_trampoline_…`. Those that the kernel has no name for are `bpf_classic_filter`, which is a
    /// filter of a socket or of system calls, and `bpf_prog`, which somebody without privileges has loaded, or which is about to
    /// be freed.
    pub name: String,
}

/// Every piece that can be found, by its first address.
pub fn bpf_texts(kernel: &Running<'_, impl Memory>) -> Result<Listed<BpfText>, ReadError> {
    let Some(layout) = &kernel.model().bpf else { return Ok(Listed::nothing()) };
    let space = kernel.space();
    let mut found = Vec::new();
    let cut = Cut { what: TEXTS, limit: BPF_TEXTS };
    let mut cut = list::walk_within(space, kernel.now(layout.symbols), cut, |link| {
        let symbol = Gva(link.0.wrapping_sub(layout.link));
        let start = space.pointer(symbol.wrapping_add(layout.start))?;
        let end = space.pointer(symbol.wrapping_add(layout.end))?;
        let len = end.offset_from(start).unwrap_or(0).min(BPF_TEXT_BYTES);
        let name = space.text(symbol.wrapping_add(layout.name), layout.name_bytes)?;
        found.push(BpfText { text: start..start.wrapping_add(len), name });
        Ok(())
    })?;
    found.sort_by_key(|piece| piece.text.start);
    if let Some(packs) = &layout.packs {
        let unnamed = in_packs(kernel, packs, &found)?;
        cut = cut.or(unnamed.cut);
        found.extend(unnamed.entries);
        found.sort_by_key(|piece| piece.text.start);
    }
    Ok(Listed { entries: found, cut })
}

/// Programs in packs that are not among `named`.
fn in_packs(
    kernel: &Running<'_, impl Memory>,
    layout: &PackLayout,
    named: &[BpfText],
) -> Result<Listed<BpfText>, ReadError> {
    let space = kernel.space();
    let mut packs = Vec::new();
    let cut = Cut { what: "packs of BPF programs", limit: BPF_PACKS };
    let cut = list::walk_within(space, kernel.now(layout.list), cut, |link| {
        packs.push(Gva(link.0.wrapping_sub(layout.link)));
        Ok(())
    })?;
    let mut all = Listed { entries: Vec::new(), cut };
    let chunks = Steps::new(BPF_CHUNKS);
    for pack in packs {
        let start = space.pointer(pack.wrapping_add(layout.pointer))?;
        let mut bitmap = [0; CHUNKS / 8];
        space.read(pack.wrapping_add(layout.bitmap), &mut bitmap)?;
        let room = BPF_TEXTS.saturating_sub(named.len() + all.entries.len());
        let here = in_pack(start, &bitmap, named, room, &chunks, |chunk| space.array(chunk))?;
        all.entries.extend(here.entries);
        if here.cut.is_some() {
            all.cut = here.cut;
            break;
        }
    }
    Ok(all)
}

/// At most `room` programs that are not among `named` in the pack at `start`, whose chunks `read` reads: as many of them as `chunks`
/// has left.
fn in_pack<E>(
    start: Gva,
    bitmap: &[u8; CHUNKS / 8],
    named: &[BpfText],
    room: usize,
    chunks: &Steps,
    read: impl Fn(Gva) -> Result<[u8; CHUNK], E>,
) -> Result<Listed<BpfText>, E> {
    let place = |chunk: usize| start.wrapping_add((chunk << CHUNK_BITS) as u64);
    let is_used = |chunk: usize| bitmap[chunk / 8] >> (chunk % 8) & 1 == 1;
    let mut found = Vec::new();
    let mut chunk = 0;
    let cut = |what, limit| Some(Cut { what, limit });
    while chunk < CHUNKS {
        if !chunks.take() {
            let limit = usize::try_from(BPF_CHUNKS).unwrap_or(usize::MAX);
            return Ok(Listed { entries: found, cut: cut("chunks with BPF programs", limit) });
        }
        if !is_used(chunk) {
            // Most of a pack is empty.
            let word = u64_at(bitmap, chunk / 64 * 8).unwrap_or(0);
            chunk += if word == 0 && chunk % 64 == 0 { 64 } else { 1 };
            continue;
        }
        let behind = named.partition_point(|piece| piece.text.start < place(chunk));
        let piece = named.get(behind).filter(|piece| piece.text.start < place(chunk + 1));
        if let Some(piece) = piece {
            let end = piece.text.end.offset_from(start).and_then(|bytes| usize::try_from(bytes).ok());
            chunk = end.map_or(0, |end| end.div_ceil(CHUNK)).clamp(chunk + 1, CHUNKS);
            continue;
        }
        let head = read(place(chunk))?;
        let own = index_at(&head, 0).filter(|bytes| bytes % CHUNK == 0).map_or(0, |bytes| bytes / CHUNK);
        // There is no size yet while it is being made, and none where other things are.
        let is_whole = || {
            let fits = (1..=CHUNKS - chunk).contains(&own);
            // Each of many may claim the rest of the pack.
            chunks.take_up_to(if fits { own as u64 } else { 0 });
            fits && (chunk..chunk + own).all(is_used)
        };
        match program(&head).filter(|_| is_whole()) {
            Some(_) if found.len() >= room => {
                return Ok(Listed { entries: found, cut: cut(TEXTS, BPF_TEXTS) });
            }
            Some((offset, name)) => {
                let text = place(chunk).wrapping_add(offset as u64)..place(chunk + own);
                found.push(BpfText { text, name: name.to_owned() });
                chunk += own;
            }
            None => chunk += 1,
        }
    }
    Ok(Listed { entries: found, cut: None })
}

/// Where in its first chunk a program begins, and what it is called.
fn program(head: &[u8; CHUNK]) -> Option<(usize, &'static str)> {
    let offset = (HEADER..CHUNK).find(|&at| head[at] != FILL)?;
    let code = &head[offset..];
    let code = code.strip_prefix(&ENTRY_MARK).unwrap_or(code);
    // It may be too close to the end of the chunk to see all of it.
    let room = &NOP5[..NOP5.len().min(code.len())];
    let behind = code.strip_prefix(room)?;
    let is_classic = behind.first().is_none_or(|&byte| byte == PUSH_RBP);
    Some((offset, if is_classic { "bpf_classic_filter" } else { "bpf_prog" }))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;

    const PACK: Gva = Gva(0xffff_ffff_c020_0000);

    /// A pack with these chunks in use, all INT3 but for `pieces`: chunk, and what it begins with.
    fn programs(
        used: Range<usize>,
        pieces: &[(usize, Vec<u8>)],
        named: &[BpfText],
    ) -> Vec<(u64, u64, String)> {
        let mut bitmap = [0_u8; CHUNKS / 8];
        for chunk in used {
            bitmap[chunk / 8] |= 1 << (chunk % 8);
        }
        let read = |at: Gva| {
            let mut bytes = [FILL; CHUNK];
            let chunk = usize::try_from(at.0 - PACK.0).unwrap() / CHUNK;
            if let Some((_, head)) = pieces.iter().find(|(number, _)| *number == chunk) {
                let len = head.len().min(CHUNK);
                bytes[..len].copy_from_slice(&head[..len]);
            }
            Ok::<_, Infallible>(bytes)
        };
        let found = in_pack(PACK, &bitmap, named, 100, &Steps::new(BPF_CHUNKS), read).unwrap();
        assert_eq!(found.cut, None);
        let within = |at: Gva| at.0 - PACK.0;
        found
            .entries
            .into_iter()
            .map(|piece| (within(piece.text.start), within(piece.text.end), piece.name))
            .collect()
    }

    /// The first chunk of a program of `chunks`, which begins with `code` behind `fill` bytes.
    fn head(chunks: usize, fill: usize, code: &[u8]) -> Vec<u8> {
        let size = u32::try_from(chunks * CHUNK).unwrap().to_le_bytes();
        [&size[..], &[0; 4], &vec![FILL; fill], code].concat()
    }

    fn classic() -> Vec<u8> {
        [&NOP5[..], &[PUSH_RBP, 0x48, 0x89, 0xe5]].concat()
    }

    fn named(start: usize, end: usize) -> BpfText {
        BpfText {
            text: PACK.wrapping_add(start as u64)..PACK.wrapping_add(end as u64),
            name: "named".to_owned(),
        }
    }

    #[test]
    fn programs_without_a_name_are_found_between_others() {
        let ebpf = [&ENTRY_MARK[..], &NOP5, &[0x66, 0x90, PUSH_RBP]].concat();
        let pieces = [
            (0, head(2, 16, &classic())),
            (2, head(3, 0, &ebpf)),
            // What calls programs has no size in front, and its instructions are a very large one.
            (5, vec![0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x40]),
            (8, head(1, 48, &classic())),
            (9, head(4, 8, &classic())),
        ];
        let all = programs(
            0..13,
            &pieces,
            &[named(2 * CHUNK + 8, 4 * CHUNK + 10), named(5 * CHUNK, 7 * CHUNK + 1)],
        );
        let chunk = |chunk: usize| (chunk * CHUNK) as u64;
        let filter = "bpf_classic_filter".to_owned();
        assert_eq!(
            all,
            [
                (24, chunk(2), filter.clone()),
                (chunk(8) + 56, chunk(9), filter.clone()),
                (chunk(9) + 16, chunk(13), filter)
            ]
        );
        let freed = programs(0..13, &pieces, &[named(5 * CHUNK, 7 * CHUNK + 1)]);
        assert!(freed.contains(&(chunk(2) + 8, chunk(5), "bpf_prog".to_owned())), "{freed:?}");
    }

    #[test]
    fn what_is_not_there_yet_hides_nothing_behind_it() {
        // All INT3; a size that leads out of what is in use, or to no chunk; code that no program begins with.
        let pieces = [
            (70, head(60, 0, &classic())),
            (71, vec![65, 0, 0, 0, 0, 0, 0, 0, 0x0f, 0x1f, 0x44, 0, 0]),
            (72, head(1, 0, &[PUSH_RBP])),
            (73, head(1, 0, &[])),
            (74, head(1, 0, &classic())),
        ];
        let found = programs(66..80, &pieces, &[]);
        assert_eq!(found, [(74 * 64 + 8, 75 * 64, "bpf_classic_filter".to_owned())]);
        // A name that a guest has made up, with an end before its start.
        assert_eq!(programs(66..80, &pieces, &[named(66 * CHUNK, 10)]), found);
    }

    #[test]
    fn packs_that_are_one_and_the_same_are_not_read_for_ever() {
        // Each chunk is one of no program, or claims all that is behind it, of which the last one is not in use.
        for claims in [false, true] {
            let mut bitmap = [0xff; CHUNKS / 8];
            bitmap[CHUNKS / 8 - 1] = 0x7f;
            let reads = Cell::new(0_u64);
            let read = |at: Gva| {
                reads.set(reads.get() + 1);
                let mut bytes = [0; CHUNK];
                let rest = CHUNKS - usize::try_from(at.0 - PACK.0).unwrap() / CHUNK;
                let head = head(if claims { rest } else { 0 }, 0, &classic());
                bytes[..head.len()].copy_from_slice(&head);
                Ok::<_, Infallible>(bytes)
            };
            let chunks = Steps::new(BPF_CHUNKS);
            let packs: Vec<_> = (0..BPF_PACKS)
                .map(|_| in_pack(PACK, &bitmap, &[], BPF_TEXTS, &chunks, read).unwrap())
                .collect();
            assert!(packs.iter().all(|pack| pack.entries.is_empty()), "{claims}");
            assert!(packs[BPF_PACKS - 1].cut.is_some(), "{claims}");
            // To look whether chunks are in use takes as long as to read some.
            let limit = if claims { BPF_CHUNKS / (CHUNKS as u64 / 2) + 2 } else { BPF_CHUNKS };
            assert!(reads.get() <= limit, "{claims}: {}", reads.get());
        }
    }

    #[test]
    fn programs_that_are_not_listed_are_missed_aloud() {
        let bitmap = [0xff; CHUNKS / 8];
        let read = |_| {
            let mut bytes = [0; CHUNK];
            bytes[..17].copy_from_slice(&head(1, 0, &classic()));
            Ok::<_, Infallible>(bytes)
        };
        let find = |room| in_pack(PACK, &bitmap, &[], room, &Steps::new(BPF_CHUNKS), read).unwrap();
        assert_eq!((find(CHUNKS).entries.len(), find(CHUNKS).cut), (CHUNKS, None));
        let cut = find(CHUNKS - 1);
        assert_eq!(cut.entries.len(), CHUNKS - 1);
        assert!(cut.cut.is_some());
    }
}
