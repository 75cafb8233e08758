//! Patches applied to a guest that stands still, stacked, refused, and rolled back. `LUCOS_IMAGES` names the folder with the
//! kernels that it runs.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod patch_module;
mod small_guest;

use std::collections::BTreeMap;
use std::fs;

use images::models;
use patch_module::{linked_by_others, put, resolve};
use small_guest::{Guest, Plan, physical};
use update_server::addr::Gva;
use update_server::census::{self, Census, Survey};
use update_server::guest::{Paused, Vcpu};
use update_server::kernel::model::Model;
use update_server::kernel::running::Running;
use update_server::phases::link::PatchModule;
use update_server::phases::place::OldFunction;
use update_server::phases::stack_check::Presence;
use update_server::server::{
    Consistency, Import, NotNow, Old, Patch, PatchId, Refusal, Replacement, State, SwitchError, UpdateServer,
};
use update_server::x86::jump;

/// A guest with the module in it, and patches that use it.
struct Bench<'p> {
    guest: Guest<'p>,
    model: &'p Model,
    server: UpdateServer,
    sections: BTreeMap<String, Gva>,
}

fn bench(test: &str, run: impl Fn(&str, Bench<'_>, PatchModule)) {
    let folder = tempfile::tempdir().unwrap();
    let (sections, linked) = linked_by_others(folder.path());
    let module = PatchModule::read(&fs::read(folder.path().join("patch.o")).unwrap()).unwrap();
    for (name, model) in models(test) {
        let plan = Plan::new(&model);
        let guest = Guest::new(&plan);
        for (at, bytes) in &linked {
            put(&guest, *at, bytes);
        }
        let server = UpdateServer::default();
        run(name, Bench { guest, model: &model, server, sections: sections.clone() }, module.clone());
    }
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
