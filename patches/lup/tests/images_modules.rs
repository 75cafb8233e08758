//! Modules that Kbuild has made for Debian's kernels. `LUCOS_IMAGES` names the folder that has them; `cargo xtask test` sees
//! to it.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::path::Path;

use lucos_lup::Module;

/// The file `name` of an initramfs archive (`Documentation/driver-api/early-userspace/buffer-format.rst`, Linux 6.1).
fn file_of<'a>(archive: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut rest = archive;
    while rest.starts_with(b"070701") {
        let field = |index: usize| {
            let digits = str::from_utf8(&rest[6 + 8 * index..14 + 8 * index]).unwrap();
            usize::from_str_radix(digits, 16).unwrap()
        };
        let (size, name_size) = (field(6), field(11));
        let begin = (110 + name_size).next_multiple_of(4);
        let own_name = rest[110..].split(|&byte| byte == 0).next().unwrap();
        if own_name.ends_with(name.as_bytes()) {
            return Some(&rest[begin..begin + size]);
        }
        rest = &rest[(begin + size).next_multiple_of(4).min(rest.len())..];
    }
    None
}

#[test]
fn what_kbuild_has_made_is_taken() {
    let Some(folder) = std::env::var_os("LUCOS_IMAGES") else {
        println!(
            "SKIPPED: what_kbuild_has_made_is_taken: LUCOS_IMAGES names no folder with modules; `cargo xtask test` does"
        );
        return;
    };
    for (archive, release) in [("plant-6.1-cloud.cpio", "6.1."), ("plant-6.12-cloud.cpio", "6.12.")] {
        let archive = fs::read(Path::new(&folder).join(archive)).unwrap();
        let module = Module::read(file_of(&archive, "lucos_plant.ko").unwrap()).unwrap();
        assert_eq!(module.name(), "lucos_plant");
        assert!(module.release().starts_with(release), "{}", module.vermagic());
        assert!(module.undefined().contains(&"__fentry__"), "{:?}", module.undefined());
        assert!(module.function_size("init_module").is_ok_and(|size| size > 0));
    }
}
