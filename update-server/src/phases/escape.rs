//! Whether anybody can have an address of a patch's module once nobody runs its code: then it must stay where it is.
//!
//! The proof is the module itself. An address of its code or data can only come to somewhere else by an instruction that
//! makes it, or by data that holds it from the start; both are relocations, or distances that the assembler has worked out.
//! So each of them is looked at. What is called or jumped to directly gives nothing away, nor does data that is read and
//! written in place. What the kernel's loader takes apart by itself it forgets when it unloads the module (`known`). Any other
//! use hands the address out, unless only functions get it that are known to have forgotten it when they return (`follow`).
//!
//! Not only code: `NL_SET_ERR_MSG` leaves a pointer to a constant of the module with its caller's caller.
//!
//! Return addresses that the kernel writes down for people, as of whoever has called vmalloc, are read as numbers only.

mod follow;
mod known;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code as Opcode, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use object::elf::{R_X86_64_NONE, SHF_ALLOC, SHN_ABS};

use super::patch_module::{PatchModule, Relocation, Section, Symbol};
use crate::limits::FOLLOWED_ADDRESSES;

/// Why a patch's module is never unloaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stays {
    /// The kernel unloads no module that has an init function and no exit function (`kernel/module/main.c`,
    /// `delete_module`).
    #[error("the module has no exit function, and the kernel never unloads such a module")]
    NoExit,
    /// Its code gives an address away.
    #[error("the module hands out the address of {what} at {at}")]
    HandedOut {
        /// Of what.
        what: String,
        /// Where.
        at: String,
    },
    /// Its data has an address that others may find.
    #[error("the module keeps the address of {what} in {section}, where others may find it")]
    Kept {
        /// Of what.
        what: String,
        /// The section that has it.
        section: String,
    },
    /// Its code is not understood, or makes too many ways.
    #[error("what the module does at {at} is not understood, so that it may hand out an address of itself")]
    Unclear {
        /// Where.
        at: String,
    },
}

/// A place in a section of the module: its index and the offset in bytes.
type Position = (usize, u64);

/// A module whose code is looked at.
struct Text<'a> {
    module: &'a PatchModule,
    /// The relocations of each section, by their places.
    relocations: Vec<BTreeMap<u64, &'a Relocation>>,
    /// Where else the kernel may go on than the instruction says: static keys and what is done after faults.
    ways: BTreeMap<Position, Vec<Position>>,
    /// Where the kernel may put other instructions.
    rewritten: BTreeSet<Position>,
    /// Where symbols are in each section: code begins there.
    named: Vec<BTreeSet<u64>>,
    /// How many instructions may still be followed.
    left: Cell<usize>,
}

impl PatchModule {
    /// Why the module must stay in the guest for ever; `None` if it need not: then whoever can get at an address of it is in its
    /// code, or has a reference that the kernel counts.
    pub fn stays(&self) -> Option<Stays> {
        let has = |name: &str| self.symbols.iter().any(|symbol| symbol.name == name && symbol.section != 0);
        if has("init_module") && !has("cleanup_module") {
            return Some(Stays::NoExit);
        }
        let text = Text::new(self);
        let loaded = self.sections.iter().enumerate().filter(|(_, section)| section.has(SHF_ALLOC.0));
        for (index, section) in loaded {
            let found = text
                .check_places(index)
                .and_then(|()| if section.is_code() { text.code(index) } else { text.data(index) });
            if let Err(stays) = found {
                return Some(stays);
            }
        }
        None
    }
}

impl<'a> Text<'a> {
    fn new(module: &'a PatchModule) -> Self {
        let by_place = |section: &'a Section| {
            let all = section.relocations.iter().filter(|relocation| relocation.kind != R_X86_64_NONE);
            all.map(|relocation| (relocation.offset, relocation)).collect()
        };
        let relocations = module.sections.iter().map(by_place).collect();
        let mut named = vec![BTreeSet::from([0]); module.sections.len()];
        for symbol in &module.symbols {
            if let Some(named) = named.get_mut(symbol.section) {
                named.insert(symbol.value);
            }
        }
        let mut text = Self {
            module,
            relocations,
            ways: BTreeMap::new(),
            rewritten: BTreeSet::new(),
            named,
            left: Cell::new(FOLLOWED_ADDRESSES),
        };
        let (mut ways, mut rewritten) = (BTreeMap::<_, Vec<_>>::new(), BTreeSet::new());
        for (section, relocations) in module.sections.iter().zip(&text.relocations) {
            let to = |offset: u64| relocations.get(&offset).and_then(|relocation| text.own(relocation));
            if let Some((_, bytes)) = known::WAYS.iter().find(|(name, _)| *name == section.name) {
                for from in (0..section.bytes.len() as u64).step_by(*bytes) {
                    if let (Some(from), Some(to)) = (to(from), to(from + 4)) {
                        ways.entry(from).or_default().push(to);
                    }
                }
            }
            if section.name == known::REWRITTEN {
                rewritten.extend(relocations.keys().filter_map(|offset| to(*offset)));
            }
        }
        (text.ways, text.rewritten) = (ways, rewritten);
        text
    }

    /// Where in the module a relocation leads, as it counts from its own place or from nowhere; `None` if it leads to
    /// something else.
    fn own(&self, relocation: &Relocation) -> Option<Position> {
        let symbol = self.symbol(relocation);
        if symbol.section == 0 || symbol.section == usize::from(SHN_ABS.0) {
            return None;
        }
        let section = self.module.sections.get(symbol.section)?;
        section
            .has(SHF_ALLOC.0)
            .then(|| (symbol.section, symbol.value.wrapping_add_signed(relocation.addend)))
    }

    fn symbol(&self, relocation: &Relocation) -> &'a Symbol {
        &self.module.symbols[relocation.symbol]
    }

    fn section(&self, index: usize) -> &'a Section {
        &self.module.sections[index]
    }

    fn bytes(&self, index: usize) -> &'a [u8] {
        &self.module.file[self.section(index).bytes.clone()]
    }

    /// No two relocations may be of one place.
    fn check_places(&self, index: usize) -> Result<(), Stays> {
        let section = self.section(index);
        let all = section.relocations.iter().filter(|relocation| relocation.kind != R_X86_64_NONE).count();
        if all == self.relocations[index].len() {
            return Ok(());
        }
        Err(Stays::Unclear { at: section.name.clone() })
    }

    /// Looks at what data has from the start.
    fn data(&self, index: usize) -> Result<(), Stays> {
        let section = self.section(index);
        if known::TABLES.contains(&&*section.name) {
            return Ok(());
        }
        let mut own = self.relocations[index].values().filter_map(|relocation| self.own(relocation));
        let Some(to) = own.next() else { return Ok(()) };
        if known::is_dropped(&section.name) && !self.is_referred_to(index) {
            return Ok(());
        }
        Err(Stays::Kept { what: self.name(to), section: section.name.clone() })
    }

    fn is_referred_to(&self, index: usize) -> bool {
        let mut all = self.relocations.iter().flat_map(BTreeMap::values);
        all.any(|relocation| self.symbol(relocation).section == index)
    }

    /// Looks at every instruction of a section.
    fn code(&self, index: usize) -> Result<(), Stays> {
        let code = self.bytes(index);
        let starts = self.named[index].range(..code.len() as u64);
        let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
        let mut read = 0;
        let ends = starts.clone().skip(1).copied().chain([code.len() as u64]);
        for (&start, end) in starts.zip(ends) {
            let mut at = start;
            while at < end {
                let unclear = || Stays::Unclear { at: self.name((index, at)) };
                let (instruction, offsets) = decode(&mut decoder, at).ok_or_else(unclear)?;
                read += self.instruction(index, &instruction, offsets)?;
                at = instruction.next_ip();
            }
        }
        // Each must have been a part of an instruction.
        if read == self.relocations[index].len() {
            return Ok(());
        }
        Err(Stays::Unclear { at: self.section(index).name.clone() })
    }

    /// Looks at one instruction; returns how many relocations it has.
    fn instruction(
        &self,
        index: usize,
        instruction: &Instruction,
        offsets: iced_x86::ConstantOffsets,
    ) -> Result<usize, Stays> {
        let (start, end) = (instruction.ip(), instruction.next_ip());
        let here = || self.name((index, start));
        let handed_out = |to| Stays::HandedOut { what: self.name(to), at: here() };
        let displacement = start + offsets.displacement_offset() as u64;
        let mut read = 0;
        let mut fixed = false;
        for (&at, relocation) in self.relocations[index].range(start..end) {
            read += 1;
            let in_memory = offsets.has_displacement() && at == displacement;
            let at_once = offsets.has_immediate() && at == start + offsets.immediate_offset() as u64;
            if !in_memory && !at_once {
                return Err(Stays::Unclear { at: here() });
            }
            fixed |= in_memory;
            let Some((section, value)) = self.own(relocation) else { continue };
            // Distances count from the instruction's end.
            let counted = in_memory && instruction.is_ip_rel_memory_operand() || is_branch(instruction);
            let to = (section, if counted { value.wrapping_add(end - at) } else { value });
            if is_branch(instruction) || self.is_jump_behind(index, instruction, to) {
                continue;
            }
            let takes = match (instruction.mnemonic(), instruction.op0_kind()) {
                (Mnemonic::Cmp | Mnemonic::Test, _) if at_once => continue,
                (Mnemonic::Lea, _) => true,
                (Mnemonic::Mov, OpKind::Register) => at_once,
                _ => false,
            };
            if takes {
                self.follow_taken((index, end), instruction.op0_register(), to)?;
            } else if !in_memory || self.section(section).is_code() {
                return Err(handed_out(to));
            }
        }
        // What has no relocation is as far from the instruction as it was for the assembler: in the same section.
        if instruction.is_ip_rel_memory_operand() && !fixed {
            let to = (index, instruction.ip_rel_memory_address());
            if instruction.mnemonic() != Mnemonic::Lea {
                return Err(handed_out(to));
            }
            self.follow_taken((index, end), instruction.op0_register(), to)?;
        }
        Ok(read)
    }

    fn follow_taken(&self, from: Position, register: Register, to: Position) -> Result<(), Stays> {
        // What is put elsewhere goes on there.
        if self.section(from.0).name.starts_with(known::PUT_ELSEWHERE) {
            return Err(Stays::HandedOut { what: self.name(to), at: self.name(from) });
        }
        self.follow(from, register).map_err(|at| Stays::HandedOut { what: self.name(to), at: self.name(at) })
    }

    /// Whether an address is pushed only for the IRET behind it, which goes to the next instruction (`iret_to_self` in
    /// `arch/x86/include/asm/sync_core.h`).
    fn is_jump_behind(&self, index: usize, instruction: &Instruction, to: Position) -> bool {
        let mut decoder = Decoder::with_ip(64, self.bytes(index), 0, DecoderOptions::NONE);
        let is_return =
            |(next, _): (Instruction, _)| next.mnemonic() == Mnemonic::Iretq && to == (index, next.next_ip());
        matches!(instruction.mnemonic(), Mnemonic::Push)
            && decode(&mut decoder, instruction.next_ip()).is_some_and(is_return)
    }

    /// A place as people call it.
    fn name(&self, (index, offset): Position) -> String {
        let symbols = self.module.symbols.iter().filter(|symbol| symbol.section == index);
        let before = symbols.filter(|symbol| !symbol.name.is_empty() && symbol.value <= offset);
        match before.max_by_key(|symbol| (symbol.value, symbol.size)) {
            Some(symbol) if symbol.value == offset => symbol.name.clone(),
            Some(symbol) => format!("{}+{:#x}", symbol.name, offset - symbol.value),
            None => format!("{}+{offset:#x}", self.section(index).name),
        }
    }
}

/// A call or jump whose operand is where it leads.
fn is_branch(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::NearBranch64
}

/// The instruction at `at`, with where its numbers are.
fn decode(decoder: &mut Decoder<'_>, at: u64) -> Option<(Instruction, iced_x86::ConstantOffsets)> {
    decoder.set_position(usize::try_from(at).ok()?).ok()?;
    decoder.set_ip(at);
    let instruction = decoder.decode();
    (instruction.code() != Opcode::INVALID).then(|| (instruction, decoder.get_constant_offsets(&instruction)))
}
