//! Looking into the guest's kernel from outside, by what the update server knows of it.
//!
//! The guest takes no part and is told nothing: a hung one is looked into like any other. It stands still only while its
//! stacks are read.

mod generations;
mod guest;
mod modules;
mod report;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use update_server::addr::Gva;
use update_server::census::{Census, Loaded, Survey};
use update_server::image::{Image, ImageError};
use update_server::kernel::generation::Generation;
use update_server::kernel::locate::{NotFound, Place};
use update_server::kernel::model::{Model, ModelError};
use update_server::kernel::modules::ModuleState;
use update_server::kernel::running::Running;
use update_server::kernel::sections;
use update_server::kernel::space::ReadError;
use update_server::phases::stack_check::Holder;
use update_server::text_check::{self, Written};

use crate::control::model::{HolderInfo, StackReport, SymbolReport, TaskReport, TextReport};
use generations::Generations;
pub use guest::{GuestBytes, StillGuest};
pub use modules::{Sited, modules, sites};

/// The largest file that is read as a kernel image.
const FILE_MAX: u64 = 512 << 20;

/// Why the guest's kernel cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The image's file cannot be read again.
    #[error("the kernel image cannot be read again: {0}")]
    File(io::Error),
    /// It is not understood.
    #[error("the kernel image: {0}")]
    Image(ImageError),
    /// It lacks what is looked at.
    #[error("the kernel image: {0}")]
    Model(ModelError),
    /// It is not what runs.
    #[error("the image's kernel is not what runs in the guest: {0}")]
    NotFound(NotFound),
    /// Another kernel was started meanwhile.
    #[error("the guest has started another kernel meanwhile; ask again")]
    Changed,
    /// The guest's memory is not as this kernel leaves it.
    #[error("the kernel's data cannot be followed: {0}")]
    Memory(ReadError),
}

/// The kernel image that the guests of one VMM are booted from, read when somebody first asks.
#[derive(Debug)]
pub struct Inspector {
    image: File,
    model: Mutex<Option<Arc<Model>>>,
    stacks: Mutex<KnownStacks>,
    generations: Generations,
}

/// What is known of the stacks of one generation of the kernel.
#[derive(Debug, Default)]
pub struct KnownStacks {
    generation: Option<Generation>,
    survey: Survey,
}

impl KnownStacks {
    /// Whose they are.
    pub fn generation(&self) -> Option<&Generation> {
        self.generation.as_ref()
    }

    /// What was found last, by [`settle`] for certain.
    pub fn census(&self) -> Census {
        self.survey.census()
    }

    /// Forgets the stacks of `tasks`, which the host has written to.
    pub fn forget(&mut self, tasks: impl IntoIterator<Item = Gva>) {
        self.survey.forget(tasks);
    }

    /// The code that the kernel has loaded, as of then.
    pub fn loaded(&self) -> &Arc<Loaded> {
        self.survey.loaded()
    }

    /// Those of `generation`; what is known of another one is void.
    fn of(&mut self, generation: &Generation) -> &mut Survey {
        if self.generation.as_ref() != Some(generation) {
            *self = Self { generation: Some(generation.clone()), survey: Survey::default() };
        }
        &mut self.survey
    }
}

impl Inspector {
    /// For the image in `file`, which stays the same file even when another one takes its place at its path.
    pub fn new(file: File) -> Self {
        Self {
            image: file,
            model: Mutex::default(),
            stacks: Mutex::default(),
            generations: Generations::default(),
        }
    }

    /// The machine was reset, or is at its start: nothing is known of its guest.
    pub fn reset(&self) {
        *self.stacks() = KnownStacks::default();
        self.generations.reset();
    }

    /// The number of a generation of the kernel that was found just now.
    pub fn number(&self, generation: &Generation) -> u64 {
        self.generations.number(generation)
    }

    /// What is known of the guest's stacks. Whoever has it takes a census; others wait.
    pub fn stacks(&self) -> MutexGuard<'_, KnownStacks> {
        self.stacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the kernel. The first call reads the image, which takes up to some seconds.
    pub fn model(&self) -> Result<Arc<Model>, InspectError> {
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*model {
            return Ok(Arc::clone(known));
        }
        let image = Image::read(&self.bytes().map_err(InspectError::File)?).map_err(InspectError::Image)?;
        let known = Arc::new(Model::new(image).map_err(InspectError::Model)?);
        *model = Some(Arc::clone(&known));
        Ok(known)
    }

    fn bytes(&self) -> io::Result<Vec<u8>> {
        let len = self.image.metadata()?.len().min(FILE_MAX);
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        self.image.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

/// Looks at the stacks of a guest that may run, so that less is to be done in the pause.
pub fn prepare(model: &Model, memory: &GuestBytes<'_>, generation: &Generation, known: &mut KnownStacks) {
    let kernel = Running::at(model, memory, generation.place);
    if let Err(error) = known.of(generation).prepare(&kernel) {
        // It was changing while it was looked at. All that is lost is time, in the pause.
        tracing::debug!("the running guest's stacks could not be followed: {error}");
    }
}

/// Finds every kernel stack of `guest`, and its kernel; with `verify` every stack is walked anew, too.
pub fn settle(
    model: &Model,
    guest: &StillGuest<'_>,
    known: &mut KnownStacks,
    verify: bool,
) -> Result<Generation, InspectError> {
    settle_kernel(model, guest, known, verify).map(|(_, generation)| generation)
}

/// The same, and lets `then` use it in the same pause.
pub fn settle_and<T>(
    model: &Model,
    guest: &StillGuest<'_>,
    known: &mut KnownStacks,
    then: impl FnOnce(&Running<'_, StillGuest<'_>>, &Generation, &Census) -> T,
) -> Result<T, InspectError> {
    let (kernel, generation) = settle_kernel(model, guest, known, false)?;
    Ok(then(&kernel, &generation, &known.census()))
}

/// Finds the kernel of `guest`, and lets `then` use it in the same pause.
pub fn find_and<T>(
    model: &Model,
    guest: &StillGuest<'_>,
    then: impl FnOnce(&Running<'_, StillGuest<'_>>, &Generation) -> T,
) -> Result<T, InspectError> {
    let (kernel, generation) = find(model, guest)?;
    Ok(then(&kernel, &generation))
}

fn settle_kernel<'g, 'm>(
    model: &'g Model,
    guest: &'g StillGuest<'m>,
    known: &mut KnownStacks,
    verify: bool,
) -> Result<(Running<'g, StillGuest<'m>>, Generation), InspectError> {
    let (kernel, generation) = match known.generation() {
        Some(last) => find_likely(model, guest, last)?,
        None => find(model, guest)?,
    };
    let survey = known.of(&generation);
    survey.settle(&kernel, guest).map_err(InspectError::Memory)?;
    if verify {
        survey.verify(&kernel, guest).map_err(InspectError::Memory)?;
    }
    Ok((kernel, generation))
}

fn find<'g, 'm>(
    model: &'g Model,
    guest: &'g StillGuest<'m>,
) -> Result<(Running<'g, StillGuest<'m>>, Generation), InspectError> {
    let kernel = Running::find(model, guest, guest.vcpus()).map_err(InspectError::NotFound)?;
    let generation = Generation::of(&kernel, guest.vcpus()).map_err(InspectError::NotFound)?;
    Ok((kernel, generation))
}

/// Finds the kernel, which is most likely that of `last`.
fn find_likely<'g, 'm>(
    model: &'g Model,
    guest: &'g StillGuest<'m>,
    last: &Generation,
) -> Result<(Running<'g, StillGuest<'m>>, Generation), InspectError> {
    let kernel = Running::at(model, guest, last.place);
    if last.runs(&kernel, guest.vcpus()) { Ok((kernel, last.clone())) } else { find(model, guest) }
}

/// Finds the kernel that was found before as `expected`.
fn find_again<'g, 'm>(
    model: &'g Model,
    guest: &'g StillGuest<'m>,
    expected: &Generation,
) -> Result<Running<'g, StillGuest<'m>>, InspectError> {
    let (kernel, found) = find_likely(model, guest, expected)?;
    if found == *expected { Ok(kernel) } else { Err(InspectError::Changed) }
}

/// What a census has found, with names. The guest may run again.
pub fn stacks(model: &Model, memory: &GuestBytes<'_>, place: Place, census: &Census) -> StackReport {
    report::stacks(&Running::at(model, memory, place), census)
}

/// The tasks that a census has found.
pub fn tasks(model: &Model, memory: &GuestBytes<'_>, place: Place, census: &Census) -> TaskReport {
    report::tasks(&Running::at(model, memory, place), census)
}

/// Where the sections of the module `name` are, in a guest that may run and whose stacks were [`prepare`]d.
pub fn sections(
    model: &Model,
    memory: &GuestBytes<'_>,
    place: Place,
    known: &KnownStacks,
    name: &str,
) -> Result<BTreeMap<String, Gva>, String> {
    let mut modules = known.loaded().modules.iter();
    let module = modules.find(|module| module.name == name && module.state() == ModuleState::Live);
    let module = module.ok_or_else(|| format!("the guest has no module {name} that is loaded whole"))?;
    sections::sections(&Running::at(model, memory, place), module).map(BTreeMap::from_iter)
}

/// Who is in code that is on its way out, the first of them with names and stacks. The guest may run again.
pub fn holders(
    model: &Model,
    memory: &GuestBytes<'_>,
    place: Place,
    census: &Census,
    holders: &[Holder],
) -> Vec<HolderInfo> {
    report::holders(&Running::at(model, memory, place), census, holders)
}

/// The code that the kernel has loaded, in a guest that may run.
pub fn loaded(model: &Model, memory: &GuestBytes<'_>, place: Place) -> Loaded {
    let kernel = Running::at(model, memory, place);
    Loaded::read(&kernel, &Loaded::default()).unwrap_or_default()
}

/// The same in a guest that stands still, if it still runs the same kernel; what is in `known` and has not changed is not
/// read again.
pub fn confirm_loaded(
    model: &Model,
    guest: &StillGuest<'_>,
    generation: &Generation,
    known: &Loaded,
) -> Result<Loaded, InspectError> {
    let kernel = find_again(model, guest, generation)?;
    Loaded::read(&kernel, known).map_err(InspectError::Memory)
}

/// The symbols of the kernel and its modules whose name is `filter` or that lie at the address it is; all without one. The
/// guest may run again.
pub fn symbols(
    model: &Model,
    memory: &GuestBytes<'_>,
    place: Place,
    loaded: &Loaded,
    filter: Option<&str>,
) -> SymbolReport {
    report::symbols(&Running::at(model, memory, place), loaded, filter)
}

/// The kernel that runs in `guest`.
pub fn generation(model: &Model, guest: &StillGuest<'_>) -> Result<Generation, InspectError> {
    find(model, guest).map(|(_, generation)| generation)
}

/// What of the kernel's text differs from the image, in a guest that may run.
pub fn text(
    model: &Model,
    memory: &GuestBytes<'_>,
    place: Place,
    written: &[Written],
) -> Result<text_check::TextReport, InspectError> {
    text_check::check(&Running::at(model, memory, place), written).map_err(InspectError::Memory)
}

/// The same looked at again in a guest that stands still, if it still runs the same kernel.
pub fn confirm(
    model: &Model,
    guest: &StillGuest<'_>,
    generation: &Generation,
    written: &[Written],
    report: text_check::TextReport,
) -> Result<TextReport, InspectError> {
    let kernel = find_again(model, guest, generation)?;
    let report = text_check::confirm(&kernel, written, report).map_err(InspectError::Memory)?;
    Ok(report::text(&kernel, &report))
}
