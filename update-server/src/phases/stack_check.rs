//! What a census says of some functions: who is under a jump, and who is inside.
//!
//! The two are never mixed. Under a jump nobody may be when it is written, whatever the policy; who is inside may finish there, or
//! is waited for.

use std::ops::Range;
use std::sync::Arc;

use super::doubts::Doubts;
use super::place::{OldFunction, Position};
use crate::addr::Gva;
use crate::census::{Census, Code, CodeKind, Frame, Loaded, Outcome, Stack, Task};
use crate::guest::Memory;
use crate::kernel::running::Running;
use crate::limits::HOLDERS;

/// Code that is watched.
#[derive(Debug, Clone)]
pub enum Watched {
    /// A function of the kernel or of a module that is replaced.
    Function(Arc<OldFunction>),
    /// Code that took the place of others, where it is now; its name is for people.
    Code(String, Range<Gva>),
}

impl Watched {
    /// Its name.
    fn name(&self) -> &str {
        match self {
            Self::Function(old) => &old.name,
            Self::Code(name, _) => name,
        }
    }

    /// Where in it an instruction at `at` is; `None` if it is somewhere else.
    fn position<M: Memory>(&self, kernel: &Running<'_, M>, at: Gva, behind_call: bool) -> Option<Position> {
        let position = match self {
            Self::Function(old) => old.position(old.home.here(kernel, at), behind_call),
            Self::Code(_, text) => {
                let inside = text.contains(&Gva(at.0.wrapping_sub(behind_call.into())));
                if inside { Position::Inside } else { Position::Outside }
            }
        };
        matches!(position, Position::Under | Position::Inside).then_some(position)
    }

    /// Whether it is code with the stub in it that `frame` is come back to by.
    fn has_stub_of(&self, frame: &Frame) -> bool {
        match self {
            Self::Code(_, text) => frame.stub.is_some_and(|stub| text.contains(&stub)),
            Self::Function(_) => false,
        }
    }
}

/// A frame in such code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Whose it is. All frames of a task share it.
    pub task: Arc<Task>,
    /// The function.
    pub function: Arc<str>,
    /// Where the frame goes on, and where on the stack that is; `None` if it is in a vCPU's registers.
    pub address: Gva,
    /// See `address`.
    pub slot: Option<Gva>,
    /// [`Position::Under`] or [`Position::Inside`].
    pub position: Position,
    /// How the frame is left; `None` if that is on none of the task's own stack.
    pub leave: Option<Leave>,
}

impl Holder {
    /// The stub by which the host is told that it has left.
    pub fn stub(&self) -> Option<Gva> {
        self.leave?.stub
    }
}

/// How a frame is left: by a return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leave {
    /// Where on its task's stack the return address is.
    pub slot: Gva,
    /// Where that leads to.
    pub to: Gva,
    /// The stub of a patch that is gone through on the way.
    pub stub: Option<Gva>,
    /// Whether another one may be put there: the frame is that of a call, and nothing on the stack is in doubt.
    pub certain: bool,
}

/// What a census says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Presence {
    /// Frames in the code that was asked for. If there are more than [`HOLDERS`], that is the first doubt.
    pub holders: Vec<Holder>,
    /// What could not be proven of other stacks: somebody may be there all the same.
    pub doubts: Doubts,
}

impl Presence {
    /// Asks `census` for `watched`.
    pub fn of<M: Memory>(kernel: &Running<'_, M>, census: &Census, watched: &[Watched]) -> Self {
        Self::on(census.stacks(), kernel, census, watched).limited()
    }

    /// What `stacks` of a census have of it, and what the census as a whole leaves in doubt. Of too many holders there is one more
    /// than there may be, for [`Self::limited`].
    fn on<'c, M: Memory>(
        stacks: impl IntoIterator<Item = &'c Arc<Stack>>,
        kernel: &Running<'_, M>,
        census: &Census,
        watched: &[Watched],
    ) -> Self {
        // Only code that probes have made stands for other code.
        let code = (!census.loaded.probes.is_empty()).then(|| Code::new(kernel, &census.loaded));
        let watched: Vec<(&Watched, Arc<str>)> = watched.iter().map(|one| (one, one.name().into())).collect();
        let mut presence = Self { holders: Vec::new(), doubts: census.doubts.iter().collect() };
        for stack in stacks {
            let mut task = None;
            if let Outcome::Unprovable(doubt) = &stack.outcome {
                let Task { comm, pid, .. } = &stack.task;
                presence.doubts.push(format_args!("{comm} ({pid}): {doubt}"));
            }
            for (index, frame) in stack.frames.iter().enumerate() {
                let at = code.as_ref().map_or(frame.address, |code| original(code, frame.address));
                let here = watched
                    .iter()
                    .find_map(|(code, name)| Some((name, code.position(kernel, at, frame.behind_call)?)));
                let ((function, position), way) = match here {
                    Some(found) => (found, stack.frames.get(index + 1)),
                    // It is elsewhere, and what it has called comes back to it through watched code.
                    None if !presence.has_way(stack, frame) => {
                        match watched.iter().find(|(code, _)| code.has_stub_of(frame)) {
                            Some((_, name)) => ((name, Position::Inside), Some(frame)),
                            None => continue,
                        }
                    }
                    None => continue,
                };
                if presence.holders.len() > HOLDERS {
                    continue;
                }
                presence.holders.push(Holder {
                    task: Arc::clone(task.get_or_insert_with(|| Arc::new(stack.task.clone()))),
                    function: Arc::clone(function),
                    address: frame.address,
                    slot: frame.slot,
                    position,
                    leave: way.and_then(|way| leave(kernel, stack, frame, way)),
                });
            }
        }
        presence
    }

    /// With no more holders than are followed. Those who are not are in doubt, so that nothing is believed to be left or empty.
    fn limited(mut self) -> Self {
        if self.holders.len() > HOLDERS {
            self.holders.truncate(HOLDERS);
            self.doubts.push_first(format!("more than {HOLDERS} frames are in that code"));
        }
        self
    }

    /// Whether the stub before `frame` is known as the way of the frame that was found last.
    fn has_way(&self, stack: &Stack, frame: &Frame) -> bool {
        let last = self.holders.last().filter(|last| last.task.address == stack.task.address);
        last.is_some_and(|last| last.stub().is_some() && last.stub() == frame.stub)
    }

    /// The first that is under a jump.
    pub fn under(&self) -> Option<&Holder> {
        self.holders.iter().find(|holder| holder.position == Position::Under)
    }
}

/// How `frame` is left, which is by the return to `way`: the frame behind it, or itself if a stub is still before it.
fn leave<M: Memory>(kernel: &Running<'_, M>, stack: &Stack, frame: &Frame, way: &Frame) -> Option<Leave> {
    let slot = way.slot.filter(|_| way.behind_call)?;
    // Interrupts and exceptions have other stacks, which are not their tasks'.
    let within = slot.offset_from(stack.task.stack)?;
    let certain = frame.behind_call && frame.slot.is_some() && stack.outcome == Outcome::Complete;
    (within < kernel.model().stack_bytes).then_some(Leave { slot, to: way.address, stub: way.stub, certain })
}

/// Code that is watched from before a pause on: what was known of stacks then is not looked at again.
#[derive(Debug)]
pub(crate) struct Watch {
    watched: Vec<Watched>,
    known: Arc<Vec<Arc<Stack>>>,
    loaded: Arc<Loaded>,
    holders: Vec<Holder>,
}

impl Watch {
    /// Of `watched`, as a guest that may run has it.
    pub(crate) fn begin<M: Memory>(kernel: &Running<'_, M>, census: &Census, watched: Vec<Watched>) -> Self {
        let (known, loaded) = (Arc::clone(census.known()), Arc::clone(&census.loaded));
        let holders = Presence::on(&known[..], kernel, census, &watched).holders;
        Self { watched, known, loaded, holders }
    }

    /// What `census`, of a guest that stands still, says of it.
    pub(crate) fn presence<M: Memory>(&self, kernel: &Running<'_, M>, census: &Census) -> Presence {
        let is_whole = self.holders.len() <= HOLDERS;
        let same = Arc::ptr_eq(&self.known, census.known()) && Arc::ptr_eq(&self.loaded, &census.loaded);
        if !is_whole || !same {
            return Presence::of(kernel, census, &self.watched);
        }
        // A stack of which something was in doubt is among those that were walked again.
        let mut presence = Presence::on(census.fresh(), kernel, census, &self.watched);
        let holds = |holder: &&Holder| !census.is_outdated(holder.task.address);
        presence.holders.extend(self.holders.iter().filter(holds).cloned());
        presence.limited()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::census::Activity;
    use crate::phases::drain::Draining;

    fn presence(holders: usize) -> Presence {
        let task = Task {
            address: Gva(0x1000),
            stack: Gva(0x2000),
            sp: Gva(0x3000),
            pid: 1,
            tgid: 1,
            comm: "forger".to_owned(),
            kernel_thread: false,
            activity: Activity::Sleeping,
            switches: 1,
            start_time: 1,
            idle_of: None,
        };
        let holder = Holder {
            task: Arc::new(task),
            function: "old".into(),
            address: Gva(0x4000),
            slot: None,
            position: Position::Inside,
            leave: None,
        };
        Presence { holders: vec![holder; holders], doubts: Doubts::default() }
    }

    #[test]
    fn as_many_holders_as_may_be_are_no_doubt() {
        assert_eq!(presence(HOLDERS).limited(), presence(HOLDERS));
    }

    #[test]
    fn holders_that_are_too_many_are_in_doubt_and_so_never_over() {
        let mut presence = presence(HOLDERS + 1).limited();
        assert_eq!(presence.holders.len(), HOLDERS);
        assert_eq!(presence.doubts.told(), ["more than 262144 frames are in that code"]);
        // Those that are followed leave; the others may be there still.
        presence.holders.clear();
        assert!(!Draining::of(presence).is_over());
    }
}
