//! What a vCPU carries out itself, alone: what is closed meanwhile, and what is done about how it ended.

use iced_x86::Mnemonic;
use kvm_bindings::{Msrs, kvm_msr_entry};
use update_server::addr::{Gpa, Gva};
use update_server::watch::{By, Lost, page_of};

use super::decode::Gateway;
use super::finish::{self, Before};
use super::frame;
use super::ground::{Ground, Plan};
use super::handlers::table_pages;
use super::look::Look;
use super::order::Order;
use super::space::Space;
use super::traps::{After, Traps, stuck};
use super::trip::{Ended, Trip};
use crate::sys::vcpu::{Attached, VcpuState};
use crate::vcpu::{ExitCounters, GuestStop};

/// Where SYSCALL of 64-bit code, of other code, and SYSENTER enter the kernel (Intel SDM vol. 4, 2.17, 2.1).
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SYSENTER_EIP: u32 = 0x176;

impl Traps {
    /// Has a vCPU do itself what it was trapped at.
    pub(super) fn step(
        &self,
        order: &mut Order,
        id: u8,
        vcpu: &mut Attached<'_>,
        state: &VcpuState,
        space: Option<&Space<'_>>,
        exits: &ExitCounters,
    ) -> Result<After, GuestStop> {
        let held = order.ground.as_ref().map_or(Ok(None), Ground::hold).map_err(|error| stuck(&error))?;
        if held.is_some() {
            // Others may have changed what was seen.
            let others = order.look.others;
            order.look(space, frame::injected(&state.events));
            order.look.others |= others;
        }
        let by = By::Vcpu { id: id.into(), rip: Gva(state.regs.rip) };
        if is_rsm(&order.look) {
            // Outside of system management mode there is no such instruction; in the second view KVM would take it for one.
            finish::undefined(vcpu, &state.regs).map_err(|error| stuck(&error))?;
            return Ok(After::GoOn);
        }
        let Order { pages, ground, handlers, look, .. } = order;
        let Ok(ground) = ground else { return Ok(After::GoOn) };
        let injected = frame::injected(&state.events);
        let delivers = injected.is_some() || raises(look, space);
        let gateway = look.decoded.as_ref().and_then(|decoded| decoded.gateway).filter(|_| !delivers);
        let mut close = match space {
            Some(space) if delivers => handlers.of(space, &pages.ram),
            Some(space) => table_pages(space, &pages.ram),
            None => Vec::new(),
        };
        // What comes behind these has to be closed: a handler, or the other side of a gateway. A single step does not end there.
        let mut stops = if delivers { close.clone() } else { Vec::new() };
        if let Some((gateway, space)) = gateway.zip(space)
            && let Ok(at) = space.tables.translate(&pages.ram, leads_to(gateway, vcpu, space))
        {
            stops.push(page_of(at));
            close.push(page_of(at));
        }
        let unknown = delivers && space.is_none();
        // In a step the table of interrupts has to be closed, so that it ends where a fault would be delivered.
        let stops = if stops.is_empty() { &close } else { &stops };
        if unknown || stops.iter().any(|page| look.pages.contains(page)) {
            let why = "what comes behind it cannot be closed, for it is needed to get there";
            self.cannot_step(order, &Lost::Escaped { vcpu: id.into(), why: why.into() }, unknown);
            return Ok(After::GoOn);
        }
        let before = Before::note(space, look, &pages.ram, state);
        let trip = Trip {
            vcpu: usize::from(id),
            state,
            delivers,
            steps: !delivers && gateway.is_none(),
            plan: Plan { close: &close, need: &look.pages, others: look.others },
            blocks_interrupts: self.blocks_interrupts,
            exits,
        };
        let ended = trip.make(vcpu, ground, pages, &self.alarm).map_err(|error| stuck(&error))?;
        order.in_vain[usize::from(id)] = (0, 0);
        self.ended(order, ended, &before, space, vcpu, state, by)
    }

    #[expect(clippy::too_many_arguments, reason = "all that is known of one step")]
    fn ended(
        &self,
        order: &mut Order,
        ended: Ended,
        before: &Before,
        space: Option<&Space<'_>>,
        vcpu: &mut Attached<'_>,
        state: &VcpuState,
        by: By,
    ) -> Result<After, GuestStop> {
        let Order { pages, look, .. } = order;
        match ended {
            Ended::Done { regs, dr6 } => {
                pages.tally.stepped += 1;
                finish::instruction(before, space, look, pages, vcpu, (*regs, dr6), by)
                    .map_err(|error| stuck(&error))?;
            }
            Ended::Delivered(regs) => {
                pages.tally.delivered += 1;
                finish::delivery(look, pages, &regs, by);
            }
            Ended::Before => {
                pages.tally.unfinished += 1;
                finish::partly(look, pages, by);
                finish::put_back_trap_flag(before, vcpu).map_err(|error| stuck(&error))?;
            }
            Ended::Outside => {
                pages.tally.unfinished += 1;
                finish::outside(look, pages, by);
                return Ok(After::Serve { guest_steps: before.guest_steps });
            }
            Ended::Resumed => {
                pages.tally.unfinished += 1;
                let restored = vcpu.restore(state).and_then(|()| finish::undefined(vcpu, &state.regs));
                restored.map_err(|error| stuck(&error))?;
            }
            Ended::Escaped { why, serve } => {
                pages.compare_all(By::Unseen);
                let vcpu = if let By::Vcpu { id, .. } = by { id } else { 0 };
                self.lose_all(order, &Lost::Escaped { vcpu, why });
                if serve {
                    return Ok(After::Serve { guest_steps: false });
                }
            }
        }
        Ok(After::GoOn)
    }

    /// Gives up the pages that a step would be for, or all of them: also where it is not known which they are.
    fn cannot_step(&self, order: &mut Order, why: &Lost, all: bool) {
        order.pages.compare_all(By::Unseen);
        if all || order.look.parts.is_empty() {
            return self.lose_all(order, why);
        }
        let pages: Vec<Gpa> = order.look.parts.iter().map(|part| page_of(part.at)).collect();
        for page in pages {
            self.lose(order, page, why);
        }
    }
}

/// Whether the instruction enters a handler by itself.
fn raises(look: &Look, space: Option<&Space<'_>>) -> bool {
    let decoded = look.decoded.as_ref().zip(space);
    decoded.is_some_and(|(decoded, space)| decoded.raises(space).is_some())
}

fn is_rsm(look: &Look) -> bool {
    look.decoded.as_ref().is_some_and(|decoded| decoded.instruction.mnemonic() == Mnemonic::Rsm)
}

/// Where a vCPU goes on behind a gateway.
fn leads_to(gateway: Gateway, vcpu: &Attached<'_>, space: &Space<'_>) -> Gva {
    Gva(match gateway {
        Gateway::Syscall => register(vcpu, if space.bits == 64 { LSTAR } else { CSTAR }),
        Gateway::Sysenter => register(vcpu, SYSENTER_EIP),
        Gateway::Sysret => space.regs.rcx,
        Gateway::Sysexit => space.regs.rdx,
    })
}

/// A model-specific register; all of these are always there.
fn register(vcpu: &Attached<'_>, index: u32) -> u64 {
    let Ok(mut msrs) = Msrs::from_entries(&[kvm_msr_entry { index, ..kvm_msr_entry::default() }]) else {
        return 0;
    };
    let _ = vcpu.fd().get_msrs(&mut msrs);
    msrs.as_slice().first().map_or(0, |entry| entry.data)
}
