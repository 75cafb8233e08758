//! A guest that another vCPU writes to while it is looked at. `LUCOS_IMAGES` names the folder with the kernels that it runs.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod small_guest;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use images::models;
use small_guest::{Guest, Plan, Scheduler, random};
use update_server::addr::{Gpa, Gva};
use update_server::census::{self, Census, Doubt, Found, Frame, Outcome, Stack, Survey};
use update_server::guest::Paused;
use update_server::kernel::running::Running;

/// What a census says of each task, by its address.
type ByTask = BTreeMap<Gva, (u32, u64, Found, Vec<Frame>, Outcome)>;

fn by_task(census: &Census) -> ByTask {
    let said = |stack: &Arc<Stack>| {
        let Stack { task, found, frames, outcome } = &**stack;
        (task.address, (task.pid, task.start_time, *found, frames.clone(), outcome.clone()))
    };
    census.stacks().map(said).collect()
}

/// The tasks of which two censuses do not say the same.
fn differences(one: &Census, other: &Census) -> BTreeSet<Gva> {
    let (one, other) = (by_task(one), by_task(other));
    one.keys().chain(other.keys()).filter(|task| one.get(task) != other.get(task)).copied().collect()
}

fn stale(census: &Census) -> BTreeSet<Gva> {
    let task = |doubt: &Doubt| match doubt {
        Doubt::Stale { task, .. } => Some(*task),
        _ => None,
    };
    census.doubts.iter().filter_map(task).collect()
}

/// Looks at a guest whose tasks run, and holds what is known once it stands still against a look at everything.
#[test]
fn however_tasks_run_meanwhile_what_is_known_in_the_end_is_true() {
    for (name, model) in models("however_tasks_run_meanwhile_what_is_known_in_the_end_is_true") {
        let plan = Plan::new(&model);
        let (mut proven, mut kept, mut ended, mut in_user) = (0, 0, 0, 0);
        for seed in 1..=120 {
            // A word is written after so many readings. A round takes some 600.
            let pace = [1, 2, 5, 20, 100, 700][seed % 6];
            let scheduler = RefCell::new(Scheduler::new(&plan, seed as u64 * 0x9e37_79b9));
            let mut guest = Guest::new(&plan);
            let mut survey = Survey::default();
            for look in 0..4 {
                let mut readings = 0;
                guest.run({
                    let scheduler = &scheduler;
                    move || {
                        readings += 1;
                        (readings % pace == 0).then(|| scheduler.borrow_mut().step())
                    }
                });
                let there = Running::find(&model, &guest, guest.vcpus()).unwrap().place();
                survey.prepare(&Running::at(&model, &guest, there)).unwrap();
                scheduler.borrow_mut().rest().into_iter().for_each(|write| guest.write(write));
                guest.stop();
                guest.set_vcpus(scheduler.borrow().vcpus());
                let kernel = Running::at(&model, &guest, there);
                survey.settle(&kernel, &guest).unwrap();
                survey.verify(&kernel, &guest).unwrap();
                let (census, fresh) = (survey.census(), census::take(&kernel, &guest).unwrap());
                let case = format!("{name}, seed {seed}, look {look}");
                assert!(census.doubts.is_empty() && fresh.doubts.is_empty(), "{case}: {:?}", census.doubts);
                assert_eq!(differences(&census, &fresh), BTreeSet::new(), "{case}");
                assert!(fresh.stacks().all(|stack| stack.outcome == Outcome::Complete), "{case}");
                proven += usize::from(census.effort.proven);
                kept += census.stacks().count() - census.effort.walked;
                ended += usize::from(census.stacks().count() < plan.tasks.len());
                in_user += guest.vcpus().iter().filter(|vcpu| vcpu.cpl == 3).count();
            }
        }
        println!(
            "{name}: {proven} proven, {kept} stacks kept, {ended} without a task, {in_user} in user space"
        );
        // Each way there is was gone.
        assert!(proven > 50 && proven < 450 && kept > 500 && ended > 50 && in_user > 50);
    }
}

/// What the words that another vCPU writes are.
#[derive(Debug, Clone, Copy)]
enum Lie {
    /// Addresses of what there is: tasks, stacks, lists.
    Pointers,
    /// Each the address that it is at, so that whoever follows it comes back.
    Circles,
    /// Anything.
    Noise,
}

impl Lie {
    fn word(self, plan: &Plan, at: u64, state: &mut u64) -> u64 {
        let random = random(state);
        let choose = |places: &[Gva]| places[usize::try_from(random >> 16).unwrap() % places.len()];
        match self {
            Self::Pointers => {
                choose(&[&plan.tasks[..], &plan.stacks, &plan.areas].concat()).0 + (random & 0x3ff8)
            }
            Self::Circles => small_guest::direct(at).0,
            Self::Noise => random,
        }
    }
}

/// One look takes less than a second, by far; what has no bound of its own takes longer.
const LIMIT: Duration = Duration::from_secs(30);

/// Looks at a guest that rewrites anything under our eyes, against all rules. What is then wrong in what is known is named.
#[test]
fn whatever_is_rewritten_meanwhile_no_difference_is_kept_quiet() {
    for (name, model) in models("whatever_is_rewritten_meanwhile_no_difference_is_kept_quiet") {
        let plan = Plan::new(&model);
        let groups = plan.words(&model);
        let lies = [Lie::Pointers, Lie::Circles, Lie::Noise];
        let mut state = 0x1057;
        for (group, places) in &groups {
            let (mut looks, mut broken, mut wrong) = (0, 0, 0);
            for (lie, pace) in lies.into_iter().flat_map(|lie| [1, 9, 80, 600].map(|pace| (lie, pace))) {
                let guest = Guest::new(&plan);
                let mut survey = Survey::default();
                let begin = Instant::now();
                let there = Running::find(&model, &guest, guest.vcpus()).unwrap().place();
                for look in 0..6 {
                    let (mut readings, mut random_state) = (0_u64, random(&mut state));
                    let plan = &plan;
                    guest.run(move || {
                        readings += 1;
                        readings.is_multiple_of(pace).then(|| {
                            let index = random(&mut random_state) % places.len() as u64;
                            let at = places[usize::try_from(index).unwrap()];
                            (Gpa(at), lie.word(plan, at, &mut random_state))
                        })
                    });
                    let _ = survey.prepare(&Running::at(&model, &guest, there));
                    guest.stop();
                    // Every other time it puts everything right again before it stands still.
                    if look % 2 == 1 {
                        guest.restore();
                    }
                    let kernel = Running::at(&model, &guest, there);
                    looks += 1;
                    if survey.settle(&kernel, &guest).and_then(|()| survey.verify(&kernel, &guest)).is_err() {
                        broken += 1;
                        continue;
                    }
                    let (census, fresh) = (survey.census(), census::take(&kernel, &guest).unwrap());
                    let found = differences(&census, &fresh);
                    assert_eq!(stale(&census), found, "{name}, {group}, {lie:?}, {pace}, look {look}");
                    wrong += found.len() + fresh.doubts.len();
                    let complete = |stack: &Arc<Stack>| stack.outcome == Outcome::Complete;
                    let is_whole = fresh.doubts.is_empty() && fresh.stacks().all(complete);
                    broken += usize::from(!is_whole);
                    assert!(is_whole || look % 2 == 0, "{name}, {group}, {lie:?}: {:?}", fresh.doubts);
                }
                assert!(begin.elapsed() < LIMIT, "{name}, {group}, {lie:?}, {pace}: {:?}", begin.elapsed());
            }
            println!("{name}, {group}: {broken} of {looks} looks met lies, {wrong} wrong or doubtful");
            assert!(broken > 0, "{name}: no lie about {group} was met");
        }
    }
}
