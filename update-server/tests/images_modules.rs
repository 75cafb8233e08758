//! Functions of a module that are patched in a guest that may lie about it. `LUCOS_IMAGES` names the folder with the kernels that
//! it runs.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;
mod made_up_module;
mod patch_module;
mod small_guest;

use made_up_module::{CODE, FUNCTION, HOLES, LEN, MadeUp, NAME, PLACE, SITES, at, function};
use patch_module::{Bench, in_guests, put, resolve};
use small_guest::{Guest, physical, random};
use update_server::addr::{Gpa, Gva};
use update_server::census::{self, Census, Code};
use update_server::guest::{Memory, Paused};
use update_server::kernel::running::Running;
use update_server::phases::loaded_module::LoadedModuleError;
use update_server::phases::module_function::ModuleFunction;
use update_server::phases::patch_module::PatchModule;
use update_server::phases::place::{NoPlace, OldFunction};
use update_server::phases::rewrite::TextError;
use update_server::phases::stack_check::Presence;
use update_server::server::{
    Consistency, Import, NotNow, Old, Patch, PatchId, Prepared, Refusal, Replacement, State, SwitchError,
};
use update_server::x86::jump;

/// Runs a test on each kernel, in a guest with the made-up module and the patch's module.
fn bench(test: &str, run: impl Fn(&str, Bench<'_>)) {
    in_guests(test, |name, guest| {
        let bench = Bench::new(guest);
        bench.made_up().write();
        run(name, bench);
    });
}

fn old() -> ModuleFunction {
    ModuleFunction {
        object: NAME.to_owned(),
        name: FUNCTION.to_owned(),
        position: None,
        code: CODE.to_vec(),
        holes: HOLES.to_vec(),
    }
}

impl<'p> Bench<'p> {
    fn made_up(&self) -> MadeUp<'_, 'p> {
        MadeUp { guest: &self.guest, model: self.model }
    }

    fn patch(&self, name: &str, olds: impl IntoIterator<Item = Old>) -> Patch {
        let import = |name: &str| Import::Image { linked: resolve(name).unwrap(), absolute: false };
        let replacement = |old| Replacement { old, new: "replaced".to_owned() };
        Patch {
            name: name.to_owned(),
            functions: olds.into_iter().map(replacement).collect(),
            imports: self.module.undefined().map(|name| (name.to_owned(), import(name))).collect(),
            module: self.module.clone(),
            requires: Vec::new(),
            consistency: Consistency::Coexist,
            tombstones: false,
            redirect: false,
        }
    }

    fn add(&mut self, old: ModuleFunction) -> PatchId {
        let patch = self.patch("one", [Old::Module(old)]);
        self.server.add(patch).unwrap()
    }

    fn image_function(&self) -> Old {
        Old::Image(OldFunction::find(self.model.image(), "ipc_addid", None).unwrap())
    }

    fn kernel(&self) -> Running<'_, Guest<'p>> {
        Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap()
    }

    fn census(&self) -> Census {
        census::take(&self.kernel(), &self.guest).unwrap()
    }

    fn link(&mut self, id: PatchId) -> Result<Vec<u8>, Refusal> {
        let modules = self.census().loaded.modules.clone();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        self.server.link(id, &kernel, &modules)
    }

    fn prepare(&self, id: PatchId) -> Result<Prepared, Refusal> {
        self.server.prepare(id, &self.kernel(), &self.census(), self.sections.clone())
    }

    fn apply(&mut self, prepared: &Prepared) -> Result<Presence, SwitchError> {
        let census = self.census();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        self.server.apply(prepared, &kernel, &self.guest, &census).map_err(|error| *error)
    }

    fn roll_back(&mut self, id: PatchId) -> Result<Presence, SwitchError> {
        let census = self.census();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        let prepared = self.server.prepare_return(id, &kernel, &census)?;
        self.server.roll_back(&prepared, &kernel, &self.guest, &census).map_err(|error| *error)
    }

    fn note_unloaded(&mut self) {
        let census = self.census();
        let kernel = Running::find(self.model, &self.guest, self.guest.vcpus()).unwrap();
        self.server.note_unloaded(&kernel, &census.loaded);
    }

    /// Where the function jumps to.
    fn target(&self) -> Option<Gva> {
        let place = function().wrapping_add(PLACE.start as u64);
        jump::target(place, self.kernel().space().array(place).unwrap())
    }

    fn replaced(&self) -> Gva {
        self.module.symbol("replaced", &self.sections).unwrap()
    }
}

/// Where two memories differ.
fn differences(one: &[u8], other: &[u8]) -> Vec<u64> {
    let bytes = (0..).zip(one.iter().zip(other));
    bytes.filter(|(_, (one, other))| one != other).map(|(at, _)| at).collect()
}

#[test]
fn a_modules_function_is_switched_and_taken_back_to_the_byte() {
    bench("a_modules_function_is_switched_and_taken_back_to_the_byte", |name, mut bench| {
        let before = bench.guest.ram();
        let patch = bench.patch("both", [Old::Module(old()), bench.image_function()]);
        let both = bench.server.add(patch).unwrap();
        let upper = bench.add(old());
        let file = bench.link(both).unwrap();
        assert_eq!(PatchModule::read(&file).unwrap().undefined().count(), 0, "{name}");
        let prepared = bench.prepare(both).unwrap();
        assert_eq!(bench.guest.ram(), before, "{name}: before it is applied");
        assert_eq!(bench.apply(&prepared).unwrap().holders, [], "{name}");
        assert_eq!(bench.target(), Some(bench.replaced()), "{name}");
        // Of the module the bytes of the place alone.
        let own = physical(function()).0;
        let (after, module) = (bench.guest.ram(), physical(at(0)).0..physical(at(0)).0 + 0x8000);
        for changed in differences(&before, &after).into_iter().filter(|place| module.contains(place)) {
            assert!(PLACE.contains(&usize::try_from(changed - own).unwrap()), "{name}: {changed:#x}");
        }
        // Another one on top, by what the guest has by then.
        bench.link(upper).unwrap();
        let prepared = bench.prepare(upper).unwrap();
        bench.apply(&prepared).unwrap();
        bench.roll_back(both).unwrap();
        assert_eq!(bench.target(), Some(bench.replaced()), "{name}: the upper one");
        bench.roll_back(upper).unwrap();
        assert_eq!(bench.guest.ram(), before, "{name}: rolled back");
        assert_eq!(bench.server.state(both), Ok(State::Ready), "{name}");
    });
}

#[test]
fn whoever_sleeps_in_a_modules_function_is_known() {
    /// Of the small guest's own function, in which a task sleeps.
    const SLEEPS: usize = 25;
    bench("whoever_sleeps_in_a_modules_function_is_known", |name, mut bench| {
        let code = bench.kernel().space().array::<SLEEPS>(at(0)).unwrap();
        let (work, code) = ("small_work".to_owned(), code.to_vec());
        let sleeping = ModuleFunction { name: work, code, holes: vec![14..16, 16..18], ..old() };
        let quiescent = Patch {
            consistency: Consistency::Quiescent,
            ..bench.patch("two", [Old::Module(sleeping.clone())])
        };
        let (one, two) = (bench.add(sleeping), bench.server.add(quiescent).unwrap());
        let prepared = bench.prepare(two).unwrap();
        let error = bench.apply(&prepared).unwrap_err();
        let SwitchError::NotNow(NotNow::Inside { holders }) = &error else { panic!("{name}: {error}") };
        assert_eq!((holders.len(), &*holders[0].function), (1, "small_work"), "{name}");
        let prepared = bench.prepare(one).unwrap();
        assert_eq!(bench.apply(&prepared).unwrap().holders, *holders, "{name}");
        let presence =
            |bench: &Bench<'_>| bench.server.presence(one, &bench.kernel(), &bench.census()).unwrap();
        assert_eq!(presence(&bench).holders, *holders, "{name}");
        // Where the module was, another one may be: its tasks are none of ours.
        bench.made_up().listed(false);
        assert_eq!(presence(&bench).holders, [], "{name}");
    });
}

#[test]
fn what_a_guest_calls_things_does_nothing_to_a_terminal() {
    bench("what_a_guest_calls_things_does_nothing_to_a_terminal", |name, bench| {
        let task = bench.census().stacks().next().unwrap().task.address;
        let comm = bench.model.image().types().offset("task_struct", "comm").unwrap();
        put(&bench.guest, task.wrapping_add(comm), b"\x1b]0;it's\x07\xff\\\0");
        let long = "\u{1b}".repeat(512);
        bench.made_up().symbols(&[("small_work", at(0)), ("\u{1b}[2J", function()), (&long, at(0x200))]);
        let census = census::take(&bench.kernel(), &bench.guest).unwrap();
        let stack = census.stacks().find(|stack| stack.task.address == task).unwrap();
        assert_eq!(stack.task.comm, "\\u{1b}]0;it's\\u{7}\\xff\\\\", "{name}");
        let kernel = bench.kernel();
        let code = Code::new(&kernel, &census.loaded);
        assert_eq!(code.name(function(), false), "\\u{1b}[2J+0x0/0x100 [small]", "{name}");
        // No more room than others, and names that are looked for are found.
        let symbols = &census.loaded.modules[0].symbols;
        assert!(symbols.iter().all(|symbol| symbol.name.len() <= 512), "{name}");
        assert_eq!(symbols.only("small_work").unwrap().address, at(0), "{name}");
        assert!(symbols.only("\u{1b}[2J").is_none(), "{name}");
    });
}

type Change = fn(&MadeUp<'_, '_>);

/// The reason in a word: the table that has a site, what leads somewhere, or the error's name.
fn reason(error: &LoadedModuleError) -> String {
    match error {
        LoadedModuleError::NoPlace { source: NoPlace::Site { table, .. }, .. } => table.table().to_owned(),
        LoadedModuleError::NoPlace { source: NoPlace::Branch { how, .. }, .. } => (*how).to_owned(),
        LoadedModuleError::NoPlace { source, .. } => first_word(&format!("{source:?}")),
        _ => first_word(&format!("{error:?}")),
    }
}

fn first_word(text: &str) -> String {
    text.split([' ', '{']).next().unwrap_or_default().to_owned()
}

/// A byte of the function.
fn byte(offset: u64) -> Gva {
    function().wrapping_add(offset)
}

#[test]
fn whatever_is_in_the_way_is_named_before_the_guest_stands_still() {
    let cases: [(&str, Change, &str); 15] = [
        ("off the list", |made_up| made_up.listed(false), "NotLoaded"),
        ("on its way out", |made_up| made_up.state(2), "NotLive"),
        ("no symbol", |made_up| made_up.symbols(&[("other", at(0))]), "Unknown"),
        ("two symbols", |made_up| made_up.symbols(&[(FUNCTION, at(0)), (FUNCTION, byte(0))]), "Ambiguous"),
        ("the symbol elsewhere", |made_up| made_up.symbols(&[(FUNCTION, at(0x200))]), "OtherCode"),
        ("the symbol outside", |made_up| made_up.symbols(&[(FUNCTION, at(0x1000))]), "Gone"),
        ("a bug under the jump", |made_up| made_up.bug(byte(9)), "__bug_table"),
        ("a static key at its head", |made_up| made_up.static_key(byte(5), at(0x200)), "__jump_table"),
        ("a NOP that is none", |made_up| made_up.traced(byte(5)), "__mcount_loc"),
        ("a branch", |made_up| made_up.branch(byte(5)), "a branch"),
        ("a key's target", |made_up| made_up.static_key(at(0x200), byte(7)), "a static key"),
        ("a fixup", |made_up| made_up.fixup(at(0x200), byte(9)), "__ex_table"),
        ("a pointer", |made_up| made_up.pointer(byte(7)), "an address in the kernel's or the module's data"),
        (
            "a table that is not there",
            |made_up| made_up.table("bug_table", "num_bugs", 0x10_0000, 1),
            "Table",
        ),
        ("memory without end", |made_up| made_up.memory(u32::MAX), "TooLarge"),
    ];
    bench("whatever_is_in_the_way_is_named_before_the_guest_stands_still", |name, mut bench| {
        let id = bench.add(old());
        let honest = bench.guest.save();
        for (what, change, expected) in &cases {
            change(&bench.made_up());
            let Err(Refusal::LoadedModule(error)) = bench.prepare(id).map(drop) else {
                panic!("{name}: {what} is not refused")
            };
            assert_eq!(reason(&error), *expected, "{name}, {what}: {error}");
            assert_eq!(bench.link(id).map(drop), Err(Refusal::LoadedModule(error)), "{name}, {what}");
            bench.guest.return_to(&honest);
        }
        // What leads to the byte behind the jump, or to where everybody begins, is in nobody's way.
        bench.made_up().branch(byte(10));
        bench.made_up().pointer(function());
        bench.prepare(id).unwrap();
        // The patch says which of two.
        bench.made_up().symbols(&[(FUNCTION, at(0)), (FUNCTION, function())]);
        let second = bench.add(ModuleFunction { position: Some(1), ..old() });
        bench.prepare(second).unwrap();
        // It does not have what the jump is written over.
        bench.guest.return_to(&honest);
        let hole = bench.add(ModuleFunction { holes: vec![1..5, 9..10, 12..16, 19..23], ..old() });
        let error = bench.prepare(hole).unwrap_err();
        let is_there = matches!(&error, Refusal::LoadedModule(LoadedModuleError::Hole { offset: 9, .. }));
        assert!(is_there, "{name}: {error}");
    });
}

#[test]
fn every_byte_that_the_patch_has_is_compared() {
    bench("every_byte_that_the_patch_has_is_compared", |name, mut bench| {
        let id = bench.add(old());
        let prepared = bench.prepare(id).unwrap();
        for offset in 0..LEN {
            let place = function().wrapping_add(offset as u64);
            let [was] = bench.kernel().space().array::<1>(place).unwrap();
            // Without LOCK and what may stand in its stead there is no such site.
            let changed = if was == 0x3e { 0xf0 } else { was ^ 0x11 };
            put(&bench.guest, place, &[changed]);
            let before = bench.guest.ram();
            let free = |ranges: &[std::ops::Range<usize>]| ranges.iter().any(|range| range.contains(&offset));
            let found = bench.prepare(id);
            let other = |error: &Refusal| {
                let named = LoadedModuleError::OtherCode {
                    module: NAME.to_owned(),
                    function: FUNCTION.to_owned(),
                    offset,
                };
                *error == Refusal::LoadedModule(named)
            };
            let said = found.map(drop).map_err(|error| other(&error));
            let expected = if free(&HOLES) || free(&SITES) { Ok(()) } else { Err(true) };
            assert_eq!(said, expected, "{name}, {offset}");
            // What has changed since it was read is found in the pause, in a hole, too.
            let found = bench.apply(&prepared).map(drop);
            if free(&SITES) {
                found.unwrap();
                bench.roll_back(id).unwrap();
            } else {
                let error = found.unwrap_err();
                let text = matches!(
                    &error,
                    SwitchError::Refused(Refusal::Text(TextError::Differs { at, .. })) if *at == place
                );
                assert!(text, "{name}, {offset}: {error}");
            }
            assert!(differences(&bench.guest.ram(), &before).is_empty(), "{name}, {offset}");
            put(&bench.guest, place, &[was]);
        }
    });
}

#[test]
fn what_was_changed_in_a_module_goes_with_it() {
    bench("what_was_changed_in_a_module_goes_with_it", |name, mut bench| {
        let honest = bench.guest.save();
        let unloaded: [(&str, Change); 3] = [
            ("off the list", |made_up| made_up.listed(false)),
            ("loaded again, to the same place", |made_up| made_up.write()),
            ("another one of its name", |made_up| made_up.move_text()),
        ];
        for (what, change) in unloaded {
            for by_roll_back in [false, true] {
                let id = bench.add(old());
                let prepared = bench.prepare(id).unwrap();
                bench.apply(&prepared).unwrap();
                bench.note_unloaded();
                assert_eq!(bench.server.state(id), Ok(State::Applied), "{name}, {what}");
                change(&bench.made_up());
                let before = bench.guest.ram();
                if by_roll_back {
                    let error = bench.roll_back(id).unwrap_err();
                    let refused = matches!(error, SwitchError::Refused(Refusal::WrongState { .. }));
                    assert!(refused, "{name}, {what}: {error}");
                } else {
                    bench.note_unloaded();
                }
                assert_eq!(bench.server.state(id), Ok(State::Gone), "{name}, {what}");
                assert_eq!(bench.server.unloaded(id).unwrap(), [NAME], "{name}, {what}");
                assert!(!bench.server.is_in_modules(), "{name}, {what}");
                assert!(differences(&bench.guest.ram(), &before).is_empty(), "{name}, {what}");
                bench.guest.return_to(&honest);
            }
        }
        // What it has changed elsewhere stays, and can be taken back.
        let before = bench.guest.ram();
        let patch = bench.patch("both", [Old::Module(old()), bench.image_function()]);
        let both = bench.server.add(patch).unwrap();
        let prepared = bench.prepare(both).unwrap();
        bench.apply(&prepared).unwrap();
        bench.made_up().write();
        bench.note_unloaded();
        assert_eq!(bench.server.state(both), Ok(State::Applied), "{name}");
        assert_eq!(bench.server.unloaded(both).unwrap(), [NAME], "{name}");
        bench.roll_back(both).unwrap();
        assert!(differences(&bench.guest.ram(), &before).is_empty(), "{name}");
    });
}

#[test]
fn a_module_that_comes_or_goes_is_not_written_to() {
    bench("a_module_that_comes_or_goes_is_not_written_to", |name, mut bench| {
        let id = bench.add(old());
        let prepared = bench.prepare(id).unwrap();
        let honest = bench.guest.save();
        let changes: [Change; 3] =
            [|made_up| made_up.state(2), |made_up| made_up.listed(false), |made_up| made_up.move_text()];
        for change in changes {
            change(&bench.made_up());
            let error = bench.apply(&prepared).unwrap_err();
            let not_now = matches!(error, SwitchError::NotNow(NotNow::ModuleChanges { .. }));
            assert!(not_now, "{name}: {error}");
            bench.guest.return_to(&honest);
        }
        bench.apply(&prepared).unwrap();
        let applied = bench.guest.save();
        bench.made_up().state(2);
        let error = bench.roll_back(id).unwrap_err();
        assert!(matches!(error, SwitchError::NotNow(NotNow::ModuleChanges { .. })), "{name}: {error}");
        // A list that cannot be followed says nothing of what is on it.
        bench.guest.return_to(&applied);
        bench.made_up().broken_list();
        bench.note_unloaded();
        assert_eq!(bench.server.state(id), Ok(State::Applied), "{name}");
    });
}

#[test]
fn symbols_of_modules_are_those_that_the_patch_was_linked_with() {
    bench("symbols_of_modules_are_those_that_the_patch_was_linked_with", |name, mut bench| {
        let import =
            |position| Import::Module { object: NAME.to_owned(), name: "other".to_owned(), position };
        let mut patch = bench.patch("one", [Old::Module(old())]);
        patch.imports.insert("outside".to_owned(), import(None));
        let id = bench.server.add(patch.clone()).unwrap();
        let honest = bench.guest.save();
        // What the guest has of the module was linked with another address.
        bench.link(id).unwrap();
        let prepared = bench.prepare(id).unwrap();
        let error = bench.apply(&prepared).unwrap_err();
        assert!(matches!(error, SwitchError::Refused(Refusal::Module(_))), "{name}: {error}");
        // The module was loaded again since.
        bench.made_up().symbols(&[("small_work", at(0)), (FUNCTION, function()), ("other", at(0x280))]);
        let error = bench.prepare(id).unwrap_err();
        assert!(matches!(&error, Refusal::Moved { symbol, .. } if symbol == "outside"), "{name}: {error}");
        bench.link(id).unwrap();
        bench.prepare(id).unwrap();
        bench.guest.return_to(&honest);
        for (import, there) in [(import(Some(0)), true), (import(Some(1)), false)] {
            patch.imports.insert("outside".to_owned(), import);
            let id = bench.server.add(patch.clone()).unwrap();
            let linked = bench.link(id).map(drop);
            let missing = matches!(linked, Err(Refusal::LoadedModule(LoadedModuleError::Symbol { .. })));
            assert_eq!((linked.is_ok(), missing), (there, !there), "{name}: {linked:?}");
        }
    });
}

/// How many guests are made up.
const GUESSES: usize = 3000;

#[test]
fn whatever_a_guest_says_only_what_the_patch_has_is_written_over() {
    bench("whatever_a_guest_says_only_what_the_patch_has_is_written_over", |name, mut bench| {
        let honest = bench.guest.save();
        let places: Vec<u64> = honest.keys().copied().collect();
        let own = physical(at(0)).0;
        let places: Vec<u64> = places.into_iter().filter(|at| (own..own + 0x8000).contains(at)).collect();
        let mut state = 0x1234_5678_9abc_def1;
        let (mut applied, mut refused) = (0, 0);
        for _ in 0..GUESSES {
            for _ in 0..=random(&mut state) % 3 {
                let word = random(&mut state);
                let place = places[usize::try_from(word >> 8).unwrap() % places.len()];
                // A near miss more often than noise.
                let word = match word & 7 {
                    0 => random(&mut state),
                    1 => at(word >> 16 & 0x7fff).0,
                    2 => u64::MAX - (word >> 60),
                    _ => honest[&place] ^ 1 << (word >> 32 & 63),
                };
                bench.guest.write((Gpa(place), word));
            }
            let id = bench.add(old());
            let before = bench.guest.save();
            let prepared = bench.prepare(id);
            let done = prepared.is_ok_and(|prepared| bench.apply(&prepared).is_ok());
            let after = bench.guest.save();
            let changed: Vec<u64> =
                after.iter().filter(|(at, word)| before.get(at) != Some(word)).map(|(at, _)| *at).collect();
            if done {
                // Two words at most, in which the place was as the patch has it.
                assert!(
                    changed.len() <= 2 && changed[changed.len() - 1] - changed[0] <= 8,
                    "{name}: {changed:?}"
                );
                bench.guest.return_to(&before);
                let mut bytes = [0; 16];
                Memory::read(&bench.guest, Gpa(changed[0]), &mut bytes).unwrap();
                assert!(bytes.windows(PLACE.len()).any(|bytes| *bytes == CODE[PLACE]), "{name}: {bytes:x?}");
                bench.server.kernel_is_gone();
                applied += 1;
            } else {
                assert_eq!(after, before, "{name}");
                refused += 1;
            }
            bench.guest.return_to(&honest);
            bench.server.remove(id).unwrap();
        }
        println!("{name}: {applied} applied, {refused} refused");
        assert!(applied > GUESSES / 10 && refused > GUESSES / 10, "{name}: {applied} and {refused}");
    });
}
