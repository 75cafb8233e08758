//! A guest that lies: its tables, lists, modules and stacks are the input's, and change while they are looked at.
//!
//! It claims to run the kernel `vmlinux-6.1-cloud` of the folder that `LUCOS_IMAGES` names.
#![no_main]

#[path = "../../tests/lying_guest/mod.rs"]
mod lying_guest;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use update_server::census::Survey;
use update_server::image::Image;
use update_server::kernel::locate::Place;
use update_server::kernel::model::Model;
use update_server::kernel::paging::PageTables;
use update_server::kernel::probe_owners::probe_owners;
use update_server::kernel::running::Running;

use lying_guest::LyingGuest;

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let folder = std::env::var("LUCOS_IMAGES").expect("LUCOS_IMAGES names the folder with the kernel");
    let file = std::fs::read(format!("{folder}/vmlinux-6.1-cloud")).expect("the kernel can be read");
    Model::new(Image::read(&file).expect("it is a kernel")).expect("it is complete")
});

fuzz_target!(|bytes: &[u8]| {
    let Some((&[pace, low, high], bytes)) = bytes.split_first_chunk::<3>() else { return };
    if bytes.len() < 64 {
        return;
    }
    let rip = (u64::from(low) | u64::from(high) << 8) * 16;
    let guest = LyingGuest::new(bytes.to_vec(), [rip]);
    guest.pace.set(pace.into());
    let place = Place { distance: 0, tables: PageTables::new(0, 0) };
    let mut survey = Survey::default();
    let _ = survey.prepare(&Running::at(&MODEL, &guest, place));
    guest.pace.set(0);
    let kernel = Running::at(&MODEL, &guest, place);
    if survey.settle(&kernel, &guest).is_ok() {
        let _ = survey.verify(&kernel, &guest);
        let census = survey.census();
        assert!(census.stacks().all(|stack| stack.frames.len() < 4096));
        for probe in census.loaded.probes.iter().take(4) {
            let _ = probe_owners(&kernel, probe.at);
        }
    }
});
