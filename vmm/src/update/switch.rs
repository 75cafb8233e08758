//! One try to apply a patch, or to roll it back: everything slow while the guest runs, the rest in one pause.

use std::collections::BTreeMap;
use std::time::Duration;

use update_server::addr::Gva;
use update_server::census::Census;
use update_server::kernel::generation::Generation;
use update_server::kernel::running::Running;
use update_server::phases::stack_check::{Holder, Presence};
use update_server::server::{self, NotNow, PatchId, PreparedReturn, SwitchError, UpdateServer};

use super::access::{Access, looking, pausing};
use super::tombstones::show;
use super::updates::Updates;
use crate::control::ControlError;
use crate::inspect;

/// For how long a patch may be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Duration);

impl Deadline {
    /// As long as nobody says otherwise.
    pub const USUAL: Self = Self(Duration::from_mins(1));
    /// The longest, in seconds. Each try stops the guest for a moment.
    pub const SECONDS_MAX: u64 = 3600;

    /// So many seconds; `None` if these are none or too many.
    pub fn seconds(seconds: u64) -> Option<Self> {
        (1..=Self::SECONDS_MAX).contains(&seconds).then(|| Self(Duration::from_secs(seconds)))
    }

    pub(super) fn get(self) -> Duration {
        self.0
    }
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction<'a> {
    /// Each call is to run the new code. The name of the module that has it.
    Apply(&'a str),
    /// Each call is to run the old code.
    RollBack,
}

/// What was found for that before the pause.
enum Prepared {
    Apply(server::Prepared),
    RollBack(PreparedReturn),
}

/// How a try has ended.
#[derive(Debug)]
pub(super) enum Tried {
    /// The functions are switched.
    Done {
        /// Who is in code that is on its way out.
        presence: Presence,
        /// All stacks at that moment.
        census: Census,
    },
    /// Another time, perhaps.
    NotNow {
        /// Why.
        why: String,
        /// Who is in the way.
        holders: Vec<Holder>,
        /// All stacks at that moment.
        census: Option<Census>,
    },
    /// Never; why.
    Refused(String),
    /// The kernel is another one.
    Gone,
}

/// Tries once. Says for how long the guest stood still, in microseconds. An error is the machine's, which starts or ends, or could
/// not be stopped in time.
pub(super) fn attempt(
    access: &dyn Access,
    server: &mut UpdateServer,
    id: PatchId,
    expected: &Generation,
    direction: Direction<'_>,
    alleged: &BTreeMap<String, Gva>,
    updates: &Updates,
) -> Result<(Tried, u64), ControlError> {
    let mut known = access.inspector().stacks();
    let prepared = looking(access, |model, memory| {
        inspect::prepare(model, memory, expected, &mut known);
        let kernel = Running::at(model, memory, expected.place);
        let Direction::Apply(module) = direction else {
            let prepared = server.prepare_return(id, &kernel, &known.census());
            return prepared.map(Prepared::RollBack).map_err(|error| error.to_string());
        };
        let sections = match inspect::sections(model, memory, expected.place, &known, module) {
            Ok(sections) => sections,
            // What the agent has said is as good as what the guest's memory says: both are held against the module itself.
            Err(_) if !alleged.is_empty() => alleged.clone(),
            Err(why) => return Err(why),
        };
        let prepared = server.prepare(id, &kernel, &known.census(), sections);
        prepared.map(Prepared::Apply).map_err(|error| error.to_string())
    })?;
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(why) => return Ok((Tried::Refused(why), 0)),
    };
    let (switched, paused_us) = pausing(access, |model, guest| {
        inspect::settle_and(model, guest, &mut known, |kernel, generation, census| {
            if generation != expected {
                return None;
            }
            let switched = match &prepared {
                Prepared::Apply(prepared) => server.apply(prepared, kernel, guest, census),
                Prepared::RollBack(prepared) => server.roll_back(prepared, kernel, guest, census),
            };
            show(server, updates.tombstones());
            // Before the guest goes on, and comes through the first.
            updates.stubs().watch(server.waiting().collect());
            Some(switched)
        })
    })?;
    let census = known.census();
    if let Some(Ok(presence)) = &switched {
        let redirected = presence.holders.iter().filter(|holder| holder.stub().is_some());
        known.forget(redirected.map(|holder| holder.task.address));
    }
    let tried = match switched {
        None => Tried::Gone,
        Some(Ok(presence)) => Tried::Done { presence, census },
        Some(Err(error)) => match *error {
            SwitchError::NotNow(not_now) => Tried::NotNow {
                why: not_now.to_string(),
                holders: match not_now {
                    NotNow::Inside { holders } => holders,
                    NotNow::Under { holder } => vec![*holder],
                    _ => Vec::new(),
                },
                census: Some(census),
            },
            SwitchError::Refused(why) => Tried::Refused(why.to_string()),
        },
    };
    Ok((tried, paused_us))
}
