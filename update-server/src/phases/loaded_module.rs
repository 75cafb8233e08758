//! A module of the kernel that is in the guest, as it is searched for functions that are replaced.
//!
//! Its symbols, tables and memory are what the guest says. They can keep a patch from being applied, and not more: what is written
//! over, the patch itself has, and each byte of it is compared.

use std::ops::Range;
use std::sync::Arc;

use super::object::without_filler;
use super::place::NoPlace;
use crate::addr::Gva;
use crate::guest::Memory;
use crate::image::Sites;
use crate::kernel::module_sites;
use crate::kernel::modules::{Module, ModuleState};
use crate::kernel::running::Running;
use crate::kernel::space::ReadError;
use crate::limits::SEARCHED_MODULE_BYTES;
use crate::x86::branches::{Leading, ModuleBytes};

/// Why something of a module is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadedModuleError {
    /// The guest does not have the module.
    #[error(
        "the guest has not loaded module {module}, which is patched; load it there (modprobe {module}), and apply again"
    )]
    NotLoaded {
        /// Its name.
        module: String,
    },
    /// It is on its way in or out.
    #[error("module {module} is being loaded or unloaded; apply again when it is there")]
    NotLive {
        /// Its name.
        module: String,
    },
    /// It has no such symbol, or several.
    #[error("module {module} has no symbol {symbol}, or has it more than once")]
    Symbol {
        /// Its name.
        module: String,
        /// The symbol.
        symbol: String,
    },
    /// A function of it cannot be made to jump.
    #[error("in module {module}: {source}")]
    NoPlace {
        /// Its name.
        module: String,
        /// Why.
        source: NoPlace,
    },
    /// It has another function of that name than the patch was made for.
    #[error(
        "{function} of the guest's module {module} is not the one that the patch was made for: it differs at +{offset:#x}"
    )]
    OtherCode {
        /// The module's name.
        module: String,
        /// The function.
        function: String,
        /// The first byte that differs, or where one of both ends.
        offset: usize,
    },
    /// The patch does not have all bytes that the jump takes the place of.
    #[error(
        "loading fills in +{offset:#x} of {function} of module {module}, under the jump; it cannot be replaced"
    )]
    Hole {
        /// The module's name.
        module: String,
        /// The function.
        function: String,
        /// Where the hole begins.
        offset: usize,
    },
    /// One of its tables cannot be read.
    #[error(
        "table {table} of module {module} cannot be read, so that it is not known what the kernel changes: {why}"
    )]
    Table {
        /// The module's name.
        module: String,
        /// The table.
        table: &'static str,
        /// Why.
        why: String,
    },
    /// It has more memory than is searched.
    #[error("module {module} has more than {limit} bytes of memory")]
    TooLarge {
        /// Its name.
        module: String,
        /// The limit.
        limit: usize,
    },
    /// Its memory cannot be read.
    #[error("module {module} cannot be read: {source}")]
    Unreadable {
        /// Its name.
        module: String,
        /// Why.
        source: ReadError,
    },
}

/// The module called `name`, if it is in use.
pub(crate) fn live<'a>(modules: &'a [Arc<Module>], name: &str) -> Result<&'a Arc<Module>, LoadedModuleError> {
    let module = || name.to_owned();
    let found = modules.iter().find(|module| module.name == name);
    let found = found.ok_or_else(|| LoadedModuleError::NotLoaded { module: module() })?;
    match found.state() {
        ModuleState::Live => Ok(found),
        _ => Err(LoadedModuleError::NotLive { module: module() }),
    }
}

/// A module, with all that was read of it.
#[derive(Debug)]
pub(super) struct LoadedModule {
    pub(super) module: Arc<Module>,
    pub(super) sites: Arc<Sites>,
    text: Vec<u8>,
    memory: Vec<(Gva, Vec<u8>)>,
}

impl LoadedModule {
    /// Reads the module called `name`. The guest may run.
    pub(super) fn read(
        kernel: &Running<'_, impl Memory>,
        modules: &[Arc<Module>],
        name: &str,
    ) -> Result<Self, LoadedModuleError> {
        let module = live(modules, name)?;
        let own = || name.to_owned();
        let unreadable = |source| LoadedModuleError::Unreadable { module: own(), source };
        let read = module_sites::sites(kernel, std::slice::from_ref(module)).pop().unwrap_or_default();
        if let Some((table, why)) = read.unread.into_iter().next() {
            return Err(LoadedModuleError::Table { module: own(), table, why });
        }
        let mut left = SEARCHED_MODULE_BYTES;
        let mut bytes = |piece: &Range<Gva>| {
            let len = piece.end.offset_from(piece.start).and_then(|len| usize::try_from(len).ok());
            let Some((len, rest)) = len.and_then(|len| Some((len, left.checked_sub(len)?))) else {
                return Err(LoadedModuleError::TooLarge { module: own(), limit: SEARCHED_MODULE_BYTES });
            };
            left = rest;
            let mut bytes = vec![0; len];
            kernel.space().read(piece.start, &mut bytes).map_err(unreadable)?;
            Ok(bytes)
        };
        let text = bytes(module.text())?;
        let pieces = module_sites::memory(kernel, module).map_err(unreadable)?;
        let memory = pieces.iter().map(|piece| Ok((piece.start, bytes(piece)?))).collect::<Result<_, _>>()?;
        Ok(Self { module: Arc::clone(module), sites: Arc::new(read.sites), text, memory })
    }

    /// `len` bytes of its text.
    pub(super) fn bytes(&self, at: Gva, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(at.offset_from(self.module.text().start)?).ok()?;
        self.text.get(from..from.checked_add(len)?)
    }

    /// See [`super::object::Object::text_of`].
    pub(super) fn text_of(&self, start: Gva) -> Option<Range<Gva>> {
        let limit = self.module.text().end;
        let (_, next) = self.module.symbols.function(start)?;
        let end = next.unwrap_or(limit).min(limit);
        let code = self.bytes(start, usize::try_from(end.offset_from(start)?).ok()?)?;
        Some(without_filler(start, code))
    }

    /// Everything in it that leads to a byte of `places`.
    pub(super) fn leading_to(&self, places: &[Range<Gva>]) -> Vec<Leading> {
        let bytes = ModuleBytes {
            text: (self.module.text().start, &self.text),
            memory: &self.memory,
            symbols: &self.module.symbols,
            sites: &self.sites,
        };
        bytes.leading_to(places)
    }
}
