//! Modules of patches that are given free when they are unused, and held again. `LUCOS_IMAGES` names the folder with the kernels
//! that the guest runs.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod patch_module;
mod small_guest;

use std::collections::BTreeMap;

use patch_module::{InGuest, in_guests, put, resolve};
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

const NAME: &str = "lucos_small";
/// Its `struct module`, and the text that it says it has.
const STRUCTURE: Gva = Gva(0xffff_ffff_c000_e000);
const TEXT: Gva = Gva(0xffff_ffff_c000_8000);
const TEXT_BYTES: u32 = 0x1000;
/// That of the module that the small guest has by itself.
const OTHER: Gva = Gva(0xffff_ffff_c000_4000);

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
        bench.load();
        // As the owner does before the guest is asked.
        let kernel = Running::find(bench.model, &bench.guest, bench.guest.vcpus()).unwrap();
        bench.server.link(id, &kernel, &[]).unwrap();
        run(name, bench);
    });
}

impl Bench<'_> {
    fn member(&self, structure: Gva, paths: &[&str]) -> Gva {
        let types = self.model.image().types();
        let found = paths.iter().find_map(|path| types.offset("module", path).ok());
        structure.wrapping_add(found.unwrap())
    }

    /// Puts the module on the kernel's list, in use by itself.
    fn load(&self) {
        put(&self.guest, self.member(STRUCTURE, &["name"]), format!("{NAME}\0").as_bytes());
        let base = self.member(STRUCTURE, &["mem.base", "core_layout.base"]);
        put(&self.guest, base, &TEXT.0.to_le_bytes());
        let bytes = self.member(STRUCTURE, &["mem.size", "core_layout.text_size"]);
        put(&self.guest, bytes, &TEXT_BYTES.to_le_bytes());
        self.count(2);
        self.listed(true);
    }

    fn listed(&self, listed: bool) {
        let head = self.model.image().symbols().only("modules").unwrap().address;
        let (other, own) = (self.member(OTHER, &["list"]), self.member(STRUCTURE, &["list"]));
        let ring = if listed { vec![head, other, own] } else { vec![head, other] };
        for (at, next) in ring.iter().zip(ring.iter().cycle().skip(1)) {
            put(&self.guest, *at, &next.0.to_le_bytes());
            put(&self.guest, next.wrapping_add(8), &at.0.to_le_bytes());
        }
    }

    /// How often it is used, as the kernel counts.
    fn count(&self, count: u32) {
        put(&self.guest, self.member(STRUCTURE, &["refcnt"]), &count.to_le_bytes());
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
        bench.count(2);
        assert_eq!(bench.hold(), Ok(Held::Here), "{name}");
        assert_eq!(bench.counted(), 3, "{name}");
        assert_eq!(bench.hold(), Ok(Held::Here), "{name}");
        assert_eq!(bench.counted(), 3, "{name}: held twice");
        bench.count(2);
        bench.apply().unwrap();
        bench.roll_back();
        assert_eq!(bench.guest.ram(), before, "{name}");
        // It goes.
        assert_eq!(bench.release(), Ok(Held::Here), "{name}");
        bench.listed(false);
        let gone = bench.guest.ram();
        assert_eq!(bench.hold(), Ok(Held::Absent), "{name}");
        assert_eq!(bench.guest.ram(), gone, "{name}");
        assert_eq!(bench.release(), Ok(Held::Absent), "{name}");
        // And is loaded anew.
        bench.load();
        let kernel = Running::find(bench.model, &bench.guest, bench.guest.vcpus()).unwrap();
        bench.server.link(bench.id, &kernel, &[]).unwrap();
        bench.apply().unwrap();
    });
}

#[test]
fn a_module_that_somebody_uses_stays() {
    bench("a_module_that_somebody_uses_stays", |name, mut bench| {
        bench.apply().unwrap();
        bench.roll_back();
        bench.count(4);
        let error = bench.stays("two others");
        assert!(
            matches!(error, SwitchError::NotNow(NotNow::Referenced { others: 2, .. })),
            "{name}: {error}"
        );
        bench.count(1);
        let error = bench.stays("no pin");
        assert!(matches!(error, SwitchError::Refused(Refusal::Unpinned { .. })), "{name}: {error}");
        bench.count(0);
        let error = bench.stays("on its way out");
        assert!(matches!(error, SwitchError::NotNow(NotNow::ModuleChanges { .. })), "{name}: {error}");
        bench.count(2);
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
        bench.listed(false);
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
