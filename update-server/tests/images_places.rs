//! Where jumps can be in the functions of Debian's kernels. `LUCOS_IMAGES` names the folder that has them.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod images;

use std::collections::BTreeMap;

use update_server::image::{Image, SiteKind, Symbol};
use update_server::phases::place::{NoPlace, OldFunction};

/// One of so many functions is looked at: each takes a search through all of the kernel's text.
const SAMPLE: usize = 307;

/// What comes of a function: at which offsets it gets jumps, or why it gets none.
fn outcome(image: &Image, name: &str) -> String {
    match OldFunction::find(image, name, None) {
        Ok(old) => {
            let offset = |at: u64| at - old.text.start.0;
            let offsets: Vec<_> = old.places.iter().map(|place| offset(place.at.0).to_string()).collect();
            offsets.join(", ")
        }
        Err(NoPlace::Site { table, .. }) => table.table().to_owned(),
        Err(NoPlace::Branch { how, .. }) => how.to_owned(),
        Err(error) => format!("{error:?}").split([' ', '{']).next().unwrap_or_default().to_owned(),
    }
}

fn kernels(test: &str) -> Vec<(&'static str, Image)> {
    images::images(test, ["vmlinuz-6.1-cloud", "vmlinuz-6.1-rt", "vmlinuz-6.12-cloud"])
}

#[test]
fn most_functions_have_a_place_and_the_others_a_reason() {
    for (kernel, image) in kernels("most_functions_have_a_place_and_the_others_a_reason") {
        // What begins with two underscores and a name like these is data that is linked among the code.
        let is_code = |symbol: &Symbol<'_>| {
            symbol.is_function()
                && !symbol.name.starts_with("__pfx_")
                && !symbol.name.starts_with(SiteKind::StaticCallTrampoline.table())
        };
        let names: Vec<_> = image.symbols().iter().filter(is_code).map(|symbol| symbol.name).collect();
        let mut tally = BTreeMap::<_, usize>::new();
        for name in names.iter().step_by(SAMPLE) {
            *tally.entry(outcome(&image, name)).or_default() += 1;
        }
        println!("{kernel}: {tally:?}");
        let count = |of: fn(&str) -> bool| tally.iter().filter(|(key, _)| of(key)).map(|(_, n)| n).sum();
        let placed: usize = count(|key| key.starts_with(|letter: char| letter.is_ascii_digit()));
        // Init code is gone, and of several with one name the patch must say which.
        let all: usize = count(|key| key != "Gone" && key != "Ambiguous");
        assert!(all > 100 && placed * 100 > all * 90, "{kernel}: {placed} of {all}: {tally:?}");
    }
}

#[test]
fn the_jump_is_behind_ftraces_nop_and_never_under_a_table() {
    for (kernel, image) in kernels("the_jump_is_behind_ftraces_nop_and_never_under_a_table") {
        // Since 6.2 functions whose address is taken begin with a mark for indirect branches.
        let marked = kernel.starts_with("vmlinuz-6.12");
        let first = if marked { "9" } else { "5" };
        for (function, expected) in [
            ("schedule", first),
            ("ipc_addid", first),
            ("vfs_read", first),
            ("do_sys_poll", "5"),
            ("__schedule", "0"),
            ("exc_page_fault", if marked { "4" } else { "0" }),
            ("copy_page", SiteKind::Alternative.table()),
            ("asm_exc_page_fault", "Entry"),
            ("entry_SYSCALL_64", "Entry"),
            // In assembly: no tracer knows them.
            ("rdmsr_safe_regs", if marked { "4" } else { "0" }),
            ("wrmsr_safe_regs", if marked { "4" } else { "0" }),
            ("bpf_lsm_ipc_getsecid", SiteKind::Return.table()),
            ("start_kernel", "Gone"),
            ("no_such_function", "Unknown"),
            ("cgrp_css_free", "Ambiguous"),
        ] {
            assert_eq!(outcome(&image, function), expected, "{kernel}, {function}");
        }
        // A static key is its first instruction: there are two ways on, and each gets a jump.
        let old = OldFunction::find(&image, "native_sched_clock", None).unwrap();
        assert_eq!(old.places.len(), 2, "{kernel}: {old:?}");
        for place in old.places {
            let len = u64::from(place.len);
            assert_eq!(image.sites().overlapping(place.at, len).next(), None, "{kernel}: {place:?}");
        }
    }
}

#[test]
fn of_several_functions_with_one_name_the_patch_says_which() {
    for (kernel, image) in kernels("of_several_functions_with_one_name_the_patch_says_which") {
        let count = image.symbols().named("cgrp_css_free").count();
        assert!(count > 1, "{kernel}: {count}");
        let found = |position| OldFunction::find(&image, "cgrp_css_free", Some(position));
        let starts: Vec<_> = (0..count).map(|position| found(position).unwrap().text.start).collect();
        assert!(starts.windows(2).all(|pair| pair[0] < pair[1]), "{kernel}: {starts:?}");
        assert!(matches!(found(count), Err(NoPlace::Unknown { .. })), "{kernel}");
    }
}

#[test]
fn several_functions_are_found_as_each_is_alone() {
    for (kernel, image) in kernels("several_functions_are_found_as_each_is_alone") {
        let names = image.symbols().iter().filter(Symbol::is_function).map(|symbol| symbol.name);
        let alone = names.step_by(SAMPLE).map(|name| (name, OldFunction::find(&image, name, None)));
        let (found, refused): (Vec<_>, Vec<_>) = alone.partition(|(_, found)| found.is_ok());
        let wanted = || found.iter().map(|(name, _)| (*name, None));
        let together = OldFunction::find_all(&image, wanted()).unwrap();
        let expected: Vec<_> = found.iter().map(|(_, old)| old.as_ref().unwrap()).collect();
        let places = |old: &OldFunction| (old.text.clone(), old.places.clone());
        let [together, expected] =
            [together.iter().collect(), expected].map(|olds: Vec<&OldFunction>| olds.into_iter().map(places));
        assert!(together.eq(expected), "{kernel}");
        let branch = |(_, refused): &&(_, Result<_, NoPlace>)| matches!(refused, Err(NoPlace::Branch { .. }));
        let (name, alone) = refused.iter().find(branch).unwrap();
        let among = OldFunction::find_all(&image, wanted().chain([(*name, None)])).map(drop);
        assert_eq!(among.as_ref(), alone.as_ref().map(|_| &()), "{kernel}, {name}");
    }
}
