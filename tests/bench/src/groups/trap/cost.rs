//! The time of each kind of access to a watched page, beside the shortest way through the VMM in the same guest.

use std::time::Duration;

use anyhow::Result;

use crate::figure::{Aim, Figure};
use crate::groups::{Setting, programmed};
use crate::guest::{Guest, insist};
use crate::programs::{KINDS, accesses};
use crate::samples::Samples;

/// Of each kind in one round: enough that the line on the console before it does not matter.
const COUNT: u32 = 2000;
/// Rounds while the page is watched, and half as many before and after that.
const ROUNDS: usize = 7;

pub(super) fn measure(setting: &Setting) -> Result<()> {
    let times = insist(|| rounds(setting, None))?;
    let port_read = times.watched[0].median();
    Figure::median("trap.port_read", &times.watched[0], "us")
        .against("the same, with no page watched", times.free[0].median())
        .print()?;
    let aims = [1.2, 3.0, 4.0, 4.0];
    for ((kind, samples), aim) in KINDS.iter().zip(&times.watched).skip(1).zip(aims) {
        Figure::median(format!("trap.{kind}"), samples, "us")
            .against("trap.port_read", port_read)
            .aiming(Aim::RatioAtMost(aim))
            .print()?;
    }
    let held = insist(|| rounds(setting, Some("hold-all")))?;
    for (kind, samples) in KINDS.iter().zip(&held.watched).skip(1) {
        Figure::median(format!("trap.{kind}_hold_all"), samples, "us")
            .against("trap.port_read of this guest", held.watched[0].median())
            .print()?;
    }
    Ok(())
}

/// Times of one access, for each of [`KINDS`].
struct Times {
    free: Vec<Samples>,
    watched: Vec<Samples>,
}

fn rounds(setting: &Setting, traps: Option<&'static str>) -> Result<Times> {
    let mut machine = programmed::machine(setting, &[accesses(COUNT)?], 1, "/tmp/0")?;
    machine.traps = traps;
    let (mut guest, lucos, pages) = programmed::start(&machine, 1)?;
    // By whether the page is watched.
    let mut times = [vec![Vec::new(); KINDS.len()], vec![Vec::new(); KINDS.len()]];
    for (watch, rounds) in [(false, ROUNDS / 2), (true, ROUNDS), (false, ROUNDS / 2)] {
        if watch {
            lucos.arm(&pages)?;
        } else {
            lucos.disarm()?;
        }
        // The round that was under way is half one, half the other.
        guest.line_with("at end")?;
        for _ in 0..rounds {
            of_each_kind(&mut guest, &mut times[usize::from(watch)])?;
        }
    }
    let [free, watched] = times.map(|times| times.iter().map(|times| Samples::micros(times)).collect());
    Ok(Times { free, watched })
}

/// Adds the times of one round.
fn of_each_kind(guest: &mut Guest, times: &mut [Vec<Duration>]) -> Result<()> {
    let mut begin = guest.line_with(&format!("at {}", KINDS[0]))?.at;
    let ends = KINDS.iter().skip(1).copied().chain(["end"]);
    for (times, next) in times.iter_mut().zip(ends) {
        let end = guest.line_with(&format!("at {next}"))?.at;
        times.push(end.saturating_sub(begin) / COUNT);
        begin = end;
    }
    Ok(())
}
