//! Lists of a guest that are longer than what is looked at: what is behind may be in the way, and is not passed over. `LUCOS_IMAGES`
//! names the folder with the kernels that the guest runs.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod patch_module;
mod small_guest;

use patch_module::{Bench, in_guests, put, resolve};
use small_guest::Guest;
use update_server::addr::Gva;
use update_server::census::{self, Census, Doubt};
use update_server::guest::Paused;
use update_server::kernel::running::Running;
use update_server::phases::place::OldFunction;
use update_server::phases::tombstones;
use update_server::server::{Consistency, Import, NotNow, Old, Patch, PatchId, Replacement, SwitchError};

/// Room in the memory of modules that nothing else uses.
const NODE: Gva = Gva(0xffff_ffff_c000_f000);

fn bench(test: &str, run: impl Fn(&str, Bench<'_>)) {
    in_guests(test, |name, guest| run(name, Bench::new(guest)));
}

/// Has `bench` list one thing again and again.
type Lie = fn(&Bench<'_>);

impl<'p> Bench<'p> {
    fn word(&self, at: Gva, word: u64) {
        put(&self.guest, at, &word.to_le_bytes());
    }

    fn symbol(&self, name: &str) -> Gva {
        self.model.image().symbols().only(name).unwrap().address
    }

    fn offset(&self, structure: &str, member: &str) -> u64 {
        self.model.image().types().offset(structure, member).unwrap()
    }

    /// `struct list_head`s, which lead to each other's.
    fn circle(&self, head: &str, structure: &str, link: &str) {
        let link = NODE.wrapping_add(self.offset(structure, link));
        self.word(self.symbol(head), link.0);
        self.word(link, link.0);
    }

    fn modules(&self) {
        self.circle("modules", "module", "list");
    }

    fn bpf(&self) {
        self.circle("bpf_kallsyms", "bpf_ksym", "lnode");
    }

    fn livepatches(&self) {
        self.circle("klp_ops", "klp_ops", "node");
        let versions = NODE.wrapping_add(self.offset("klp_ops", "func_stack"));
        self.word(versions, versions.0);
    }

    /// Its users have pointers to each other.
    fn ftrace(&self) {
        self.word(self.symbol("ftrace_ops_list"), NODE.0);
        self.word(NODE.wrapping_add(self.offset("ftrace_ops", "next")), NODE.0);
    }

    /// So have probes, at their beginning.
    fn probes(&self) {
        self.word(self.symbol("kprobe_table"), NODE.0);
        self.word(NODE, NODE.0);
    }

    fn kernel(&self) -> Running<'_, Guest<'p>> {
        Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap()
    }

    fn census(&self) -> Census {
        census::take(&self.kernel(), &self.guest).unwrap()
    }

    fn apply(&mut self, id: PatchId) -> Result<(), SwitchError> {
        let census = self.census();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        let prepared = self.server.prepare(id, &kernel, &census, self.sections.clone())?;
        self.server.apply(&prepared, &kernel, &self.guest, &census).map(drop).map_err(|error| *error)
    }

    fn roll_back(&mut self, id: PatchId) -> Result<(), SwitchError> {
        let census = self.census();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        let prepared = self.server.prepare_return(id, &kernel, &census)?;
        self.server.roll_back(&prepared, &kernel, &self.guest, &census).map(drop).map_err(|error| *error)
    }

    fn fill(&mut self, id: PatchId) -> Result<(), SwitchError> {
        let census = self.census();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        self.server.fill(id, &kernel, &self.guest, &census).map_err(|error| *error)
    }

    fn empty(&mut self, at: Gva) -> Result<bool, SwitchError> {
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        let emptied = self.server.empty(at, &kernel, &self.guest, true);
        emptied.map(|emptied| emptied.is_some()).map_err(|error| *error)
    }
}

#[test]
fn what_is_listed_without_end_is_a_doubt() {
    bench("what_is_listed_without_end_is_a_doubt", |name, bench| {
        let honest = bench.guest.save();
        assert_eq!(bench.census().doubts, [], "{name}");
        let lies: [(&str, Lie); 4] = [
            ("modules", |bench| bench.modules()),
            ("programs of BPF", |bench| bench.bpf()),
            ("users of ftrace", |bench| bench.ftrace()),
            ("probes", |bench| bench.probes()),
        ];
        for (what, lie) in lies {
            lie(&bench);
            let doubts = bench.census().doubts;
            assert!(
                matches!(doubts[..], [Doubt::Cut(cut)] if cut.what == what),
                "{name}, {what}: {doubts:?}"
            );
            bench.guest.return_to(&honest);
        }
    });
}

/// Nothing is changed by `change` as long as the guest lies, and that is why.
fn refused(
    name: &str,
    bench: &mut Bench<'_>,
    lie: Lie,
    change: impl Fn(&mut Bench<'_>) -> Option<SwitchError>,
) {
    let honest = bench.guest.save();
    lie(bench);
    let before = bench.guest.ram();
    let error = change(bench);
    let is_it = matches!(error, Some(SwitchError::NotNow(NotNow::Cut(_) | NotNow::Doubt { .. })));
    assert!(is_it, "{name}: {error:?}");
    assert!(bench.guest.ram() == before, "{name}");
    bench.guest.return_to(&honest);
}

#[test]
fn nothing_is_changed_where_a_probe_or_a_livepatch_may_be_missed() {
    bench("nothing_is_changed_where_a_probe_or_a_livepatch_may_be_missed", |name, mut bench| {
        let import = |name: &str| Import::Image { linked: resolve(name).unwrap(), absolute: false };
        let old = OldFunction::find(bench.model.image(), "ipc_addid", None).unwrap();
        let tombstone = tombstones::fillable(bench.model.image(), &old)[0].start;
        let patch = Patch {
            name: "one".to_owned(),
            functions: vec![Replacement { old: Old::Image(old), new: "replaced".to_owned() }],
            imports: bench.module.undefined().map(|name| (name.to_owned(), import(name))).collect(),
            module: bench.module.clone(),
            requires: Vec::new(),
            consistency: Consistency::Coexist,
            tombstones: true,
            redirect: false,
        };
        let id = bench.server.add(patch).unwrap();
        let lies: [Lie; 2] = [|bench| bench.livepatches(), |bench| bench.probes()];
        for lie in lies {
            refused(name, &mut bench, lie, |bench| bench.apply(id).err());
        }
        let [_, probes] = lies;
        bench.apply(id).unwrap();
        refused(name, &mut bench, probes, |bench| bench.fill(id).err());
        refused(name, &mut bench, probes, |bench| bench.roll_back(id).err());
        bench.fill(id).unwrap();
        refused(name, &mut bench, probes, |bench| bench.empty(tombstone).err());
        assert_eq!(bench.empty(tombstone), Ok(true), "{name}");
        bench.roll_back(id).unwrap();
    });
}
