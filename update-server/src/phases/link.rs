//! The patch's module, linked on the host where the guest says that it has loaded it.
//!
//! The guest's own loader does the work, as with any module; the host does it a second time, from the file and the kernel image
//! alone, and compares. So no code is switched to that is not the patch's.

use std::collections::BTreeMap;

use object::elf::{
    R_X86_64_32, R_X86_64_32S, R_X86_64_64, R_X86_64_NONE, R_X86_64_PC32, R_X86_64_PC64, R_X86_64_PLT32,
    SHN_ABS, SHN_UNDEF,
};

use super::patch_module::{ModuleError, PatchModule, Section, Symbol};
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::{AlternativeLayout, CODE, SiteKind, Sites, Table};
use crate::kernel::running::Running;
use crate::text_check::{Written, with_patches};

impl PatchModule {
    /// Compares the guest's copy with this one, linked for `at`, in which the host has `written` something since. Only where the
    /// module's own tables say so may it differ.
    pub fn compare(
        &self,
        kernel: &Running<'_, impl Memory>,
        at: &BTreeMap<String, Gva>,
        resolve: &dyn Fn(&str) -> Option<Gva>,
        written: &[Written],
    ) -> Result<(), ModuleError> {
        let sites = self.sites(kernel, at, resolve)?;
        for section in self.sections.iter().filter(|section| section.is_compared()) {
            let start = section.start(at)?;
            let expected = with_patches(&self.linked(section, at, resolve)?, start, written);
            let mut found = vec![0; expected.len()];
            kernel.space().read(start, &mut found)?;
            let bytes = (0_u64..).zip(found.iter().zip(&expected));
            for (offset, (&found, &expected)) in bytes.filter(|(_, (found, expected))| found != expected) {
                let here = start.wrapping_add(offset);
                if sites.rewritten_at(here).is_none() {
                    let section = section.name.clone();
                    return Err(ModuleError::Differs { section, at: here, found, expected });
                }
            }
        }
        Ok(())
    }

    /// The bytes of a section, linked for where it is.
    fn linked(
        &self,
        section: &Section,
        at: &BTreeMap<String, Gva>,
        resolve: &dyn Fn(&str) -> Option<Gva>,
    ) -> Result<Vec<u8>, ModuleError> {
        let mut bytes = self.file[section.bytes.clone()].to_vec();
        let start = section.start(at)?;
        for relocation in &section.relocations {
            let offset = relocation.offset;
            let out_of_reach = || ModuleError::OutOfReach { section: section.name.clone(), offset };
            let place = start.wrapping_add(offset).0.cast_signed();
            let symbol = self.address(&self.symbols[relocation.symbol], at, resolve)?.0.cast_signed();
            let value = symbol.wrapping_add(relocation.addend);
            let number: Vec<u8> = match relocation.kind {
                R_X86_64_NONE => continue,
                R_X86_64_64 => value.to_le_bytes().to_vec(),
                R_X86_64_PC64 => value.wrapping_sub(place).to_le_bytes().to_vec(),
                R_X86_64_32 => u32::try_from(value).map_err(|_| out_of_reach())?.to_le_bytes().to_vec(),
                R_X86_64_32S => i32::try_from(value).map_err(|_| out_of_reach())?.to_le_bytes().to_vec(),
                R_X86_64_PC32 | R_X86_64_PLT32 => {
                    let distance = value.wrapping_sub(place);
                    i32::try_from(distance).map_err(|_| out_of_reach())?.to_le_bytes().to_vec()
                }
                kind => {
                    let why = format!("{}+{offset:#x} has a relocation of kind {}", section.name, kind.0);
                    return Err(ModuleError::Malformed(why));
                }
            };
            let from = usize::try_from(offset).map_err(|_| out_of_reach())?;
            let end = from.checked_add(number.len()).ok_or_else(out_of_reach)?;
            bytes.get_mut(from..end).ok_or_else(out_of_reach)?.copy_from_slice(&number);
        }
        Ok(bytes)
    }

    fn address(
        &self,
        symbol: &Symbol,
        at: &BTreeMap<String, Gva>,
        resolve: &dyn Fn(&str) -> Option<Gva>,
    ) -> Result<Gva, ModuleError> {
        if symbol.section == usize::from(SHN_ABS.0) {
            return Ok(Gva(symbol.value));
        }
        if symbol.section == usize::from(SHN_UNDEF.0) {
            let missing = || ModuleError::Symbol { symbol: symbol.name.clone() };
            return resolve(&symbol.name).ok_or_else(missing);
        }
        let section = self.sections.get(symbol.section);
        let section = section.ok_or_else(|| ModuleError::Malformed("a symbol in no section".to_owned()))?;
        Ok(section.start(at)?.wrapping_add(symbol.value))
    }

    /// Every place of the module's code that the guest may change, by the module's own tables.
    fn sites(
        &self,
        kernel: &Running<'_, impl Memory>,
        at: &BTreeMap<String, Gva>,
        resolve: &dyn Fn(&str) -> Option<Gva>,
    ) -> Result<Sites, ModuleError> {
        let alternatives = AlternativeLayout::of(kernel.model().image().types());
        let mut found = Vec::new();
        for (kind, name) in SiteKind::TABLES.into_iter().filter(|(kind, _)| kind.is_rewritten()) {
            for section in self.sections.iter().filter(|section| section.name == name) {
                let bytes = self.linked(section, at, resolve)?;
                let table = Table { name, at: section.start(at)?, bytes: &bytes };
                let malformed = |error: crate::image::ImageError| ModuleError::Malformed(error.to_string());
                for place in table.places(kind, alternatives).map_err(malformed)? {
                    let Some(code) = self.code(place.start, at) else { continue };
                    if let Ok(Some(site)) = place.measure(&code) {
                        found.push(site);
                    }
                }
            }
        }
        Ok(Sites::new(found))
    }

    /// The module's code from `place` on, as it is in the file: enough to measure what is there.
    fn code(&self, place: Gva, at: &BTreeMap<String, Gva>) -> Option<Vec<u8>> {
        self.sections.iter().filter(|section| section.is_code()).find_map(|section| {
            let offset = usize::try_from(place.offset_from(section.start(at).ok()?)?).ok()?;
            let bytes = self.file[section.bytes.clone()].get(offset..)?;
            (!bytes.is_empty()).then(|| bytes[..bytes.len().min(CODE)].to_vec())
        })
    }
}
