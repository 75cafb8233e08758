//! What the tiny guest does, and what must have become of it.

use update_server::watch::Kind;

/// Where its code and handlers are, and the table of interrupts.
pub(super) const CODE: u64 = 0x10_0000;
pub(super) const HANDLERS: u64 = 0x10_2000;
pub(super) const IDT: u64 = 0x10_4000;
/// A page of data and one with the end of a stack; both are watched.
pub(super) const PAGE: u64 = 0x10_6000;
pub(super) const STACK_PAGE: u64 = 0x10_8000;
pub(super) const STACK: u64 = STACK_PAGE + 0x800;
/// What handlers leave: the flags that they found in their frames, or-ed together, and how often one ran.
pub(super) const RESULT: u64 = 0x10_a000;
/// What is not mapped.
pub(super) const UNMAPPED: u64 = 4 << 30;
/// The local APIC (Intel SDM vol. 3A, 11.4.1).
pub(super) const APIC: u64 = 0xfee0_0000;
/// The port that the guest writes to when it has done everything.
pub(super) const DONE_PORT: u16 = 0x80;

/// The vectors that it uses, and where the handler of each begins.
pub(super) const GATES: [(u64, u64); 3] =
    [(UNDEFINED, HANDLERS + 0x40), (PAGE_FAULT, HANDLERS), (INTERRUPT, HANDLERS + 0x80)];
const UNDEFINED: u64 = 6;
const PAGE_FAULT: u64 = 14;
const INTERRUPT: u64 = 0x40;

/// Begins with RDI at the watched page, RSI at what is not mapped, RSP on the watched stack, RBX at the APIC, R8 at the result, and
/// interrupts off. Both pages are watched for all accesses.
#[rustfmt::skip]
pub(super) const MAIN: &[u8] = &[
    0xf0, 0x48, 0xff, 0x07,                                     // lock inc qword [rdi]
    0x48, 0x83, 0x47, 0x08, 0x05,                               // add qword [rdi+8], 5
    0x9c,                                                       // pushfq
    0x58,                                                       // pop rax
    0x49, 0x09, 0x00,                                           // or [r8], rax
    0x0f, 0x0b,                                                 // ud2: its frame goes to the watched stack
    0x48, 0x87, 0xf7,                                           // xchg rdi, rsi
    0x48, 0xa5,                                                 // movsq: reads what is watched, then faults
    0x48, 0x87, 0xf7,                                           // xchg rdi, rsi
    0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // mov dword [rbx+0xf0], 0x1ff: APIC on
    0xc7, 0x83, 0x00, 0x03, 0x00, 0x00, 0x40, 0x40, 0x04, 0x00, // mov dword [rbx+0x300], 0x44040: interrupt itself
    0xfb,                                                       // sti: allows it behind the next instruction
    0xf0, 0x48, 0xff, 0x07,                                     // lock inc qword [rdi]
    0x90,                                                       // nop
    0xfa,                                                       // cli
    0xf0, 0x48, 0xff, 0x07,                                     // lock inc qword [rdi]
    0xe6, 0x80,                                                 // out 0x80, al
];

/// Of a page fault: goes on behind the instruction, which has two bytes.
#[rustfmt::skip]
const ON_FAULT: &[u8] = &[
    0x48, 0x83, 0xc4, 0x08,                                     // add rsp, 8
    0x48, 0x83, 0x04, 0x24, 0x02,                               // add qword [rsp], 2
    0xe9, 0xb2, 0x00, 0x00, 0x00,                               // jmp HANDLERS+0xc0
];
/// Of an undefined instruction: the same.
#[rustfmt::skip]
const ON_UNDEFINED: &[u8] = &[
    0x48, 0x83, 0x04, 0x24, 0x02,                               // add qword [rsp], 2
    0xe9, 0x76, 0x00, 0x00, 0x00,                               // jmp HANDLERS+0xc0
];
/// Of the interrupt.
#[rustfmt::skip]
const ON_INTERRUPT: &[u8] = &[
    0xc7, 0x83, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // mov dword [rbx+0xb0], 0: end of interrupt
    0xe9, 0x31, 0x00, 0x00, 0x00,                               // jmp HANDLERS+0xc0
];
/// What all end with.
#[rustfmt::skip]
const COMMON: &[u8] = &[
    0x48, 0x8b, 0x44, 0x24, 0x10,                               // mov rax, [rsp+16]
    0x49, 0x09, 0x00,                                           // or [r8], rax
    0x49, 0xff, 0x40, 0x08,                                     // inc qword [r8+8]
    0x48, 0xcf,                                                 // iretq
];

/// What lies where.
pub(super) const PARTS: [(u64, &[u8]); 5] = [
    (CODE, MAIN),
    (HANDLERS, ON_FAULT),
    (HANDLERS + 0x40, ON_UNDEFINED),
    (HANDLERS + 0x80, ON_INTERRUPT),
    (HANDLERS + 0xc0, COMMON),
];

/// RFLAGS.TF.
const TF: u64 = 1 << 8;
/// Where the frame of each event begins: in the whole program the stack is as high whenever one comes.
const FRAME: u64 = STACK - 40;

/// What is left when the guest has come to its end.
#[derive(Debug, Clone, Default)]
pub(super) struct Left {
    /// The first two words of the watched page.
    pub(super) page: [u64; 2],
    /// The two words of the result.
    pub(super) result: [u64; 2],
    /// What was told of the watched pages: where, how, and the first eight bytes afterwards.
    pub(super) told: Vec<(u64, Kind, u64)>,
    /// Steps that ended behind their instruction, frames that were pushed, steps that an event came before.
    pub(super) stepped: u64,
    pub(super) delivered: u64,
    pub(super) unfinished: u64,
    /// Pages given up, and changes that nobody was seen to make.
    pub(super) lost: u64,
    pub(super) unseen: u64,
}

/// Says what is not as it must be.
pub(super) fn judge(left: &Left) -> Result<(), String> {
    let check = |good: bool, what: &str| if good { Ok(()) } else { Err(what.to_owned()) };
    check(left.lost == 0, "a step did not end where it should have")?;
    check(left.unseen == 0, "something was written that was not trapped")?;
    check(left.page == [3, 5], "an instruction was not carried out once")?;
    check(left.result[1] == 3, "an exception or interrupt did not come once")?;
    check(left.result[0] & TF == 0, "the guest can see that it is stepped")?;
    let writes = |at: u64| -> Vec<u64> {
        let there = left.told.iter().filter(|told| told.0 == at && told.1 == Kind::Write);
        there.map(|told| told.2).collect()
    };
    check(writes(PAGE) == [1, 2, 3] && writes(PAGE + 8) == [5], "a write was not told once")?;
    // Two frames and the larger one of the fault; handlers add to two of them.
    let frames = (writes(FRAME).len(), writes(FRAME - 8).len());
    check(frames == (4, 1), "an access of an event or of its handler was not told once")?;
    let enough = left.stepped >= 6 && left.delivered >= 2 && left.unfinished >= 1;
    check(enough, "a step ended elsewhere")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Left {
        let write = |at, after| (at, Kind::Write, after);
        let told = vec![
            write(PAGE, 1),
            write(PAGE + 8, 5),
            write(FRAME, 0x10_000e),
            write(FRAME, 0x10_0010),
            write(FRAME - 8, 2),
            write(FRAME, 0x10_0015),
            write(PAGE, 2),
            write(FRAME, 0x10_0031),
            write(PAGE, 3),
        ];
        Left {
            page: [3, 5],
            result: [0x202, 3],
            told,
            stepped: 12,
            delivered: 3,
            unfinished: 1,
            lost: 0,
            unseen: 0,
        }
    }

    #[test]
    fn anything_amiss_is_named() {
        type Spoil = fn(&mut Left);
        assert_eq!(judge(&good()), Ok(()));
        let cases: [(Spoil, &str); 9] = [
            (|left| left.lost = 2, "did not end where"),
            (|left| left.unseen = 1, "not trapped"),
            (|left| left.page[0] = 2, "not carried out once"),
            (|left| left.result[1] = 4, "did not come once"),
            (|left| left.result[0] |= TF, "can see"),
            (|left| left.told[0].0 = 0, "not told once"),
            (|left| left.told.push((PAGE + 8, Kind::Write, 5)), "not told once"),
            (|left| left.told[2].0 = 0, "of an event"),
            (|left| left.unfinished = 0, "elsewhere"),
        ];
        for (spoil, said) in cases {
            let mut left = good();
            spoil(&mut left);
            let why = judge(&left).unwrap_err();
            assert!(why.contains(said), "{why}");
        }
    }

    #[test]
    fn jumps_of_handlers_meet() {
        for (at, code) in &PARTS[1..4] {
            let end = at + code.len() as u64;
            let distance = u32::from_le_bytes(code[code.len() - 4..].try_into().unwrap());
            assert_eq!(end + u64::from(distance), HANDLERS + 0xc0, "{at:#x}");
        }
    }
}
