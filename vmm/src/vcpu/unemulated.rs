//! How often in a row a vCPU leaves the guest at an instruction that KVM does not emulate.

use std::time::{Duration, Instant};

/// How often it is tried again at one place. Each time but the first takes another change of a mapping, or of what is watched, just
/// when KVM has begun; and a device that the instruction reads is read anew.
const TRIES: u32 = 16;
/// Within this time; an emulated host makes some thousand in it.
const TIME: Duration = Duration::from_secs(1);

/// The last ones of one vCPU.
#[derive(Debug, Default)]
pub(super) struct Unemulated(Option<Last>);

#[derive(Debug)]
struct Last {
    rip: u64,
    since: Instant,
    count: u32,
}

impl Unemulated {
    /// One more, at `rip`: whether it may be tried again. When it may not, the next one is a new beginning.
    pub(super) fn may_try_again(&mut self, rip: u64) -> bool {
        let count = match &mut self.0 {
            Some(last) if last.rip == rip && last.since.elapsed() < TIME => {
                last.count += 1;
                last.count
            }
            last => last.insert(Last { rip, since: Instant::now(), count: 1 }).count,
        };
        let may = count <= TRIES;
        if !may {
            self.0 = None;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_that_never_ends_is_given_up() {
        let mut unemulated = Unemulated::default();
        for _ in 0..3 {
            assert!((0..TRIES).all(|_| unemulated.may_try_again(1)));
            assert!(!unemulated.may_try_again(1));
        }
        assert!((0..4 * u64::from(TRIES)).all(|turn| unemulated.may_try_again(turn % 2)));
    }
}
