//! Since when those who are left in code that is on its way out have been seen there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use update_server::addr::Gva;
use update_server::phases::stack_check::Holder;

/// A task in a function. Another one may have its address later, but has begun later, too.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Seen {
    task: Gva,
    began: u64,
    function: Arc<str>,
}

impl Seen {
    fn of(holder: &Holder) -> Self {
        let (task, began) = (holder.task.address, holder.task.start_time);
        Self { task, began, function: Arc::clone(&holder.function) }
    }
}

/// Since when each has been seen, of all who are left, whether they are shown or not.
#[derive(Debug, Default)]
pub(super) struct Sightings(HashMap<Seen, Instant>);

impl Sightings {
    /// Takes note that `holders` are those who are left `now`.
    pub(super) fn renew(&mut self, holders: &[Holder], now: Instant) {
        let known = std::mem::take(&mut self.0);
        let since = |seen: Seen| {
            let since = known.get(&seen).copied().unwrap_or(now);
            (seen, since)
        };
        self.0 = holders.iter().map(Seen::of).map(since).collect();
    }

    /// Since when `holder` has been seen; `None` if it has not.
    pub(super) fn since(&self, holder: &Holder) -> Option<Instant> {
        self.0.get(&Seen::of(holder)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use update_server::census::{Activity, Task};
    use update_server::phases::place::Position;

    fn holder(number: u32, began: u64) -> Holder {
        let task = Task {
            address: Gva(u64::from(number) << 12),
            stack: Gva(0),
            sp: Gva(0),
            pid: number,
            tgid: number,
            comm: "sleepy".to_owned(),
            kernel_thread: false,
            activity: Activity::Sleeping,
            switches: 1,
            start_time: began,
            idle_of: None,
        };
        Holder {
            task: Arc::new(task),
            function: "old".into(),
            address: Gva(0),
            slot: None,
            position: Position::Inside,
            leave: None,
        }
    }

    #[test]
    fn who_is_still_there_was_first_seen_when_he_was() {
        let first = Instant::now();
        let then = first + Duration::from_secs(1);
        let mut sightings = Sightings::default();
        sightings.renew(&[holder(1, 1), holder(2, 1), holder(3, 1)], first);
        // The second has left, and another task is where the third was.
        sightings.renew(&[holder(3, 2), holder(1, 1)], then);
        let since = [holder(1, 1), holder(2, 1), holder(3, 1), holder(3, 2)].map(|one| sightings.since(&one));
        assert_eq!(since, [Some(first), None, None, Some(then)]);
    }

    /// A search through all for each of them would take hours.
    #[test]
    fn as_many_as_there_may_be_are_looked_up_one_by_one() {
        let all: Vec<Holder> = (0..1 << 18).map(|number| holder(number, 1)).collect();
        let first = Instant::now();
        let mut sightings = Sightings::default();
        sightings.renew(&all, first);
        sightings.renew(&all, first + Duration::from_secs(1));
        assert!(all.iter().all(|one| sightings.since(one) == Some(first)));
    }
}
