//! The kernel's types.
#![no_main]

use libfuzzer_sys::fuzz_target;
use update_server::image::Btf;

/// What a kernel's types are asked for.
const ASKED: [(&str, &str); 4] =
    [("task_struct", "thread.sp"), ("rq", "dl.root.rb_root.rb_node"), ("a", "b"), ("a", "b.c.d.e.f.g")];

fuzz_target!(|bytes: &[u8]| {
    let Ok(types) = Btf::read(bytes.to_vec()) else { return };
    for (structure, path) in ASKED {
        let _ = types.offset(structure, path);
        let _ = types.field(structure, path).map(|field| (field.offset(), field.size()));
        let _ = types.size_of(structure);
        let _ = types.enumerator(path);
    }
});
