//! Where a module's sections are: what `/sys/module/NAME/sections` shows, out of guest memory.
//!
//! An allegation like all that is known of modules. In memory it is there whatever the guest hides from its users
//! (`kptr_restrict`).

use super::modules::{Module, take};
use super::running::Running;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::Btf;
use crate::limits::{MODULE_SECTIONS, SECTION_NAME_BYTES};

/// `struct module_sect_attrs` and `module_sect_attr` (`kernel/module/sysfs.c`, 6.1 to 6.12).
#[derive(Debug, Clone, Copy)]
pub(super) struct SectionsLayout {
    list: u64,
    count: u64,
    first: u64,
    bytes: u64,
    name: u64,
    address: u64,
}

impl SectionsLayout {
    /// As the kernel's types have them; `None` if it keeps no such list, or another one.
    pub(super) fn of(types: &Btf) -> Option<Self> {
        let offset = |structure, member| types.offset(structure, member).ok();
        Some(Self {
            list: offset("module", "sect_attrs")?,
            count: offset("module_sect_attrs", "nsections")?,
            first: offset("module_sect_attrs", "attrs")?,
            bytes: types.size_of("module_sect_attr").ok()?,
            name: offset("module_sect_attr", "battr.attr.name")?,
            address: offset("module_sect_attr", "address")?,
        })
    }
}

/// Name and address of each section of a module that the kernel has kept, or why they cannot be told.
pub fn sections(kernel: &Running<'_, impl Memory>, module: &Module) -> Result<Vec<(String, Gva)>, String> {
    listed(kernel, module, &mut MODULE_SECTIONS.clone())
}

/// The same, of as many sections as `budget` has left.
pub(super) fn listed(
    kernel: &Running<'_, impl Memory>,
    module: &Module,
    budget: &mut usize,
) -> Result<Vec<(String, Gva)>, String> {
    let layout = kernel.model().module_tables.sections;
    let layout = layout.ok_or("this kernel keeps its modules' sections in an unknown way")?;
    let text = |error: super::space::ReadError| error.to_string();
    let space = kernel.space();
    let list = space.pointer(module.address().wrapping_add(layout.list)).map_err(text)?;
    if list.0 == 0 {
        return Err("the kernel has not kept its sections".to_owned());
    }
    let count = space.u32(list.wrapping_add(layout.count)).map_err(text)?;
    let here = take(budget, count);
    if here < usize::try_from(count).unwrap_or(usize::MAX) {
        return Err(format!("only {here} sections of {count} were read"));
    }
    let mut found = Vec::new();
    for index in 0..here as u64 {
        let section = list.wrapping_add(layout.first + index * layout.bytes);
        let start = space.pointer(section.wrapping_add(layout.address)).map_err(text)?;
        let name = space.pointer(section.wrapping_add(layout.name)).map_err(text)?;
        found.push((space.text(name, SECTION_NAME_BYTES).map_err(text)?, start));
    }
    Ok(found)
}
