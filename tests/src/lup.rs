//! Patches that a test puts together.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lucos_lup::manifest::{
    Consistency, Draining, Function, Import, Kernel, Manifest, ModuleInfo, Policy, Symbol,
};
use lucos_lup::module::{Original, StockModule};
use lucos_lup::{Container, Module, Patch};
use update_server::image::Image;

use crate::images;
use crate::initramfs::contents;

/// One to be.
#[derive(Debug)]
pub(crate) struct Lup {
    image: Image,
    manifest: Manifest,
    module: Vec<u8>,
}

impl Lup {
    /// A patch of the kernel `kind` (`6.1-cloud`) with new code from `scripts/guest/plant`.
    pub(crate) fn new(kind: &str, name: &str) -> Result<Self> {
        Ok(Self::of(kind, name, "lucos_patch.ko")?.import("linux_proc_banner", None))
    }

    /// One that is a file already.
    pub(crate) fn read(kind: &str, path: &Path) -> Result<Self> {
        let image = Image::read(&fs::read(images::image(&format!("vmlinuz-{kind}"))?)?)?;
        let file = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let container = Container::read(&file)?;
        let manifest = Patch::read(&container)?.manifest;
        Ok(Self { image, manifest, module: container.module().to_vec() })
    }

    /// One whose code leaves an address of itself where others may find it.
    pub(crate) fn kept(kind: &str, name: &str) -> Result<Self> {
        Self::of(kind, name, "lucos_kept.ko")?.replace("__x64_sys_getppid", "lucos_kept_getppid")
    }

    /// One whose module takes four seconds to be loaded.
    pub(crate) fn late(kind: &str, name: &str) -> Result<Self> {
        Self::of(kind, name, "lucos_late.ko")?.replace("__x64_sys_getppid", "lucos_late_getppid")
    }

    /// One whose module refuses to be loaded.
    pub(crate) fn unwilling(kind: &str, name: &str) -> Result<Self> {
        Self::of(kind, name, "lucos_unwilling.ko")?.replace("__x64_sys_getppid", "lucos_unwilling_getppid")
    }

    /// One whose module lets itself be unloaded at any moment.
    pub(crate) fn unpinned(kind: &str, name: &str) -> Result<Self> {
        Self::of(kind, name, "lucos_unpinned.ko")?.replace("__x64_sys_getppid", "lucos_unpinned_getppid")
    }

    /// One of the module `lucos_trial`, which is there, too.
    pub(crate) fn of_trial(kind: &str, name: &str) -> Result<Self> {
        let lup = Self::of(kind, name, "lucos_answer.ko")?.import("trial_bytes", Some("lucos_trial"));
        lup.replace_in_trial(kind, "trial_answer", "lucos_trial_answer")
    }

    fn of(kind: &str, name: &str, module: &str) -> Result<Self> {
        let image = fs::read(images::image(&format!("vmlinuz-{kind}"))?)?;
        let image = Image::read(&image)?;
        let module = contents(&images::image(&format!("plant-{kind}.cpio"))?, module)?;
        let found = Module::read(&module)?;
        let kernel = Kernel {
            release: image.release().to_owned(),
            build_id: <[u8; 20]>::try_from(image.build_id().bytes())?.into(),
        };
        let manifest = Manifest {
            name: name.parse()?,
            summary: "shows that new code runs".to_owned(),
            fixes: Vec::new(),
            kernels: vec![kernel],
            module: ModuleInfo { name: found.name().to_owned(), symbols: Vec::new() },
            functions: Vec::new(),
            policy: Policy {
                consistency: Consistency::Coexist,
                coexist_is_safe: Some("neither version changes anything".to_owned()),
                draining: Draining::default(),
                tombstones: false,
            },
            requires: Vec::new(),
        };
        Ok(Self { image, manifest, module })
    }

    /// Has the host resolve an undefined symbol of the module, as one of the image or of another module.
    fn import(mut self, name: &str, object: Option<&str>) -> Self {
        let source = Symbol { name: name.to_owned(), object: object.map(str::to_owned), position: 0 };
        self.manifest.module.symbols.push(Import { name: name.to_owned(), source });
        self
    }

    /// Replaces the kernel's function `old`.
    pub(crate) fn replace(mut self, old: &str, new: &str) -> Result<Self> {
        let symbols = self.image.symbols();
        let symbol = symbols.only(old).with_context(|| format!("the kernel has no {old}"))?;
        let end = symbols.next_behind(symbol.address).with_context(|| format!("{old} has no end"))?;
        let size = u32::try_from(end.0 - symbol.address.0)?;
        let code = self.image.bytes(symbol.address, size as usize).context("no code")?;
        self.manifest.functions.push(Function {
            name: old.to_owned(),
            object: None,
            position: 0,
            new: new.to_owned(),
            size,
            code: code.to_vec().into(),
            holes: Vec::new(),
        });
        Ok(self)
    }

    fn replace_in_trial(mut self, kind: &str, old: &str, new: &str) -> Result<Self> {
        let stock = contents(&images::image(&format!("plant-{kind}.cpio"))?, "lucos_trial.ko")?;
        let stock = StockModule::read(&stock)?;
        let Original { code, holes } = stock.function(old, 0)?;
        self.manifest.functions.push(Function {
            name: old.to_owned(),
            object: Some(stock.name().to_owned()),
            position: 0,
            new: new.to_owned(),
            size: u32::try_from(code.as_bytes().len())?,
            code,
            holes,
        });
        Ok(self)
    }

    /// Old and new code may not run at the same time.
    pub(crate) fn quiescent(mut self) -> Self {
        self.manifest.policy.consistency = Consistency::Quiescent;
        self.manifest.policy.coexist_is_safe = None;
        self
    }

    /// Old code is filled with traps once nobody is in it.
    pub(crate) fn tombstones(mut self) -> Self {
        self.manifest.policy.tombstones = true;
        self
    }

    /// Changes what it says of itself.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Manifest)) -> Self {
        change(&mut self.manifest);
        self
    }

    /// Changes its module.
    pub(crate) fn with_module(mut self, change: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Self> {
        change(&mut self.module)?;
        Ok(self)
    }

    /// Its file.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        Ok(Patch::pack(&self.manifest, &self.module)?)
    }

    /// Writes it into `folder`.
    pub(crate) fn write(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(format!("{}.lup", self.manifest.name));
        fs::write(&path, self.bytes()?).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}
