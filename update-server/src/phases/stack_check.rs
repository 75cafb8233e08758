//! What a census says of some functions: who is under a jump, and who is inside.
//!
//! The two are never mixed. Under a jump nobody may be when it is written, whatever the policy; who is inside may finish there, or
//! is waited for.

use std::ops::Range;

use super::place::{OldFunction, Position};
use crate::addr::Gva;
use crate::census::{Census, Code, CodeKind, Outcome, Task};
use crate::guest::Memory;
use crate::kernel::running::Running;

/// Code that is watched.
#[derive(Debug, Clone)]
pub enum Watched<'a> {
    /// A function of the kernel or of a module that is replaced.
    Function(&'a OldFunction),
    /// Code that took the place of others, where it is now; its name is for people.
    Code(&'a str, Range<Gva>),
}

/// A frame in such code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Whose it is.
    pub task: Task,
    /// The function.
    pub function: String,
    /// Where the frame goes on, and where on the stack that is; `None` if it is in a vCPU's registers.
    pub address: Gva,
    /// See `address`.
    pub slot: Option<Gva>,
    /// [`Position::Under`] or [`Position::Inside`].
    pub position: Position,
}

/// What a census says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Presence {
    /// Frames in the code that was asked for.
    pub holders: Vec<Holder>,
    /// What could not be proven of other stacks: somebody may be there all the same.
    pub doubts: Vec<String>,
}

impl Presence {
    /// Asks `census` for `watched`.
    pub fn of<M: Memory>(kernel: &Running<'_, M>, census: &Census, watched: &[Watched<'_>]) -> Self {
        let code = Code::new(kernel, &census.loaded);
        let mut presence = Self::default();
        presence.doubts.extend(census.doubts.iter().map(ToString::to_string));
        for stack in &census.stacks {
            if let Outcome::Unprovable(doubt) = &stack.outcome {
                let task = &stack.task;
                presence.doubts.push(format!("{} ({}): {doubt}", task.comm, task.pid));
            }
            for frame in &stack.frames {
                let at = original(&code, frame.address);
                let found = watched.iter().find_map(|watched| {
                    let (function, position) = match watched {
                        Watched::Function(old) => {
                            (&*old.name, old.position(old.home.here(kernel, at), frame.behind_call))
                        }
                        Watched::Code(name, text) => {
                            let inside = text.contains(&Gva(at.0.wrapping_sub(frame.behind_call.into())));
                            (&**name, if inside { Position::Inside } else { Position::Outside })
                        }
                    };
                    matches!(position, Position::Under | Position::Inside).then_some((function, position))
                });
                if let Some((function, position)) = found {
                    presence.holders.push(Holder {
                        task: stack.task.clone(),
                        function: function.to_owned(),
                        address: frame.address,
                        slot: frame.slot,
                        position,
                    });
                }
            }
        }
        presence
    }

    /// The first that is under a jump.
    pub fn under(&self) -> Option<&Holder> {
        self.holders.iter().find(|holder| holder.position == Position::Under)
    }
}

/// Where an instruction is that a probe has copied: there it will go on.
fn original<M: Memory>(code: &Code<'_, '_, M>, at: Gva) -> Gva {
    match code.kind(at) {
        CodeKind::Slot(probe) => probe.at,
        CodeKind::Detour(probe, detour) => {
            let copied = at.offset_from(detour.copied_at).unwrap_or(0).min(detour.copied);
            probe.at.wrapping_add(copied)
        }
        _ => at,
    }
}
