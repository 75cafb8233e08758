//! What an instruction does to memory, by its encoding alone.

use std::sync::Arc;

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess,
    OpKind, Register, UsedMemory,
};

use super::in_place::Plain;
use super::space::Space;

/// The longest instruction (Intel SDM vol. 2A, 2.3.11).
pub(super) const LONGEST: usize = 15;
/// The most that XSAVE writes: its standard form with every component that a processor has today, AMX tiles among them (Intel SDM
/// vol. 1, 13.4; CPUID leaf 0dh).
const XSAVE_MOST: u32 = 11 << 10;
/// RFLAGS.OF (Intel SDM vol. 1, 3.4.3).
const OF: u64 = 1 << 11;
/// How many decoded instructions are kept, as a power of two: those that come again and again in one guest's hot paths.
const KEPT: usize = 1 << 10;

/// An operand in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operand {
    pub(super) memory: UsedMemory,
    /// How many bytes.
    pub(super) len: u32,
    pub(super) reads: bool,
    pub(super) writes: bool,
    /// Whether all of these bytes are accessed, or some, perhaps none.
    pub(super) exact: bool,
}

/// How an instruction enters the kernel or leaves it (Intel SDM vol. 2B).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gateway {
    Syscall,
    Sysret,
    Sysenter,
    Sysexit,
}

/// A decoded instruction.
#[derive(Debug, Clone)]
pub(super) struct Decoded {
    pub(super) instruction: Instruction,
    pub(super) operands: Vec<Operand>,
    /// Whether it may access more than its operands, or where they are depends on more than general registers.
    pub(super) others: bool,
    /// The register that says which bit from the operand's address on is meant, near or far: of BT and its like.
    pub(super) bit: Option<Register>,
    /// How it can be carried out on behalf of the vCPU, if at all.
    pub(super) plain: Option<Plain>,
    /// The vector of INT n and its like.
    vector: Option<u8>,
    /// Whether it pushes the flags, which carry a trap flag that is not the guest's while it is carried out alone.
    pub(super) pushes_flags: bool,
    pub(super) gateway: Option<Gateway>,
}

impl Decoded {
    /// Whether it is a string instruction with a prefix that repeats it.
    pub(super) fn is_repeated(&self) -> bool {
        let prefix = self.instruction.has_rep_prefix() || self.instruction.has_repne_prefix();
        self.instruction.is_string_instruction() && prefix
    }

    /// The vector of the handler that it enters by itself: INT n and its like.
    pub(super) fn raises(&self, space: &Space<'_>) -> Option<u8> {
        let overflows = space.regs.rflags & OF != 0;
        self.vector.filter(|_| self.instruction.mnemonic() != Mnemonic::Into || overflows)
    }

    /// How far from its address an operand of `len` bytes is: the words of its size that lie before the bit that is meant (Intel
    /// SDM vol. 2A, 3.1.1.9, `BitBase`).
    pub(super) fn distance(&self, space: &Space<'_>, len: u32) -> u64 {
        let Some(bit) = self.bit.and_then(|register| space.value(register)) else { return 0 };
        // The register has as many bits as the operand.
        let unused = 64 - 8 * len.min(8);
        let bit = (bit << unused).cast_signed() >> unused;
        (bit.div_euclid(8 * i64::from(len)) * i64::from(len)).cast_unsigned()
    }

    /// How often it is still to be done: the counter of its address size.
    pub(super) fn count(&self, space: &Space<'_>) -> u64 {
        let short = [OpKind::MemoryESEDI, OpKind::MemorySegESI];
        let shortest = [OpKind::MemoryESDI, OpKind::MemorySegSI];
        let has = |kinds: &[OpKind]| self.instruction.op_kinds().any(|kind| kinds.contains(&kind));
        let register = match (has(&short), has(&shortest)) {
            (true, _) => Register::ECX,
            (_, true) => Register::CX,
            _ => Register::RCX,
        };
        space.value(register).unwrap_or(1)
    }
}

struct Kept {
    rip: u64,
    bits: u32,
    bytes: [u8; LONGEST],
    decoded: Arc<Decoded>,
}

/// Decodes, and remembers what it has decoded.
pub(super) struct Decodings {
    factory: InstructionInfoFactory,
    kept: Vec<Option<Kept>>,
}

impl Decodings {
    pub(super) fn new() -> Self {
        Self { factory: InstructionInfoFactory::new(), kept: (0..KEPT).map(|_| None).collect() }
    }

    /// The instruction at `rip`, of which `bytes` are the first that can be read; `bits` is 16, 32 or 64. `None` when they are none,
    /// or not all of one.
    pub(super) fn decode(&mut self, rip: u64, bytes: &[u8], bits: u32) -> Option<&Arc<Decoded>> {
        let slot = usize::try_from(rip ^ rip >> 12).unwrap_or(0) % KEPT;
        let known = self.kept[slot].as_ref().is_some_and(|kept| {
            let len = kept.decoded.instruction.len();
            kept.rip == rip && kept.bits == bits && bytes.len() >= len && kept.bytes[..len] == bytes[..len]
        });
        if !known {
            let decoded = decode(&mut self.factory, rip, bytes, bits)?;
            let mut copy = [0; LONGEST];
            let len = bytes.len().min(LONGEST);
            copy[..len].copy_from_slice(&bytes[..len]);
            self.kept[slot] = Some(Kept { rip, bits, bytes: copy, decoded: Arc::new(decoded) });
        }
        self.kept[slot].as_ref().map(|kept| &kept.decoded)
    }
}

fn decode(factory: &mut InstructionInfoFactory, rip: u64, bytes: &[u8], bits: u32) -> Option<Decoded> {
    let mut decoder = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return None;
    }
    let info = factory.info_options(&instruction, InstructionInfoOptions::NO_REGISTER_USAGE);
    let mut others = touches_more(&instruction);
    let mut operands = Vec::new();
    for memory in info.used_memory() {
        let (reads, writes, mut exact) = match memory.access() {
            OpAccess::Read => (true, false, true),
            OpAccess::CondRead => (true, false, false),
            OpAccess::Write => (false, true, true),
            OpAccess::CondWrite => (false, true, false),
            OpAccess::ReadWrite => (true, true, true),
            OpAccess::ReadCondWrite => (true, true, false),
            OpAccess::None | OpAccess::NoMemAccess => continue,
        };
        let mut len = u32::try_from(memory.memory_size().size()).unwrap_or(0);
        if len == 0 && instruction.is_string_instruction() {
            // One that is repeated: its operands are those of one iteration, unless there is none any more.
            (len, exact) = (u32::try_from(instruction.memory_size().size()).unwrap_or(0), true);
        } else if len == 0 {
            (len, exact) = (XSAVE_MOST, false);
            others |= !is_xsave(&instruction);
        }
        others |= memory.vsib_size() != 0;
        // A masked store writes some elements; which ones only its mask register tells.
        exact &= !instruction.has_op_mask();
        operands.push(Operand { memory: *memory, len, reads, writes, exact });
    }
    let pushes_flags =
        matches!(instruction.mnemonic(), Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq);
    let gateway = match instruction.mnemonic() {
        Mnemonic::Syscall => Some(Gateway::Syscall),
        Mnemonic::Sysret | Mnemonic::Sysretq => Some(Gateway::Sysret),
        Mnemonic::Sysenter => Some(Gateway::Sysenter),
        Mnemonic::Sysexit | Mnemonic::Sysexitq => Some(Gateway::Sysexit),
        _ => None,
    };
    let tests_bit =
        matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    let by_register = tests_bit && instruction.op1_kind() == OpKind::Register;
    let bit = by_register.then(|| instruction.op1_register());
    let vector = match instruction.mnemonic() {
        Mnemonic::Int1 => Some(1),
        Mnemonic::Int3 => Some(3),
        Mnemonic::Into => Some(4),
        Mnemonic::Int => Some(instruction.immediate8()),
        _ => None,
    };
    let plain = Plain::of(&instruction);
    Some(Decoded { instruction, operands, others, bit, plain, vector, pushes_flags, gateway })
}

/// Whether it accesses memory that none of its operands names: descriptors, whose "accessed" bit the processor sets, the stack of
/// another privilege level, the frames of ENTER.
fn touches_more(instruction: &Instruction) -> bool {
    let loads_segment = instruction.op_count() > 0
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().is_segment_register();
    let far = matches!(
        instruction.mnemonic(),
        Mnemonic::Lds
            | Mnemonic::Les
            | Mnemonic::Lss
            | Mnemonic::Lfs
            | Mnemonic::Lgs
            | Mnemonic::Retf
            | Mnemonic::Iret
            | Mnemonic::Iretd
            | Mnemonic::Iretq
            | Mnemonic::Ltr
            | Mnemonic::Lldt
            | Mnemonic::Enter
            | Mnemonic::Rsm
    ) || instruction.is_jmp_far()
        || instruction.is_jmp_far_indirect()
        || instruction.is_call_far()
        || instruction.is_call_far_indirect();
    loads_segment && instruction.mnemonic() != Mnemonic::Push
        || far
        // A table that grows with what is registered there.
        || matches!(instruction.mnemonic(), Mnemonic::Enqcmd | Mnemonic::Enqcmds | Mnemonic::Senduipi)
}

fn is_xsave(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Xsave
            | Mnemonic::Xsave64
            | Mnemonic::Xsavec
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaveopt
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xsaves
            | Mnemonic::Xsaves64
            | Mnemonic::Xrstor
            | Mnemonic::Xrstor64
            | Mnemonic::Xrstors
            | Mnemonic::Xrstors64
    )
}

#[cfg(test)]
mod tests {
    use iced_x86::IcedError;
    use iced_x86::code_asm::*;

    use super::*;

    /// Where, how many bytes, whether it reads, writes, and all of them.
    type Seen = (u64, u32, bool, bool, bool);

    fn operands(assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> (Vec<Seen>, bool) {
        let mut a = CodeAssembler::new(64).unwrap();
        assemble(&mut a).unwrap();
        let bytes = a.assemble(0x1000).unwrap();
        let mut decodings = Decodings::new();
        let decoded = decodings.decode(0x1000, &bytes, 64).unwrap();
        let place = |register: Register, _, _| {
            Some(match register {
                Register::RSP => 0x8000,
                Register::RDI | Register::EDI => 0x9000,
                Register::RSI => 0xa000,
                Register::GS => 0x10_0000,
                Register::RCX => 3,
                _ => 0,
            })
        };
        let of = |operand: &Operand| {
            let at = operand.memory.virtual_address(0, place).unwrap();
            (at, operand.len, operand.reads, operand.writes, operand.exact)
        };
        (decoded.operands.iter().map(of).collect(), decoded.others)
    }

    #[test]
    fn operands_are_where_the_manual_says() {
        assert_eq!(operands(|a| a.mov(dword_ptr(rdi + 4), eax)).0, [(0x9004, 4, false, true, true)]);
        assert_eq!(operands(|a| a.push(rax)).0, [(0x7ff8, 8, false, true, true)]);
        assert_eq!(
            operands(|a| a.pop(qword_ptr(rsp + 8))).0,
            [(0x8010, 8, false, true, true), (0x8000, 8, true, false, true)]
        );
        assert_eq!(operands(|a| a.inc(qword_ptr(rdi + rcx * 8).gs())).0, [(0x10_9018, 8, true, true, true)]);
        assert_eq!(
            operands(CodeAssembler::movsq).0,
            [(0x9000, 8, false, true, true), (0xa000, 8, true, false, true)]
        );
        // Repeated, it is one iteration at a time.
        let moved = vec![(0x9000, 8, false, true, true), (0xa000, 8, true, false, true)];
        assert_eq!(operands(|a| a.rep().movsq()), (moved, false));
        assert_eq!(operands(|a| a.rep().stosd()), (vec![(0x9000, 4, false, true, true)], false));
        assert_eq!(operands(|a| a.repe().cmpsb()).0.len(), 2);
        assert_eq!(operands(|a| a.fxsave(ptr(rdi))).0, [(0x9000, 512, false, true, true)]);
        assert_eq!(operands(|a| a.lea(rax, ptr(rdi))), (vec![], false));
        assert_eq!(operands(|a| a.mov(eax, dword_ptr(0x2000_u64))).0, [(0x2000, 4, true, false, true)]);
    }

    #[test]
    fn what_touches_more_says_so() {
        assert!(operands(|a| a.mov(ds, eax)).1 && !operands(|a| a.mov(eax, ds)).1);
        assert!(operands(CodeAssembler::iretq).1 && operands(|a| a.enter(8, 0)).1);
        assert!(!operands(|a| a.xsave(ptr(rdi))).1 && !operands(|a| a.push(fs)).1);
    }

    #[test]
    fn what_was_decoded_is_not_taken_for_other_bytes() {
        let mut decodings = Decodings::new();
        for (bytes, len) in [(&[0x88, 0x07][..], 1), (&[0x89, 0x07][..], 4), (&[0x88, 0x07, 0x90][..], 1)] {
            let decoded = decodings.decode(0x5000, bytes, 64).unwrap();
            assert_eq!(decoded.operands[0].len, len);
        }
        assert!(decodings.decode(0x5000, &[0x89], 64).is_none());
        assert!(decodings.decode(0x5000, &[0x06], 64).is_none(), "no such instruction in 64-bit mode");
    }
}
