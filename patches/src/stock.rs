//! The kernel that is to be patched, as its package has it: what is read of it for a patch.

use std::path::{Path, PathBuf};

use lucos_lup::limits::MODULE_BYTES;
use lucos_lup::manifest::{self, BuildId, Function, Symbol};
use lucos_lup::module::{ModuleError, StockModule};
use lucos_make::{Entry, Tables};
use update_server::image::{self, Image};
use update_server::phases::place::{NoPlace, OldFunction};

use crate::exit::Failure;
use crate::files;

/// Bytes of a kernel image. Unpacked, as ELF files, those of Debian have 70 MiB; with debug information a GiB would not do.
const IMAGE_BYTES: usize = 512 << 20;

/// Why a patch cannot be made for this kernel.
#[derive(Debug, thiserror::Error)]
enum StockError {
    /// The headers are another kernel's.
    #[error(
        "the headers {} are for {headers_release}, and the kernel {} is {release}; get the headers of that",
        headers.display(),
        kernel.display()
    )]
    Headers { headers: PathBuf, headers_release: String, kernel: PathBuf, release: String },
    /// A module is another kernel's.
    #[error("this module is for {found}, and the kernel {} is {release}; get that kernel's", kernel.display())]
    Module { found: String, kernel: PathBuf, release: String },
    /// Two files are the same module.
    #[error("this is the module {name}, and so is a file before it; name each once")]
    Twice { name: String },
    /// The build-id has another length than those that the linker makes.
    #[error(
        "the kernel's build-id is {build_id}, which has not the 20 bytes of one; build it with --build-id=sha1"
    )]
    BuildId { build_id: String },
    /// Something that is no function of the kernel's text has the name, so that its position is another one there.
    #[error(
        "{name} number {position} is no function that stays in the kernel's text; name another to replace"
    )]
    NoFunction { name: String, position: u32 },
    /// A function is in a module whose file was not named.
    #[error("{name} is in the module {object}; name its file with --ko")]
    NoModule { name: String, object: String },
    /// A function cannot be replaced.
    #[error("{name} cannot be replaced")]
    NoPlace { name: String, source: NoPlace },
    /// A function of a module cannot be replaced.
    #[error("{name} of {object} cannot be replaced")]
    NoCode { name: String, object: String, source: ModuleError },
}

/// A kernel's image, and files of its modules.
#[derive(Debug)]
pub(crate) struct Stock {
    path: PathBuf,
    image: Image,
    /// Files of modules, and their bytes.
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Stock {
    /// Reads the image, and the files of modules.
    pub(crate) fn read(kernel: &Path, modules: &[PathBuf]) -> Result<Self, Failure> {
        let bytes = files::read(kernel, IMAGE_BYTES, "kernel image")?;
        let image = Image::read(&bytes).map_err(|error| files::refused(kernel, error))?;
        let file = |path: &PathBuf| {
            Ok((path.clone(), files::read(path, MODULE_BYTES, "module that can be patched")?))
        };
        let files = modules.iter().map(file).collect::<Result<_, Failure>>()?;
        Ok(Self { path: kernel.to_owned(), image, files })
    }

    /// Headers of another kernel would give a module that this one does not load, or that has other structures.
    pub(crate) fn check_headers(&self, headers: &Path, headers_release: &str) -> Result<(), Failure> {
        let release = self.image.release();
        if headers_release == release {
            return Ok(());
        }
        Err(Failure::refused(StockError::Headers {
            headers: headers.to_owned(),
            headers_release: headers_release.to_owned(),
            kernel: self.path.clone(),
            release: release.to_owned(),
        }))
    }

    /// The modules, taken apart.
    pub(crate) fn modules(&self) -> Result<Vec<StockModule<'_>>, Failure> {
        let mut modules: Vec<StockModule<'_>> = Vec::new();
        for (path, bytes) in &self.files {
            let module = StockModule::read(bytes).map_err(|error| files::refused(path, error))?;
            let (found, release, kernel) =
                (module.release().to_owned(), self.image.release(), self.path.clone());
            if found != release {
                let release = release.to_owned();
                return Err(files::refused(path, StockError::Module { found, kernel, release }));
            }
            if modules.iter().any(|other| other.name() == module.name()) {
                return Err(files::refused(path, StockError::Twice { name: module.name().to_owned() }));
            }
            modules.push(module);
        }
        Ok(modules)
    }

    /// The symbols of all.
    pub(crate) fn tables<'a>(&'a self, modules: &[StockModule<'a>]) -> Tables<'a> {
        let entry = |symbol: image::Symbol<'a>| Entry { name: symbol.name, global: is_global(symbol.kind) };
        let of_module = |module: &StockModule<'a>| {
            let entries = module.symbols().map(|(name, global)| Entry { name, global });
            (module.name().to_owned(), entries.collect())
        };
        let kernel = self.image.symbols().iter().map(entry).collect();
        Tables { kernel, modules: modules.iter().map(of_module).collect() }
    }

    /// What the manifest says of the kernel.
    pub(crate) fn kernel(&self) -> Result<manifest::Kernel, Failure> {
        let id = self.image.build_id();
        let bytes: [u8; 20] = id
            .bytes()
            .try_into()
            .map_err(|_| Failure::refused(StockError::BuildId { build_id: id.to_string() }))?;
        Ok(manifest::Kernel { release: self.image.release().to_owned(), build_id: BuildId::from(bytes) })
    }

    /// What the manifest says of a function that is replaced by `new`.
    pub(crate) fn function(
        &self,
        old: &Symbol,
        new: &str,
        modules: &[StockModule<'_>],
    ) -> Result<Function, Failure> {
        let Symbol { name, object, position } = old.clone();
        let (code, holes) = match &object {
            None => (self.code(&name, position).map_err(Failure::refused)?.into(), Vec::new()),
            Some(object) => {
                let module = modules.iter().find(|module| module.name() == object);
                let unread = || StockError::NoModule { name: name.clone(), object: object.clone() };
                let module = module.ok_or_else(|| Failure::refused(unread()))?;
                let no_code =
                    |source| StockError::NoCode { name: name.clone(), object: object.clone(), source };
                let original = module.function(&name, position).map_err(no_code).map_err(Failure::refused)?;
                (original.code, original.holes)
            }
        };
        let size = u32::try_from(code.as_bytes().len()).unwrap_or(u32::MAX);
        Ok(Function { name, object, position, new: new.to_owned(), size, code, holes })
    }

    /// The code of a function of the image, if it can be made to jump somewhere else.
    fn code(&self, name: &str, position: u32) -> Result<Vec<u8>, StockError> {
        let index = usize::try_from(position).ok().and_then(|position| position.checked_sub(1));
        let symbol = self.image.symbols().named(name).nth(index.unwrap_or(0));
        let no_function = || StockError::NoFunction { name: name.to_owned(), position };
        let old = OldFunction::find(&self.image, name, index)
            .map_err(|source| StockError::NoPlace { name: name.to_owned(), source })?;
        if symbol.is_none_or(|symbol| symbol.address != old.text.start) {
            return Err(no_function());
        }
        let len = usize::try_from(old.text.end.0 - old.text.start.0).map_err(|_| no_function())?;
        self.image.bytes(old.text.start, len).map(<[u8]>::to_vec).ok_or_else(no_function)
    }
}

/// Whether other files of the kernel can refer to a symbol of this kind; a weak one has a small letter all the same (nm(1)).
fn is_global(kind: char) -> bool {
    kind.is_ascii_uppercase() || matches!(kind, 'w' | 'v')
}
