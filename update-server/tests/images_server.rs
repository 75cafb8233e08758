//! Patches applied to a guest that stands still, stacked, refused, and rolled back. `LUCOS_IMAGES` names the folder with the
//! kernels that it runs.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod patch_module;
mod small_guest;

use std::collections::BTreeMap;

use patch_module::{InGuest, in_guests, put, resolve};
use small_guest::{Guest, physical};
use update_server::addr::Gva;
use update_server::census::{self, Census, Survey};
use update_server::guest::{Paused, Vcpu};
use update_server::journal::JournalError;
use update_server::kernel::model::Model;
use update_server::kernel::running::Running;
use update_server::phases::patch_module::PatchModule;
use update_server::phases::place::OldFunction;
use update_server::phases::stack_check::Presence;
use update_server::phases::tombstones::{self, TOMBSTONE};
use update_server::server::{
    Consistency, Emptied, Import, NotNow, Old, Patch, PatchId, Refusal, Replacement, State, SwitchError,
    UpdateServer,
};
use update_server::text_check;
use update_server::x86::jump;

/// A guest with the module in it, and patches that use it.
struct Bench<'p> {
    guest: Guest<'p>,
    model: &'p Model,
    server: UpdateServer,
    sections: BTreeMap<String, Gva>,
}

fn bench(test: &str, run: impl Fn(&str, Bench<'_>, PatchModule)) {
    in_guests(test, |name, InGuest { guest, model, module, sections }| {
        let server = UpdateServer::default();
        run(name, Bench { guest, model, server, sections }, module.clone());
    });
}

/// The guest's kernel is where it was linked for.
fn import(name: &str) -> Import {
    Import::Image { linked: resolve(name).unwrap(), absolute: false }
}

impl Bench<'_> {
    fn patch(&self, name: &str, functions: &[(&str, &str)], module: &PatchModule) -> Patch {
        let replacement = |(old, new): &(&str, &str)| Replacement {
            old: Old::Image(OldFunction::find(self.model.image(), old, None).unwrap()),
            new: (*new).to_owned(),
        };
        Patch {
            name: name.to_owned(),
            functions: functions.iter().map(replacement).collect(),
            imports: module.undefined().map(|name| (name.to_owned(), import(name))).collect(),
            module: module.clone(),
            requires: Vec::new(),
            consistency: Consistency::Coexist,
            tombstones: false,
            redirect: false,
        }
    }

    fn census(&self) -> Census {
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        census::take(&kernel, &self.guest).unwrap()
    }

    fn apply(&mut self, id: PatchId) -> Result<Presence, SwitchError> {
        let census = self.census();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        let prepared = self.server.prepare(id, &kernel, &census, self.sections.clone())?;
        self.server.apply(&prepared, &kernel, &self.guest, &census).map_err(|error| *error)
    }

    fn roll_back(&mut self, id: PatchId) -> Result<(), SwitchError> {
        let census = self.census();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        let prepared = self.server.prepare_return(id, &kernel, &census)?;
        self.server.roll_back(&prepared, &kernel, &self.guest, &census).map(drop).map_err(|error| *error)
    }

    /// Where a function jumps to.
    fn target(&self, function: &str) -> Option<Gva> {
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        let old = OldFunction::find(self.model.image(), function, None).unwrap();
        let at = kernel.now(old.places[0].at);
        jump::target(at, kernel.space().array(at).unwrap())
    }
}

#[test]
fn patches_stack_and_go_in_any_order() {
    bench("patches_stack_and_go_in_any_order", |name, mut bench, module| {
        let before = bench.guest.ram();
        let symbol = |name: &str| Some(module.symbol(name, &bench.sections).unwrap());
        let (replaced, helper) = (symbol("replaced"), symbol("helper"));
        let (one, two) = (
            bench.patch("one", &[("ipc_addid", "replaced"), ("do_sys_poll", "replaced")], &module),
            bench.patch("two", &[("ipc_addid", "helper")], &module),
        );
        let one = bench.server.add(one).unwrap();
        let two = bench.server.add(two).unwrap();
        assert!(bench.apply(one).unwrap().holders.is_empty(), "{name}");
        assert_eq!((bench.target("ipc_addid"), bench.target("do_sys_poll")), (replaced, replaced), "{name}");
        bench.apply(two).unwrap();
        assert_eq!((bench.target("ipc_addid"), bench.target("do_sys_poll")), (helper, replaced), "{name}");
        // The lower one first: the upper one's jump stays.
        bench.roll_back(one).unwrap();
        assert_eq!((bench.target("ipc_addid"), bench.target("do_sys_poll")), (helper, None), "{name}");
        // On top again, and the other way round.
        bench.apply(one).unwrap();
        assert_eq!(bench.target("ipc_addid"), replaced, "{name}");
        bench.roll_back(one).unwrap();
        assert_eq!(bench.target("ipc_addid"), helper, "{name}");
        let twice = bench.apply(two).unwrap_err();
        assert!(matches!(twice, SwitchError::Refused(Refusal::WrongState { .. })), "{name}: {twice}");
        bench.roll_back(two).unwrap();
        assert_eq!(bench.guest.ram(), before, "{name}");
    });
}

#[test]
fn what_another_patch_is_built_upon_stays() {
    bench("what_another_patch_is_built_upon_stays", |name, mut bench, module| {
        let lower = bench.patch("lower", &[("ipc_addid", "replaced")], &module);
        let upper = Patch {
            requires: vec!["lower".to_owned()],
            ..bench.patch("upper", &[("ipc_addid", "helper")], &module)
        };
        let (lower, upper) = (bench.server.add(lower).unwrap(), bench.server.add(upper).unwrap());
        let error = bench.apply(upper).unwrap_err();
        assert!(matches!(error, SwitchError::Refused(Refusal::Requires { .. })), "{name}: {error}");
        bench.apply(lower).unwrap();
        bench.apply(upper).unwrap();
        let error = bench.roll_back(lower).unwrap_err();
        assert!(matches!(error, SwitchError::Refused(Refusal::Required { .. })), "{name}: {error}");
        bench.roll_back(upper).unwrap();
        bench.roll_back(lower).unwrap();
        assert_eq!(bench.server.state(lower), Ok(State::Ready), "{name}");
    });
}

#[test]
fn not_a_byte_changes_before_everything_is_as_it_must_be() {
    bench("not_a_byte_changes_before_everything_is_as_it_must_be", |name, mut bench, module| {
        let patch = bench.patch("patch", &[("do_sys_poll", "replaced"), ("ipc_addid", "helper")], &module);
        let quiescent = Patch { consistency: Consistency::Quiescent, ..patch.clone() };
        let Old::Image(old) = patch.functions[1].old.clone() else { panic!("{name}: {patch:?}") };
        let vcpus = bench.guest.vcpus().to_vec();
        let (patch, quiescent) = (bench.server.add(patch).unwrap(), bench.server.add(quiescent).unwrap());
        let fails = |bench: &mut Bench<'_>, id, what: &str| {
            let before = bench.guest.ram();
            let error = bench.apply(id).unwrap_err();
            assert_eq!(bench.guest.ram(), before, "{name}: {what}");
            assert_eq!(bench.server.state(id), Ok(State::Ready), "{name}: {what}");
            error
        };
        // Somebody has `text_mutex`.
        let lock = bench.model.image().symbols().only("text_mutex").unwrap().address;
        let owner = lock.wrapping_add(bench.model.image().types().offset("mutex", "owner").unwrap());
        bench.guest.write((physical(owner), 0xffff_8880_0009_0001));
        let error = fails(&mut bench, patch, "a lock");
        assert!(matches!(error, SwitchError::NotNow(NotNow::TextChanges { .. })), "{name}: {error}");
        bench.guest.write((physical(owner), 1));
        // A vCPU stands under the jump of the second function.
        let stand = |bench: &mut Bench<'_>, at: Gva| {
            let stopped = Vcpu { rip: at.0, ..vcpus[0].clone() };
            bench.guest.set_vcpus(vec![stopped, vcpus[1].clone()]);
        };
        stand(&mut bench, old.places[0].at.wrapping_add(2));
        let error = fails(&mut bench, patch, "under a jump");
        assert!(matches!(error, SwitchError::NotNow(_)), "{name}: {error}");
        bench.guest.set_vcpus(vcpus.clone());
        // The module is not what was sent, in its last byte.
        let text = module.text(&bench.sections).unwrap()[0].end.wrapping_offset(-1);
        let was = {
            let kernel = Running::find(bench.model, &bench.guest, bench.guest.vcpus()).unwrap();
            kernel.space().array::<1>(text).unwrap()
        };
        put(&bench.guest, text, &[was[0] ^ 1]);
        let error = fails(&mut bench, patch, "another module");
        assert!(matches!(error, SwitchError::Refused(Refusal::Module(_))), "{name}: {error}");
        put(&bench.guest, text, &was);
        // Whichever write fails.
        for write in 0..2 {
            bench.guest.fail_write(write);
            let error = fails(&mut bench, patch, "a write");
            assert!(matches!(error, SwitchError::Refused(Refusal::Journal(_))), "{name}: {error}");
        }
        // And then it works, with either policy.
        bench.apply(patch).unwrap();
        bench.roll_back(patch).unwrap();
        bench.apply(quiescent).unwrap();
        // After a reboot nothing of it is left, and nothing is written.
        bench.server.kernel_is_gone();
        assert_eq!(bench.server.state(quiescent), Ok(State::Gone), "{name}");
        let error = bench.roll_back(quiescent).unwrap_err();
        assert!(matches!(error, SwitchError::Refused(Refusal::WrongState { .. })), "{name}: {error}");
    });
}

#[test]
fn what_changes_before_the_pause_is_seen_in_it() {
    bench("what_changes_before_the_pause_is_seen_in_it", |name, mut bench, module| {
        let patch = bench.patch("patch", &[("do_sys_poll", "replaced"), ("ipc_addid", "helper")], &module);
        let Old::Image(old) = patch.functions[1].old.clone() else { panic!("{name}: {patch:?}") };
        let id = bench.server.add(patch).unwrap();
        let before = bench.guest.ram();
        let mut survey = Survey::default();
        // Prepares while the guest runs, lets `change` change something, and applies in the pause. Says how often that has read.
        let mut apply = |bench: &mut Bench<'_>, change: &dyn Fn(&Bench<'_>)| {
            let kernel = Running::find(bench.model, &bench.guest, bench.guest.vcpus()).unwrap();
            survey.prepare(&kernel).unwrap();
            let prepared =
                bench.server.prepare(id, &kernel, &survey.census(), bench.sections.clone()).unwrap();
            change(bench);
            let kernel = Running::find(bench.model, &bench.guest, bench.guest.vcpus()).unwrap();
            survey.settle(&kernel, &bench.guest).unwrap();
            let reads = bench.guest.reads();
            let census = survey.census();
            let applied = bench.server.apply(&prepared, &kernel, &bench.guest, &census);
            applied.map(|_| bench.guest.reads() - reads).map_err(|error| *error)
        };
        let symbol = |name: &str| bench.model.image().symbols().only(name).unwrap().address;
        let lock =
            symbol("text_mutex").wrapping_add(bench.model.image().types().offset("mutex", "owner").unwrap());
        let text = module.text(&bench.sections).unwrap()[0].end.wrapping_offset(-1);
        let flip = |bench: &Bench<'_>, at: Gva| {
            let kernel = Running::find(bench.model, &bench.guest, bench.guest.vcpus()).unwrap();
            let [byte] = kernel.space().array::<1>(at).unwrap();
            put(&bench.guest, at, &[byte ^ 1]);
        };
        for at in [lock.wrapping_add(1), old.text.start.wrapping_add(40), old.places[0].at, text] {
            let error = apply(&mut bench, &|bench| flip(bench, at)).expect_err(&at.to_string());
            flip(&bench, at);
            assert_eq!(bench.guest.ram(), before, "{name}: {error}");
        }
        // And when it had been found wrong, and is right in the pause.
        flip(&bench, text);
        let anew = apply(&mut bench, &|bench| flip(bench, text)).unwrap();
        bench.roll_back(id).unwrap();
        let foreseen = apply(&mut bench, &|_| ()).unwrap();
        assert!(foreseen < anew, "{name}: {foreseen} readings, and {anew} where nothing was foreseen");
        bench.roll_back(id).unwrap();
        assert_eq!(bench.guest.ram(), before, "{name}");
    });
}

/// Functions of several kinds: with a NOP of ftrace, with none, and with static keys at their beginning and within.
const FILLED: [(&str, &str); 3] =
    [("ipc_addid", "replaced"), ("__schedule", "helper"), ("native_sched_clock", "replaced")];

impl Bench<'_> {
    fn fill(&mut self, id: PatchId) -> Result<(), SwitchError> {
        let census = self.census();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        self.server.fill(id, &kernel, &self.guest, &census).map_err(|error| *error)
    }

    fn empty(&mut self, at: Gva, patient: bool) -> Result<Option<Emptied>, SwitchError> {
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        self.server.empty(at, &kernel, &self.guest, patient).map_err(|error| *error)
    }

    /// What differs in the text for no reason that is known, and how many bytes do because of patches.
    fn text(&self) -> (usize, u64) {
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        let written = self.server.written(&kernel).unwrap();
        let report = text_check::check(&kernel, &written).unwrap();
        (report.unexplained.len(), report.by_patch.bytes)
    }

    /// Has the guest list one probe, or none: the table's first list is a node in the memory of modules.
    fn set_probe(&self, at: Option<Gva>) {
        let node = Gva(0xffff_ffff_c000_f000);
        let member = self.model.image().types().offset("kprobe", "addr").unwrap();
        put(&self.guest, node.wrapping_add(member), &at.map_or(0, |at| at.0).to_le_bytes());
        put(&self.guest, self.word("kprobe_table", None), &at.map_or(0, |_| node.0).to_le_bytes());
    }

    fn word(&self, name: &str, member: Option<(&str, &str)>) -> Gva {
        let at = self.model.image().symbols().only(name).unwrap().address;
        member.map_or(at, |(of, member)| {
            at.wrapping_add(self.model.image().types().offset(of, member).unwrap())
        })
    }
}

#[test]
fn old_code_is_filled_all_or_none_and_put_back_to_the_byte() {
    bench("old_code_is_filled_all_or_none_and_put_back_to_the_byte", |name, mut bench, module| {
        let original = bench.guest.ram();
        let patch = Patch { tombstones: true, ..bench.patch("one", &FILLED, &module) };
        let old = |function: &Replacement| match &function.old {
            Old::Image(old) => old.clone(),
            Old::Module(_) => panic!("{name}"),
        };
        let olds: Vec<_> = patch.functions.iter().map(old).collect();
        let id = bench.server.add(patch).unwrap();
        assert!(!bench.server.is_to_fill(id) && bench.fill(id).is_err(), "{name}: it is not applied");
        bench.apply(id).unwrap();
        let applied = bench.guest.ram();
        assert!(bench.server.is_to_fill(id), "{name}");
        // Whichever write fails.
        let image = bench.model.image();
        let runs: Vec<_> = olds.iter().flat_map(|old| tombstones::fillable(image, old)).collect();
        assert!(runs.len() > 30, "{name}: {runs:?}");
        for write in 0..runs.len() as u64 {
            bench.guest.fail_write(write);
            let error = bench.fill(id).unwrap_err();
            assert!(matches!(error, SwitchError::Refused(Refusal::Journal(_))), "{name}: {error}");
            assert!(bench.guest.ram() == applied, "{name}: write {write}");
            assert!(bench.server.is_to_fill(id) && bench.server.filled_bytes(id) == 0, "{name}");
        }
        bench.fill(id).unwrap();
        let filled = bench.guest.ram();
        // Each byte of the runs is a tombstone, and nothing else has changed.
        let in_run = |at: &Gva| runs.iter().any(|run| run.contains(at));
        let mut expected = applied.clone();
        for run in &runs {
            let from = usize::try_from(physical(run.start).0).unwrap();
            let len = usize::try_from(run.end.0 - run.start.0).unwrap();
            expected[from..from + len].fill(TOMBSTONE);
        }
        assert!(filled == expected, "{name}");
        let total: u64 = runs.iter().map(|run| run.end.0 - run.start.0).sum();
        assert_eq!(bench.server.filled_bytes(id) as u64, total, "{name}");
        for old in &olds {
            let sites: Vec<_> =
                image.sites().overlapping(old.text.start, old.text.end.0 - old.text.start.0).collect();
            assert!(
                sites.iter().all(|site| (0..site.len.into()).all(|at| !in_run(&site.start.wrapping_add(at))))
            );
            assert!(
                old.places
                    .iter()
                    .all(|place| (0..place.len.into()).all(|at| !in_run(&place.at.wrapping_add(at))))
            );
            // And most of it is dead.
            let len = old.text.end.0 - old.text.start.0;
            let dead: u64 = (0..len).filter(|&at| in_run(&old.text.start.wrapping_add(at))).count() as u64;
            assert!(dead * 2 > len, "{name}: {dead} of {len} bytes of {}", old.name);
        }
        let (unexplained, written) = bench.text();
        assert!(unexplained == 0 && written > total, "{name}: {unexplained}, {written}");
        assert!(!bench.server.is_to_fill(id), "{name}");

        // Another one on top finds the function as it was left, and needs it no more than this one.
        let two = Patch { tombstones: true, ..bench.patch("two", &FILLED[..1], &module) };
        let two = bench.server.add(two).unwrap();
        bench.apply(two).unwrap();
        bench.fill(two).unwrap();
        let own = tombstones::fillable(image, &olds[0]);
        let own: u64 = own.iter().map(|run| run.end.0 - run.start.0).sum();
        assert_eq!(bench.server.filled_bytes(two) as u64, own, "{name}");
        // The jump and the tombstones go together or not at all, whichever write fails.
        let stacked = bench.guest.ram();
        // Those of the function that the upper one is on stay.
        let writes = (runs.len() - tombstones::fillable(image, &olds[0]).len()) as u64;
        for write in [0, 1, writes / 2, writes] {
            bench.guest.fail_write(write);
            let error = bench.roll_back(id).unwrap_err();
            assert!(matches!(error, SwitchError::Refused(Refusal::Journal(_))), "{name}: {error}");
            assert!(bench.guest.ram() == stacked, "{name}: write {write}");
        }
        bench.roll_back(id).unwrap();
        // What the upper one is on stays filled.
        assert!(bench.server.filled_bytes(two) > 0 && bench.server.filled_bytes(id) == 0, "{name}");
        assert_eq!(bench.text().0, 0, "{name}");
        bench.roll_back(two).unwrap();
        assert!(bench.guest.ram() == original, "{name}");
        // Once more, and then the kernel is gone: nothing is known of it, nor written to it.
        bench.apply(id).unwrap();
        bench.fill(id).unwrap();
        assert!(bench.guest.ram() == filled, "{name}");
        bench.server.kernel_is_gone();
        assert_eq!(bench.server.tombstones().count(), 0, "{name}");
        assert_eq!(bench.empty(runs[0].start, true), Ok(None), "{name}");
        assert!(bench.guest.ram() == filled, "{name}");
    });
}

#[test]
fn what_somebody_is_in_or_has_a_probe_in_is_not_filled() {
    bench("what_somebody_is_in_or_has_a_probe_in_is_not_filled", |name, mut bench, module| {
        let patch = Patch { tombstones: true, ..bench.patch("one", &[("ipc_addid", "replaced")], &module) };
        let Old::Image(old) = patch.functions[0].old.clone() else { panic!("{name}: {patch:?}") };
        let id = bench.server.add(patch).unwrap();
        bench.apply(id).unwrap();
        let applied = bench.guest.ram();
        let vcpus = bench.guest.vcpus().to_vec();
        let behind = old.places[0].at.wrapping_add(old.places[0].len.into());
        bench.guest.set_vcpus(vec![Vcpu { rip: behind.0, ..vcpus[0].clone() }, vcpus[1].clone()]);
        let error = bench.fill(id).unwrap_err();
        let is_there = matches!(&error, SwitchError::NotNow(NotNow::Inside { .. } | NotNow::Doubt { .. }));
        assert!(is_there, "{name}: {error}");
        bench.guest.set_vcpus(vcpus);
        // A probe in old code has a copy of it; one on the jump or before has not.
        for at in [behind, old.text.end.wrapping_offset(-1)] {
            bench.set_probe(Some(at));
            let error = bench.fill(id).unwrap_err();
            let is_it =
                matches!(&error, SwitchError::NotNow(NotNow::ProbedInside { at: found, .. }) if *found == at);
            assert!(is_it, "{name}: {error}");
            bench.set_probe(None);
        }
        assert!(bench.guest.ram() == applied, "{name}");
        bench.set_probe(Some(old.places[0].at));
        bench.fill(id).unwrap();
        // Nor is it put back.
        bench.set_probe(Some(behind));
        let filled = bench.guest.ram();
        let error = bench.roll_back(id).unwrap_err();
        assert!(matches!(error, SwitchError::NotNow(NotNow::ProbedInside { .. })), "{name}: {error}");
        assert!(bench.guest.ram() == filled, "{name}");
        bench.set_probe(None);
        bench.roll_back(id).unwrap();
    });
}

#[test]
fn functions_in_assembly_are_switched_at_their_entry_and_taken_back() {
    bench("functions_in_assembly_are_switched_at_their_entry_and_taken_back", |name, mut bench, module| {
        let original = bench.guest.ram();
        let functions = [("rdmsr_safe_regs", "replaced"), ("wrmsr_safe_regs", "helper")];
        let patch = bench.patch("one", &functions, &module);
        let places: Vec<_> = patch
            .functions
            .iter()
            .flat_map(|function| match &function.old {
                Old::Image(old) => old.places.clone(),
                Old::Module(_) => panic!("{name}"),
            })
            .collect();
        let id = bench.server.add(patch).unwrap();
        bench.apply(id).unwrap();
        let kernel = Running::find(bench.model, &bench.guest, bench.guest.vcpus()).unwrap();
        for place in &places {
            let jump = kernel.space().array::<1>(kernel.now(place.at)).unwrap();
            assert_eq!(jump, [0xe9], "{name}: {place:?}");
        }
        assert_eq!((places.len(), bench.text().0), (2, 0), "{name}");
        bench.roll_back(id).unwrap();
        assert!(bench.guest.ram() == original, "{name}");
    });
}

#[test]
fn a_patch_whose_changes_could_not_be_taken_back_is_left_alone() {
    bench("a_patch_whose_changes_could_not_be_taken_back_is_left_alone", |name, mut bench, module| {
        let patch = bench.patch("one", &FILLED[..2], &module);
        let id = bench.server.add(patch).unwrap();
        bench.guest.fail_writes_from(1);
        let error = bench.apply(id).unwrap_err();
        let SwitchError::Refused(Refusal::Journal(JournalError::Failed { undone: false, .. })) = error else {
            panic!("{name}: {error}")
        };
        assert_eq!(bench.server.state(id), Ok(State::Torn), "{name}");
        assert!(matches!(bench.apply(id), Err(SwitchError::Refused(Refusal::WrongState { .. }))), "{name}");
        assert!(
            matches!(bench.roll_back(id), Err(SwitchError::Refused(Refusal::WrongState { .. }))),
            "{name}"
        );
        assert!(matches!(bench.server.remove(id), Err(Refusal::WrongState { .. })), "{name}");
        bench.server.kernel_is_gone();
        assert_eq!(bench.server.state(id), Ok(State::Gone), "{name}");
        bench.server.remove(id).unwrap();
    });
}

#[test]
fn a_probe_in_another_function_of_the_patch_keeps_nobody_on_a_tombstone() {
    bench(
        "a_probe_in_another_function_of_the_patch_keeps_nobody_on_a_tombstone",
        |name, mut bench, module| {
            let patch = Patch { tombstones: true, ..bench.patch("one", &FILLED[..2], &module) };
            let old = |function: &Replacement| match &function.old {
                Old::Image(old) => old.clone(),
                Old::Module(_) => panic!("{name}"),
            };
            let [met, other] = [0, 1].map(|index| old(&patch.functions[index]));
            let id = bench.server.add(patch).unwrap();
            bench.apply(id).unwrap();
            let applied = bench.guest.ram();
            bench.fill(id).unwrap();
            let all = bench.server.filled_bytes(id);
            let place = |old: &OldFunction| tombstones::fillable(bench.model.image(), old)[0].start;
            let (at, probed) = (place(&met), place(&other));
            bench.set_probe(Some(probed));
            let emptied = bench.empty(at, true).unwrap().unwrap();
            assert_eq!(emptied.patches, [id], "{name}");
            let left = bench.server.filled_bytes(id);
            assert!(left > 0 && left < all, "{name}: {left} of {all}");
            assert_eq!(bench.text().0, 0, "{name}");
            // Whoever comes to the other one is waited for as before, and so is who rolls back.
            let error = bench.empty(probed, false).unwrap_err();
            assert!(matches!(error, SwitchError::NotNow(NotNow::ProbedInside { .. })), "{name}: {error}");
            let error = bench.roll_back(id).unwrap_err();
            assert!(matches!(error, SwitchError::NotNow(NotNow::ProbedInside { .. })), "{name}: {error}");
            bench.set_probe(None);
            assert!(bench.empty(probed, true).unwrap().is_some(), "{name}");
            assert_eq!(bench.server.filled_bytes(id), 0, "{name}");
            assert!(bench.guest.ram() == applied, "{name}");
            bench.roll_back(id).unwrap();
        },
    );
}

#[test]
fn old_code_is_put_back_for_whoever_comes() {
    bench("old_code_is_put_back_for_whoever_comes", |name, mut bench, module| {
        let one = Patch { tombstones: true, ..bench.patch("one", &FILLED[..2], &module) };
        let Old::Image(old) = one.functions[0].old.clone() else { panic!("{name}") };
        let two = Patch { tombstones: true, ..bench.patch("two", &[("do_sys_poll", "replaced")], &module) };
        let (one, two) = (bench.server.add(one).unwrap(), bench.server.add(two).unwrap());
        bench.apply(two).unwrap();
        bench.fill(two).unwrap();
        bench.apply(one).unwrap();
        let applied = bench.guest.ram();
        bench.fill(one).unwrap();
        let filled = bench.guest.ram();
        let at = tombstones::fillable(bench.model.image(), &old)[0].start;
        assert_eq!(bench.empty(old.places[0].at, true), Ok(None), "{name}: the jump");
        // Who changes text is waited for, but not for ever.
        let lock = bench.word("text_mutex", Some(("mutex", "owner")));
        bench.guest.write((physical(lock), 0xffff_8880_0009_0001));
        let error = bench.empty(at, true).unwrap_err();
        assert!(matches!(error, SwitchError::NotNow(NotNow::TextChanges { .. })), "{name}: {error}");
        bench.guest.write((physical(lock), 0));
        for write in [0, 5, 20] {
            bench.guest.fail_write(write);
            let error = bench.empty(at, true).unwrap_err();
            assert!(matches!(error, SwitchError::Refused(Refusal::Journal(_))), "{name}: {error}");
            assert!(bench.guest.ram() == filled, "{name}");
        }
        bench.set_probe(Some(at));
        let error = bench.empty(at, false).unwrap_err();
        assert!(matches!(error, SwitchError::NotNow(NotNow::ProbedInside { .. })), "{name}: {error}");
        bench.set_probe(None);

        bench.guest.write((physical(lock), 0xffff_8880_0009_0001));
        let emptied = bench.empty(at, false).unwrap().unwrap();
        bench.guest.write((physical(lock), 0));
        let distance = at.0 - old.text.start.0;
        assert_eq!(
            emptied,
            Emptied { place: format!("ipc_addid+{distance:#x}"), patches: vec![one] },
            "{name}"
        );
        // Of this patch nothing is filled, nor will be; the other's is.
        assert!(bench.guest.ram() == applied, "{name}");
        assert_eq!(bench.server.filled_bytes(one), 0, "{name}");
        assert!(bench.server.filled_bytes(two) > 0 && !bench.server.is_to_fill(one), "{name}");
        assert_eq!(bench.text().0, 0, "{name}");
        bench.fill(one).unwrap();
        assert_eq!(bench.empty(at, true), Ok(None), "{name}");
        assert!(bench.guest.ram() == applied, "{name}");
        bench.roll_back(one).unwrap();
        bench.roll_back(two).unwrap();
    });
}
