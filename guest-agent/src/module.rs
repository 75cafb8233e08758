//! A module of the kernel.

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;

use lucos_abi::{CALL_BYTES, Report, Section, line};
use rustix::fs::{MemfdFlags, OFlags, memfd_create};
use rustix::io::Errno;

/// Bytes of text that fit into one call, behind the report.
const TEXT_BYTES: usize = CALL_BYTES - size_of::<Report>();

/// A file in memory for a module on its way.
pub(crate) fn file() -> Result<File, Errno> {
    Ok(memfd_create("lucos-module", MemfdFlags::CLOEXEC)?.into())
}

/// Has the kernel load the module in `file`, as it would load any other: with all its checks.
pub(crate) fn load(file: &File) -> Result<(), Errno> {
    rustix::system::finit_module(file, c"", 0)
}

/// Has the kernel unload the module `name`, if nobody uses it.
pub(crate) fn unload(name: &str) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(|_| Errno::INVAL)?;
    rustix::system::delete_module(&name, flags)
}

/// Where the sections are that `folder` lists, as a report's text. What cannot be read is left out, and so is what does
/// not fit: the host misses it, and says so.
pub(crate) fn sections(folder: &Path) -> String {
    let mut names: Vec<String> = fs::read_dir(folder)
        .map(|entries| entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    names.sort();
    let mut text = String::new();
    for name in names {
        let address = fs::read_to_string(folder.join(&name)).ok().and_then(|text| {
            u64::from_str_radix(text.trim_end_matches(['\n', '\0']).strip_prefix("0x")?, 16).ok()
        });
        let Some(section) = address.and_then(|address| Section::new(&name, address)) else { continue };
        let mut more = String::new();
        if line(section, &mut more).is_ok() && text.len() + more.len() <= TEXT_BYTES {
            let _ = text.write_str(&more);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tests::kernel;

    #[test]
    fn sections_are_lines_in_order() {
        let (kernel, _folder) = kernel(&[
            ("sys/module/fix/sections/.text", "0xffffffffc0a52000\n"),
            ("sys/module/fix/sections/.data", "0xffffffffc0a54000\n"),
            ("sys/module/fix/sections/odd name", "0x1\n"),
            ("sys/module/fix/sections/.bss", "hidden\n"),
        ]);
        let expected = ".data 0xffffffffc0a54000\n.text 0xffffffffc0a52000\n";
        assert_eq!(sections(&kernel.sections("fix")), expected);
        assert_eq!(sections(&kernel.sections("none")), "");
    }

    #[test]
    fn more_sections_than_fit_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..1000 {
            let name = format!(".text.{}{number:04}", "x".repeat(100));
            fs::write(folder.path().join(name), "0x1000\n").unwrap();
        }
        let text = sections(folder.path());
        assert!(text.len() <= TEXT_BYTES && text.len() > TEXT_BYTES - 200 && text.ends_with('\n'));
    }
}
