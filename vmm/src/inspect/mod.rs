//! Looking into the guest's kernel from outside, by what the update server knows of it.
//!
//! The guest takes no part and is told nothing: a hung one is looked into like any other. It stands still only while its
//! stacks are read.

mod guest;
mod report;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use update_server::census::{Census, Loaded, Survey};
use update_server::image::{Image, ImageError};
use update_server::kernel::locate::{NotFound, Place};
use update_server::kernel::model::{Model, ModelError};
use update_server::kernel::running::Running;
use update_server::kernel::space::ReadError;
use update_server::text_check;

use crate::control::model::{StackReport, SymbolReport, TaskReport, TextReport};
pub use guest::{GuestBytes, StillGuest};

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
    survey: Mutex<Survey>,
}

impl Inspector {
    /// For the image in `file`, which stays the same file even when another one takes its place at its path.
    pub fn new(file: File) -> Self {
        Self { image: file, model: Mutex::default(), survey: Mutex::default() }
    }

    /// What is known of the guest's stacks. Whoever has it takes a census; others wait.
    pub fn survey(&self) -> MutexGuard<'_, Survey> {
        self.survey.lock().unwrap_or_else(PoisonError::into_inner)
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
pub fn prepare(model: &Model, memory: &GuestBytes<'_>, place: Place, survey: &mut Survey) {
    let kernel = Running::at(model, memory, place);
    if let Err(error) = survey.prepare(&kernel) {
        // It was changing while it was looked at. All that is lost is time, in the pause.
        tracing::debug!("the running guest's stacks could not be followed: {error}");
    }
}

/// Finds every kernel stack of `guest`, and where its kernel is; with `verify` every stack is walked anew, too.
pub fn settle(
    model: &Model,
    guest: &StillGuest<'_>,
    survey: &mut Survey,
    verify: bool,
) -> Result<Place, InspectError> {
    let kernel = Running::find(model, guest, guest.vcpus()).map_err(InspectError::NotFound)?;
    survey.settle(&kernel, guest).map_err(InspectError::Memory)?;
    if verify {
        survey.verify(&kernel, guest).map_err(InspectError::Memory)?;
    }
    Ok(kernel.place())
}

/// What a census has found, with names. The guest may run again.
pub fn stacks(model: &Model, memory: &GuestBytes<'_>, place: Place, census: &Census) -> StackReport {
    report::stacks(&Running::at(model, memory, place), census)
}

/// The tasks that a census has found.
pub fn tasks(model: &Model, memory: &GuestBytes<'_>, place: Place, census: &Census) -> TaskReport {
    report::tasks(&Running::at(model, memory, place), census)
}

/// The code that the kernel has loaded, in a guest that may run.
pub fn loaded(model: &Model, memory: &GuestBytes<'_>, place: Place) -> Loaded {
    let kernel = Running::at(model, memory, place);
    Loaded::read(&kernel, &Loaded::default()).unwrap_or_default()
}

/// The same in a guest that stands still; what is in `known` and has not changed is not read again.
pub fn confirm_loaded(
    model: &Model,
    guest: &StillGuest<'_>,
    known: &Loaded,
) -> Result<(Place, Loaded), InspectError> {
    let kernel = Running::find(model, guest, guest.vcpus()).map_err(InspectError::NotFound)?;
    Ok((kernel.place(), Loaded::read(&kernel, known).map_err(InspectError::Memory)?))
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

/// Where the kernel is in `guest`.
pub fn place(model: &Model, guest: &StillGuest<'_>) -> Result<Place, InspectError> {
    Running::find(model, guest, guest.vcpus()).map(|kernel| kernel.place()).map_err(InspectError::NotFound)
}

/// What of the kernel's text differs from the image, in a guest that may run.
pub fn text(
    model: &Model,
    memory: &GuestBytes<'_>,
    place: Place,
) -> Result<text_check::TextReport, InspectError> {
    text_check::check(&Running::at(model, memory, place)).map_err(InspectError::Memory)
}

/// The same looked at again in a guest that stands still, if it still runs the same kernel.
pub fn confirm(
    model: &Model,
    guest: &StillGuest<'_>,
    place: Place,
    report: text_check::TextReport,
) -> Result<TextReport, InspectError> {
    let kernel = Running::find(model, guest, guest.vcpus()).map_err(InspectError::NotFound)?;
    if kernel.place() != place {
        return Err(InspectError::Changed);
    }
    let report = text_check::confirm(&kernel, report).map_err(InspectError::Memory)?;
    Ok(report::text(&kernel, &report))
}
