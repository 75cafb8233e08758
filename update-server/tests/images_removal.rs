//! Modules of patches that are given free when they are unused, and held again. `LUCOS_IMAGES` names the folder with the kernels
//! that the guest runs.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod patch_module;
mod small_guest;

use std::collections::BTreeMap;

use patch_module::{InGuest, Known, NAME, OTHER, STRUCTURE, TEXT, TEXT_BYTES, in_guests, put, resolve};
use small_guest::{Guest, physical};
use update_server::addr::Gva;
use update_server::census::{self, Census};
use update_server::guest::{Paused, Vcpu};
use update_server::kernel::model::Model;
use update_server::kernel::running::Running;
use update_server::phases::place::OldFunction;
use update_server::server::{
    Consistency, Held, Import, NotNow, Old, Patch, PatchId, Refusal, Replacement, SwitchError, UpdateServer,
};

/// A guest that has loaded the module of a patch.
struct Bench<'p> {
    guest: Guest<'p>,
    model: &'p Model,
    server: UpdateServer,
    sections: BTreeMap<String, Gva>,
    patch: Patch,
    id: PatchId,
}

fn bench(test: &str, run: impl Fn(&str, Bench<'_>)) {
    in_guests(test, |name, InGuest { guest, model, module, sections }| {
        let import = |name: &str| Import::Image { linked: resolve(name).unwrap(), absolute: false };
        let patch = Patch {
            name: "small".to_owned(),
            functions: vec![Replacement {
                old: Old::Image(OldFunction::find(model.image(), "ipc_addid", None).unwrap()),
                new: "replaced".to_owned(),
            }],
            imports: module.undefined().map(|name| (name.to_owned(), import(name))).collect(),
            module: module.clone(),
            requires: Vec::new(),
            consistency: Consistency::Coexist,
            tombstones: false,
            redirect: false,
        };
        let mut server = UpdateServer::default();
        let id = server.add(patch.clone()).unwrap();
        let mut bench = Bench { guest, model, server, sections, patch, id };
        // As the owner does before the guest is asked.
        let kernel = Running::find(bench.model, &bench.guest, bench.guest.vcpus()).unwrap();
        bench.server.link(id, &kernel, &[]).unwrap();
        run(name, bench);
    });
}

impl<'p> Bench<'p> {
    fn known(&self) -> Known<'_, 'p> {
        Known { guest: &self.guest, model: self.model }
    }

    fn member(&self, structure: Gva, paths: &[&str]) -> Gva {
        self.known().member(structure, paths)
    }

    fn counted(&self) -> u32 {
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        kernel.space().u32(self.member(STRUCTURE, &["refcnt"])).unwrap()
    }

    fn census(&self) -> Census {
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        census::take(&kernel, &self.guest).unwrap()
    }

    fn apply(&mut self) -> Result<(), SwitchError> {
        let census = self.census();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        let prepared = self.server.prepare(self.id, &kernel, &census, self.sections.clone())?;
        let applied = self.server.apply(&prepared, &kernel, &self.guest, &census);
        applied.map(drop).map_err(|error| *error)
    }

    fn roll_back(&mut self) {
        let census = self.census();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        let prepared = self.server.prepare_return(self.id, &kernel, &census).unwrap();
        self.server.roll_back(&prepared, &kernel, &self.guest, &census).unwrap();
    }

    fn release(&mut self) -> Result<Held, SwitchError> {
        let census = self.census();
        self.release_by(&census)
    }

    fn release_by(&mut self, census: &Census) -> Result<Held, SwitchError> {
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        let (guest, sections) = (&self.guest, &self.sections);
        self.server.release(self.id, NAME, &kernel, guest, census, sections).map_err(|error| *error)
    }

    fn hold(&mut self) -> Result<Held, SwitchError> {
        let census = self.census();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        self.server.hold(self.id, NAME, &kernel, &self.guest, &census.loaded).map_err(|error| *error)
    }

    /// It is not given free, and nothing is changed.
    fn stays(&mut self, what: &str) -> SwitchError {
        let before = self.guest.ram();
        let error = self.release().expect_err(what);
        assert_eq!(self.guest.ram(), before, "{what}");
        assert!(!self.server.is_released(self.id), "{what}");
        error
    }
}

#[test]
fn an_unused_module_is_given_free_and_held_again() {
    bench("an_unused_module_is_given_free_and_held_again", |name, mut bench| {
        let before = bench.guest.ram();
        bench.apply().unwrap();
        let error = bench.stays("while it is applied");
        assert!(matches!(error, SwitchError::Refused(Refusal::WrongState { .. })), "{name}: {error}");
        bench.roll_back();
        assert_eq!(bench.guest.ram(), before, "{name}");
        assert_eq!(bench.release(), Ok(Held::Here), "{name}");
        assert_eq!(bench.counted(), 1, "{name}");
        // What may go at any moment is not applied, nor given free twice.
        let error = bench.apply().unwrap_err();
        assert!(matches!(error, SwitchError::NotNow(NotNow::Released { .. })), "{name}: {error}");
        assert!(bench.release().is_err(), "{name}");
        // Somebody has taken a reference meanwhile, or given one back.
        bench.known().count(2);
        assert_eq!(bench.hold(), Ok(Held::Here), "{name}");
        assert_eq!(bench.counted(), 3, "{name}");
        assert_eq!(bench.hold(), Ok(Held::Here), "{name}");
        assert_eq!(bench.counted(), 3, "{name}: held twice");
        bench.known().count(2);
        bench.apply().unwrap();
        bench.roll_back();
        assert_eq!(bench.guest.ram(), before, "{name}");
        // It goes.
        assert_eq!(bench.release(), Ok(Held::Here), "{name}");
        bench.known().listed(false);
        let gone = bench.guest.ram();
        assert_eq!(bench.hold(), Ok(Held::Absent), "{name}");
        assert_eq!(bench.guest.ram(), gone, "{name}");
        assert_eq!(bench.release(), Ok(Held::Absent), "{name}");
        // And is loaded anew.
        bench.known().load();
        let kernel = Running::find(bench.model, &bench.guest, bench.guest.vcpus()).unwrap();
        bench.server.link(bench.id, &kernel, &[]).unwrap();
        bench.apply().unwrap();
    });
}

#[test]
fn a_module_that_the_guest_could_unload_is_not_used() {
    bench("a_module_that_the_guest_could_unload_is_not_used", |name, mut bench| {
        let before = bench.guest.ram();
        let mut refused = |count: u32| {
            bench.known().count(count);
            let error = bench.apply().unwrap_err();
            bench.known().count(2);
            assert_eq!(bench.guest.ram(), before, "{name}, used {count} times");
            error
        };
        let error = refused(1);
        assert!(matches!(error, SwitchError::Refused(Refusal::Unpinned { .. })), "{name}: {error}");
        let error = refused(0);
        assert!(matches!(error, SwitchError::NotNow(NotNow::ModuleChanges { .. })), "{name}: {error}");
        bench.apply().unwrap();
        // Nor if it could be by the time that the guest stands still.
        bench.roll_back();
        let census = bench.census();
        let kernel = Running::find(bench.model, &bench.guest, bench.guest.vcpus()).unwrap();
        let prepared = bench.server.prepare(bench.id, &kernel, &census, bench.sections.clone()).unwrap();
        bench.known().count(1);
        let error = *bench.server.apply(&prepared, &kernel, &bench.guest, &census).unwrap_err();
        assert!(matches!(error, SwitchError::Refused(Refusal::Unpinned { .. })), "{name}: {error}");
    });
}

#[test]
fn a_module_that_somebody_uses_stays() {
    bench("a_module_that_somebody_uses_stays", |name, mut bench| {
        bench.apply().unwrap();
        bench.roll_back();
        bench.known().count(4);
        let error = bench.stays("two others");
        assert!(
            matches!(error, SwitchError::NotNow(NotNow::Referenced { others: 2, .. })),
            "{name}: {error}"
        );
        bench.known().count(1);
        let error = bench.stays("no pin");
        assert!(matches!(error, SwitchError::Refused(Refusal::Unpinned { .. })), "{name}: {error}");
        bench.known().count(0);
        let error = bench.stays("on its way out");
        assert!(matches!(error, SwitchError::NotNow(NotNow::ModuleChanges { .. })), "{name}: {error}");
        bench.known().count(2);
        // `MODULE_STATE_GOING`.
        put(&bench.guest, bench.member(STRUCTURE, &["state"]), &2_u32.to_le_bytes());
        let error = bench.stays("going");
        assert!(matches!(error, SwitchError::NotNow(NotNow::ModuleChanges { .. })), "{name}: {error}");
        put(&bench.guest, bench.member(STRUCTURE, &["state"]), &0_u32.to_le_bytes());
        // Another one of that name, somewhere else.
        let base = bench.member(STRUCTURE, &["mem.base", "core_layout.base"]);
        put(&bench.guest, base, &TEXT.wrapping_add(0x1000).0.to_le_bytes());
        let error = bench.stays("another module");
        assert!(matches!(error, SwitchError::Refused(Refusal::OtherModule { .. })), "{name}: {error}");
        put(&bench.guest, base, &TEXT.0.to_le_bytes());
        // Another patch has its code there, too.
        let patch = Patch { name: "upper".to_owned(), ..bench.patch.clone() };
        let upper = bench.server.add(patch).unwrap();
        let lower = std::mem::replace(&mut bench.id, upper);
        bench.apply().unwrap();
        bench.id = lower;
        let error = bench.stays("another patch in the same module");
        assert!(matches!(error, SwitchError::Refused(Refusal::ModuleUsed { .. })), "{name}: {error}");
        bench.id = upper;
        bench.roll_back();
        bench.id = lower;
        // A write that fails.
        bench.guest.fail_write(0);
        let error = bench.stays("a write");
        assert!(matches!(error, SwitchError::Refused(Refusal::Journal(_))), "{name}: {error}");
        assert_eq!(bench.release(), Ok(Held::Here), "{name}");
    });
}

#[test]
fn whoever_is_in_its_code_or_comes_back_to_it_keeps_it() {
    bench("whoever_is_in_its_code_or_comes_back_to_it_keeps_it", |name, mut bench| {
        bench.apply().unwrap();
        bench.roll_back();
        // A vCPU stands in it.
        let vcpus = bench.guest.vcpus().to_vec();
        let stopped = Vcpu { rip: TEXT.0 + 4, ..vcpus[0].clone() };
        bench.guest.set_vcpus(vec![stopped, vcpus[1].clone()]);
        let error = bench.stays("a vCPU");
        assert!(matches!(error, SwitchError::NotNow(_)), "{name}: {error}");
        bench.guest.set_vcpus(vcpus);
        // A return address leads there.
        let census = bench.census();
        let slot = census.stacks().flat_map(|stack| &stack.frames).find_map(|frame| frame.slot).unwrap();
        let kernel = Running::find(bench.model, &bench.guest, bench.guest.vcpus()).unwrap();
        let was = kernel.space().pointer(slot).unwrap();
        for at in [TEXT, TEXT.wrapping_add(TEXT_BYTES.into())] {
            bench.guest.write((physical(slot), at.0));
            let error = bench.stays("a return address");
            assert!(matches!(error, SwitchError::NotNow(_)), "{name}: {error}");
        }
        bench.guest.write((physical(slot), was.0));
        assert_eq!(bench.release(), Ok(Held::Here), "{name}");
    });
}

#[test]
fn a_list_that_ends_early_proves_nothing() {
    bench("a_list_that_ends_early_proves_nothing", |name, mut bench| {
        bench.known().listed(false);
        let list = bench.member(OTHER, &["list"]);
        put(&bench.guest, list, &0xffff_a000_0000_0000_u64.to_le_bytes());
        let error = bench.release().unwrap_err();
        assert!(matches!(error, SwitchError::NotNow(NotNow::Doubt { .. })), "{name}: {error}");
        let error = bench.hold().unwrap_err();
        assert!(matches!(error, SwitchError::NotNow(NotNow::Doubt { .. })), "{name}: {error}");
    });
}

/// It was loaded and never applied: it is compared before anything of it is believed.
#[test]
fn what_was_never_applied_is_compared_first() {
    bench("what_was_never_applied_is_compared_first", |name, mut bench| {
        let at = bench.patch.module.text(&bench.sections).unwrap()[0].end.wrapping_offset(-1);
        let kernel = Running::find(bench.model, &bench.guest, bench.guest.vcpus()).unwrap();
        let was = kernel.space().array::<1>(at).unwrap();
        put(&bench.guest, at, &[was[0] ^ 1]);
        let error = bench.stays("another module");
        assert!(matches!(error, SwitchError::Refused(Refusal::Module(_))), "{name}: {error}");
        put(&bench.guest, at, &was);
        assert_eq!(bench.release(), Ok(Held::Here), "{name}");
    });
}
