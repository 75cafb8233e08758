//! What is known of one guest's traps, and changed by one vCPU at a time.

use super::armed::ArmedPages;
use super::decode::Decodings;
use super::frame;
use super::ground::Ground;
use super::handlers::Handlers;
use super::hypervisor::HypervisorPages;
use super::look::Look;
use super::quiet::QuietVcpu;
use super::space::Space;
use crate::vcpu::GuestStop;

/// How often in a row a vCPU may come from one place without anything that can be done for it. Twice is usual: what it touched is no
/// longer watched when it is looked at.
const IN_VAIN: u32 = 64;

/// What all vCPUs share, of which only one at a time does anything.
pub(super) struct Order {
    pub(super) pages: ArmedPages,
    pub(super) ground: Result<Ground, String>,
    pub(super) hypervisor: HypervisorPages,
    /// Where steps keep interrupts away.
    pub(super) quiet: Option<QuietVcpu>,
    /// Whether no vCPU will run any more.
    pub(super) ended: bool,
    pub(super) handlers: Handlers,
    pub(super) decodings: Decodings,
    pub(super) look: Look,
    /// From where each vCPU came in vain, and how often.
    pub(super) in_vain: Vec<(u64, u32)>,
}

impl Order {
    /// Looks at what a vCPU is about to do.
    pub(super) fn look(&mut self, space: Option<&Space<'_>>, injected: Option<frame::Injected>) {
        let Self { look, pages, decodings, .. } = self;
        look.clear();
        match (space, injected) {
            (Some(space), None) => {
                look.at_instruction(space, &pages.ram, decodings);
                if let Some(vector) = look.decoded.as_ref().and_then(|decoded| decoded.raises(space)) {
                    frame::foresee(look, space, &pages.ram, frame::Injected { vector, error_code: false });
                }
            }
            (Some(space), Some(event)) => {
                frame::foresee(look, space, &pages.ram, event);
            }
            (None, _) => look.others = true,
        }
    }

    /// Notes that nothing is known that a vCPU could have been trapped at: true when it may just try again, as what it touched may
    /// not be watched any more; the second time everything is opened for it.
    pub(super) fn comes_in_vain(&mut self, id: u8, rip: u64) -> Result<bool, GuestStop> {
        self.pages.tally.again += 1;
        let (last, count) = &mut self.in_vain[usize::from(id)];
        *count = if *last == rip { *count + 1 } else { 1 };
        *last = rip;
        if *count > IN_VAIN {
            return Err(GuestStop::Stuck(
                "memory that the host does not give it (KVM_RUN: EFAULT)".to_owned(),
            ));
        }
        if *count > 1 {
            self.look.others = true;
            return Ok(false);
        }
        Ok(true)
    }
}
