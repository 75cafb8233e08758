//! A small guest with a stock kernel, of which a few words are lies and change while it is looked at.
//!
//! Other than that of the target `guest` it is taken for a real one, so that each lie is met where everything else is as it
//! should be. It runs the kernel `vmlinux-6.1-cloud` of the folder that `LUCOS_IMAGES` names.
#![no_main]

// Shared with the tests; a crate for it would be one more that the product has to be kept free of.
#[path = "../../tests/small_guest/mod.rs"]
mod small_guest;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use small_guest::{Guest, Plan, Scheduler, Write, direct};
use update_server::addr::{Gpa, Gva};
use update_server::census::{self, Census, Doubt, Outcome, Stack, Survey};
use update_server::guest::Paused;
use update_server::image::Image;
use update_server::kernel::generation::Generation;
use update_server::kernel::locate::Place;
use update_server::kernel::model::Model;
use update_server::kernel::module_sites::sites;
use update_server::kernel::running::Running;

/// All that is the same for every input.
struct Fixed {
    model: Model,
    plan: Plan,
    /// Words that may be rewritten, by what they are.
    words: Vec<Vec<u64>>,
    place: Place,
}

static FIXED: LazyLock<Fixed> = LazyLock::new(|| {
    let folder = std::env::var("LUCOS_IMAGES").expect("LUCOS_IMAGES names the folder with the kernel");
    let file = std::fs::read(format!("{folder}/vmlinux-6.1-cloud")).expect("the kernel can be read");
    let model = Model::new(Image::read(&file).expect("it is a kernel")).expect("it is complete");
    let plan = Plan::new(&model);
    let words = plan.words(&model).into_iter().map(|(_, words)| words).collect();
    let place = {
        let guest = Guest::new(&plan);
        Running::find(&model, &guest, guest.vcpus()).expect("it runs the kernel").place()
    };
    Fixed { model, plan, words, place }
});

/// Bytes of a lie: what it is about and how the word is made, which one it is, and a number for it.
const LIE: usize = 8;

/// What `bytes` say is written, and where.
fn lie(fixed: &Fixed, bytes: &[u8]) -> Write {
    let group = &fixed.words[usize::from(bytes[0] & 7) % fixed.words.len()];
    let at = group[usize::from(u16::from_le_bytes([bytes[1], bytes[2]])) % group.len()];
    let from = usize::try_from(at).expect("it is in RAM");
    let before = u64::from_le_bytes(fixed.plan.ram[from..from + 8].try_into().expect("8 bytes"));
    let number = u64::from(u32::from_le_bytes(bytes[3..7].try_into().expect("4 bytes")));
    let index = usize::from(bytes[7]);
    let word = match bytes[0] >> 3 {
        0..4 => number,
        4..8 => number << 32 | before & 0xffff_ffff,
        8..12 => before.wrapping_add_signed((number as i32).into()),
        12..16 => before ^ 1 << (number % 64),
        16..20 => direct(at).0,
        20..24 => fixed.plan.tasks[index % fixed.plan.tasks.len()].0 + number % 0x4000,
        24..28 => fixed.plan.stacks[index % fixed.plan.stacks.len()].0 + number % 0x4000,
        _ => fixed.plan.returns.inner[index % fixed.plan.returns.inner.len()].address.0,
    };
    (Gpa(at), word)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&[pace, how, seed], bytes)) = bytes.split_first_chunk::<3>() else { return };
    let fixed = &*FIXED;
    let lies: Vec<Write> = bytes.chunks_exact(LIE).take(64).map(|bytes| lie(fixed, bytes)).collect();
    let (pace, tasks_run, puts_right) = (u64::from(pace) + 1, how & 1 == 0, how & 2 != 0);
    let seed = 1 + u64::from(seed) + (u64::from(how) << 8);
    let scheduler = RefCell::new(Scheduler::new(&fixed.plan, seed));
    let (readings, told) = (Cell::new(0), Cell::new(0));
    // What tasks have done holds, even where what was lied about is put right.
    let done = RefCell::new(Vec::new());
    let other_vcpu = || {
        readings.set(readings.get() + 1);
        if readings.get() % pace != 0 {
            return None;
        }
        if tasks_run && (lies.is_empty() || readings.get() / pace % 4 != 0) {
            let write = scheduler.borrow_mut().step();
            done.borrow_mut().push(write);
            return Some(write);
        }
        told.set(told.get() + 1);
        lies.get(told.get() % lies.len().max(1)).copied()
    };
    let mut guest = Guest::new(&fixed.plan);
    let mut survey = Survey::default();
    for _ in 0..2 {
        guest.run(other_vcpu);
        let _ = survey.prepare(&Running::at(&fixed.model, &guest, fixed.place));
        guest.stop();
        if puts_right {
            guest.restore();
            done.borrow().iter().for_each(|&write| guest.write(write));
        }
        for write in scheduler.borrow_mut().rest() {
            done.borrow_mut().push(write);
            guest.write(write);
        }
        guest.set_vcpus(scheduler.borrow().vcpus());
        let honest = lies.is_empty() || puts_right;
        judge(fixed, &mut survey, &guest, honest, lies.is_empty());
    }
});

/// Looks at a guest that stands still. An honest one is known in full; and if it has never lied, by what was kept, too.
fn judge(fixed: &Fixed, survey: &mut Survey, guest: &Guest<'_>, honest: bool, always: bool) {
    let kernel = Running::at(&fixed.model, guest, fixed.place);
    let settled = survey.settle(&kernel, guest).and_then(|()| survey.verify(&kernel, guest));
    let fresh = census::take(&kernel, guest);
    assert!(settled.is_ok() && fresh.is_ok() || !honest, "{settled:?}, {:?}", fresh.err());
    let (Ok(()), Ok(fresh)) = (settled, fresh) else { return };
    let known = survey.census();
    let stale: BTreeSet<Gva> = known.doubts.iter().filter_map(stale).collect();
    assert_eq!(stale, differences(&known, &fresh));
    assert!(stale.is_empty() || !always);
    let whole =
        fresh.doubts.is_empty() && fresh.stacks().all(|stack| stack.outcome == Outcome::Complete);
    assert!(whole || !honest, "{:?}", fresh.doubts);
    let _ = Generation::of(&kernel, guest.vcpus());
    for (module, sites) in known.loaded.modules.iter().zip(sites(&kernel, &known.loaded.modules)) {
        assert!(sites.sites.iter().all(|site| module.holds(site.start)), "{}", module.name);
    }
}

fn stale(doubt: &Doubt) -> Option<Gva> {
    match doubt {
        Doubt::Stale { task, .. } => Some(*task),
        _ => None,
    }
}

/// The tasks of which two censuses do not say the same.
fn differences(one: &Census, other: &Census) -> BTreeSet<Gva> {
    let said = |stack: &Arc<Stack>| {
        let Stack { task, found, frames, outcome } = Stack::clone(stack);
        (task.address, (task.pid, task.start_time, found, frames, outcome))
    };
    let [one, other] = [one, other].map(|census| census.stacks().map(said).collect::<BTreeMap<_, _>>());
    one.keys().chain(other.keys()).filter(|task| one.get(task) != other.get(task)).copied().collect()
}
