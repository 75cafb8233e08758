//! The guest's modules, with the places of their text that may change.

use std::sync::Arc;

use update_server::addr::Gva;
use update_server::census::Loaded;
use update_server::image::SiteKind;
use update_server::kernel::locate::Place;
use update_server::kernel::model::Model;
use update_server::kernel::module_sites::{self, ModuleSites};
use update_server::kernel::modules::{Module, ModuleState};
use update_server::kernel::running::Running;

use super::GuestBytes;
use crate::control::model::{ModuleInfo, ModuleReport, SiteInfo, TextRange};

/// Modules as they were read while the guest ran, with the sites of those that were asked for.
#[derive(Debug)]
pub struct Sited {
    loaded: Loaded,
    chosen: Vec<Arc<Module>>,
    sites: Vec<ModuleSites>,
    /// The one module that was asked for.
    name: Option<String>,
}

impl Sited {
    /// The modules, without what is known of their sites.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    fn asks_for(&self, module: &Module) -> bool {
        self.name.as_ref().is_none_or(|name| *name == module.name)
    }

    fn sites_of(&self, module: &Arc<Module>) -> Option<&ModuleSites> {
        self.chosen.iter().position(|own| Arc::ptr_eq(own, module)).map(|index| &self.sites[index])
    }
}

/// Reads the sites of all modules, or of the one called `name`, in a guest that may run.
pub fn sites(model: &Model, memory: &GuestBytes<'_>, place: Place, name: Option<&str>) -> Sited {
    let kernel = Running::at(model, memory, place);
    let loaded = super::loaded(model, memory, place);
    let name = name.map(str::to_owned);
    let mut sited = Sited { loaded, chosen: Vec::new(), sites: Vec::new(), name };
    sited.chosen = sited.loaded.modules.iter().filter(|module| sited.asks_for(module)).cloned().collect();
    sited.sites = module_sites::sites(&kernel, &sited.chosen);
    sited
}

/// What is known of the modules in `loaded`, which were found in a guest that stood still.
pub fn modules(
    model: &Model,
    memory: &GuestBytes<'_>,
    place: Place,
    loaded: &Loaded,
    known: &Sited,
) -> ModuleReport {
    let kernel = Running::at(model, memory, place);
    let chosen = loaded.modules.iter().filter(|module| known.asks_for(module));
    ModuleReport {
        kernel: super::report::release(&kernel),
        generation: 0,
        modules: chosen.map(|module| info(module, known.sites_of(module), known.name.is_some())).collect(),
        doubts: loaded.doubts().iter().map(ToString::to_string).collect(),
        paused_us: 0,
    }
}

fn info(module: &Module, sites: Option<&ModuleSites>, listed: bool) -> ModuleInfo {
    let mut info = ModuleInfo {
        name: module.name.clone(),
        state: match module.state() {
            ModuleState::Live => "live",
            ModuleState::Coming => "coming",
            ModuleState::Going => "going",
            ModuleState::Unformed => "unformed",
        }
        .to_owned(),
        text: range(module.text()),
        init_text: Some(module.init_text()).filter(|text| !text.is_empty()).map(range),
        symbols: module.symbols.len() as u64,
        ..ModuleInfo::default()
    };
    match &module.orc {
        Ok(table) => info.orc = table.len() as u64,
        Err(why) => drop(info.unread.insert(".orc_unwind".to_owned(), why.clone())),
    }
    let Some(sites) = sites else {
        let why = "the module came or changed while it was read; ask again";
        info.unread.insert("all".to_owned(), why.to_owned());
        return info;
    };
    for (kind, table) in SiteKind::TABLES {
        let own = sites.sites.count(kind) as u64;
        if own > 0 {
            info.tables.entry(table.to_owned()).or_default().sites += own;
        }
    }
    for (&table, &entries) in &sites.entries {
        info.tables.entry(table.to_owned()).or_default().entries = entries as u64;
    }
    info.gone = sites.gone as u64;
    info.unread.extend(sites.unread.iter().map(|(&table, why)| (table.to_owned(), why.clone())));
    info.sites = listed.then(|| {
        let site = |site: &update_server::image::Site| SiteInfo {
            address: site.start.to_string(),
            bytes: site.len,
            table: site.kind.table().to_owned(),
        };
        sites.sites.iter().map(site).collect()
    });
    info
}

fn range(text: &std::ops::Range<Gva>) -> TextRange {
    TextRange { address: text.start.to_string(), bytes: text.end.0.wrapping_sub(text.start.0) }
}
