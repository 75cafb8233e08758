//! Where an address goes that an instruction has put into a register.

use std::collections::BTreeSet;

use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};

use super::{Position, Text, decode, is_branch, known};

/// Registers that a function is given arguments in (x86-64 psABI, 3.2.3).
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];
/// Registers that are the same after a call.
const KEPT: [Register; 6] =
    [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];
/// Registers that a function returns values in.
const RETURNED: [Register; 2] = [Register::RAX, Register::RDX];

/// Where a call or jump leads.
enum Callee<'a> {
    /// To the module's own code.
    Own(Position),
    /// To the kernel's function of this name.
    Other(&'a str),
    /// Wherever a register or memory says.
    Unknown,
}

/// What an instruction makes of an address in a register.
#[derive(Default)]
struct Effect {
    /// It comes to where it is not followed.
    lost: bool,
    /// It is in the register no longer.
    gone: bool,
    /// It is in this register, too, or what is counted from it is.
    copied: Option<Register>,
}

impl<'a> Text<'a> {
    /// Follows the address that is in `register` from `from` on, on every way. Nobody else may get it but functions that are
    /// known to forget it; else the error says where that is.
    pub(super) fn follow(&self, from: Position, register: Register) -> Result<(), Position> {
        let mut left = vec![(from, register.full_register())];
        let mut seen = BTreeSet::new();
        let mut info = InstructionInfoFactory::new();
        while let Some((at, register)) = left.pop() {
            if !seen.insert((at, register as u32)) {
                continue;
            }
            self.left.set(self.left.get().checked_sub(1).ok_or(at)?);
            if self.rewritten.contains(&at) {
                return Err(at);
            }
            let mut decoder = Decoder::with_ip(64, self.bytes(at.0), 0, DecoderOptions::NONE);
            let (instruction, _) = decode(&mut decoder, at.1).ok_or(at)?;
            let next = (at.0, instruction.next_ip());
            if let Some(others) = self.ways.get(&at) {
                left.extend(others.iter().map(|other| (*other, register)));
                left.push((next, register));
            }
            let (argument, kept) = (ARGUMENTS.contains(&register), KEPT.contains(&register));
            let callee = self.callee(at.0, &instruction);
            match instruction.flow_control() {
                FlowControl::Next => {
                    let effect = effect(&instruction, register, &mut info);
                    if effect.lost {
                        return Err(at);
                    }
                    left.extend(effect.copied.map(|register| (next, register)));
                    if !effect.gone {
                        left.push((next, register));
                    }
                }
                // A warning is one, and comes back (`handle_bug`, `arch/x86/kernel/traps.c`).
                FlowControl::Exception => left.push((next, register)),
                FlowControl::ConditionalBranch => {
                    let Callee::Own(to) = callee else { return Err(at) };
                    left.extend([(to, register), (next, register)]);
                }
                FlowControl::Call | FlowControl::IndirectCall if kept => {
                    if is_operand(&instruction, register) {
                        return Err(at);
                    }
                    left.push((next, register));
                }
                FlowControl::Call => match callee {
                    Callee::Other(name) if known::RETURNING.contains(&name) => {
                        left.push((next, Register::RAX));
                    }
                    // Those that are no arguments, it does not look at; after it there is something else in any.
                    Callee::Other(name) if is_forgetting(name) => {}
                    _ => return Err(at),
                },
                FlowControl::UnconditionalBranch => match callee {
                    Callee::Own(to) => left.push((to, register)),
                    Callee::Other(known::RETURN) => returned(register).map_err(|()| at)?,
                    Callee::Other(name) if is_forgetting(name) && argument => {}
                    _ => return Err(at),
                },
                FlowControl::Return => returned(register).map_err(|()| at)?,
                _ => return Err(at),
            }
        }
        Ok(())
    }

    fn callee(&self, section: usize, instruction: &Instruction) -> Callee<'a> {
        if !is_branch(instruction) {
            return Callee::Unknown;
        }
        let mut relocations = self.relocations[section].range(instruction.ip()..instruction.next_ip());
        let Some((at, relocation)) = relocations.next() else {
            return Callee::Own((section, instruction.near_branch_target()));
        };
        match self.own(relocation) {
            Some((section, value)) => Callee::Own((section, value.wrapping_add(instruction.next_ip() - at))),
            None => Callee::Other(&self.symbol(relocation).name),
        }
    }
}

fn is_forgetting(name: &str) -> bool {
    known::FORGETTING.contains(&name)
}

/// Whoever is returned to finds what values are returned in, and those that must be as they were.
fn returned(register: Register) -> Result<(), ()> {
    if RETURNED.contains(&register) || KEPT.contains(&register) { Err(()) } else { Ok(()) }
}

/// Whether an operand is the register, and not memory that it leads to.
fn is_operand(instruction: &Instruction, register: Register) -> bool {
    (0..instruction.op_count()).any(|operand| {
        instruction.op_kind(operand) == OpKind::Register
            && instruction.op_register(operand).full_register() == register
    })
}

fn effect(instruction: &Instruction, register: Register, info: &mut InstructionInfoFactory) -> Effect {
    let lost = Effect { lost: true, ..Effect::default() };
    let used = info.info(instruction);
    let is_it = |other: Register| other.full_register() == register;
    let reads = |access: OpAccess| {
        !matches!(access, OpAccess::None | OpAccess::NoMemAccess | OpAccess::Write | OpAccess::CondWrite)
    };
    let mut all = used.used_registers().iter().filter(|other| is_it(other.register()));
    // Writing to 32 bits of a register sets the others to 0 (Intel SDM vol. 1, 3.4.1.1).
    let is_whole = |other: Register| other.is_gpr32() || other.is_gpr64();
    let gone = all.clone().any(|other| other.access() == OpAccess::Write && is_whole(other.register()));
    if !all.any(|other| reads(other.access())) {
        return Effect { gone, ..Effect::default() };
    }
    let in_memory = is_it(instruction.memory_base()) || is_it(instruction.memory_index());
    let is_value = (0..instruction.op_count()).any(|operand| {
        instruction.op_kind(operand) == OpKind::Register
            && is_it(instruction.op_register(operand))
            && reads(used.op_access(operand))
    });
    let first = instruction.op0_register();
    let is_kept_in_register = instruction.op0_kind() == OpKind::Register && first.is_gpr64();
    match instruction.mnemonic() {
        Mnemonic::Cmp | Mnemonic::Test if is_value => Effect::default(),
        // What is counted from an address is one.
        Mnemonic::Lea if in_memory && is_kept_in_register => counted(register, first),
        Mnemonic::Mov | Mnemonic::Add | Mnemonic::Sub if is_value && is_kept_in_register => {
            counted(register, first)
        }
        _ if is_conditional_move(instruction) && is_value && is_kept_in_register => counted(register, first),
        Mnemonic::Lea => lost,
        _ if is_value => lost,
        // It leads to memory, and what is there is read or written.
        _ if in_memory => Effect { gone, ..Effect::default() },
        _ if instruction.is_string_instruction() && matches!(register, Register::RSI | Register::RDI) => {
            Effect { gone, ..Effect::default() }
        }
        _ => lost,
    }
}

/// `CMOVcc` (Intel SDM vol. 2A): others with a condition have one operand.
fn is_conditional_move(instruction: &Instruction) -> bool {
    instruction.condition_code() != ConditionCode::None && instruction.op_count() == 2
}

/// What was counted from the address in `register` is in `first`.
fn counted(register: Register, first: Register) -> Effect {
    Effect { copied: Some(first).filter(|first| *first != register), ..Effect::default() }
}
