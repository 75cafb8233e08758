//! Where the kernel of the image is in a running guest.

use super::paging::PageTables;
use super::space::{AddressSpace, ReadError};
use crate::addr::Gva;
use crate::guest::{Memory, Vcpu};
use crate::image::Image;

/// CR0.PG.
const PAGING: u64 = 1 << 31;
/// KASLR moves the kernel by multiples of this (`CONFIG_PHYSICAL_ALIGN`).
const STEP: u64 = 2 << 20;
/// And by less than this (`arch/x86/include/asm/page_64_types.h`, `KERNEL_IMAGE_SIZE`).
const RANGE: u64 = 1 << 30;
/// With page-table isolation each process has two topmost tables, side by side: the second, for user space, differs in
/// this bit of its address (arch/x86/mm/pti.c, `PTI_PGTABLE_SWITCH_BIT`). The kernel's own is the first.
const USER_TABLES: u64 = 1 << 12;

/// Why the kernel of the image was not found in the guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotFound {
    /// No vCPU has its kernel set up yet.
    #[error(
        "no vCPU has a kernel's system call entry yet: the guest is still in its boot loader, or no Linux"
    )]
    NotUp,
    /// It is set up, but not as this kernel would.
    #[error("the system call entry {lstar} is not where this kernel could have it (linked for {linked})")]
    OtherKernel {
        /// MSR LSTAR.
        lstar: Gva,
        /// Where the image has it.
        linked: Gva,
    },
    /// What is there is not what is in the image.
    #[error("the guest's memory does not hold the image's kernel at {at}: {what} differs")]
    Differs {
        /// Where.
        at: Gva,
        /// What was compared.
        what: &'static str,
    },
    /// It cannot be read there.
    #[error("the kernel's {what} cannot be read")]
    Unreadable {
        /// What was to be read.
        what: &'static str,
        /// Why not.
        source: ReadError,
    },
    /// The image lacks a symbol that is needed to find it.
    #[error("the image has no one symbol `{0}`")]
    NoSymbol(&'static str),
}

/// A kernel's place. Two places are the same only if no other kernel was started in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// How far KASLR has moved it, in bytes, from where it was linked for.
    pub distance: u64,
    /// Its own page tables, by which all of it is mapped.
    pub tables: PageTables,
}

/// Finds the kernel by what its vCPUs have set up, and checks that it is the image's.
pub fn locate(image: &Image, memory: &impl Memory, vcpus: &[Vcpu]) -> Result<Place, NotFound> {
    let linked = symbol(image, "entry_SYSCALL_64")?;
    let mut first = None;
    for vcpu in vcpus.iter().filter(|vcpu| vcpu.started && vcpu.cr0 & PAGING != 0 && vcpu.lstar != 0) {
        let found = locate_by(image, memory, vcpu, linked);
        if found.is_ok() {
            return found;
        }
        first = first.or(Some(found));
    }
    first.unwrap_or(Err(NotFound::NotUp))
}

fn locate_by(image: &Image, memory: &impl Memory, vcpu: &Vcpu, linked: Gva) -> Result<Place, NotFound> {
    let lstar = Gva(vcpu.lstar);
    let other = NotFound::OtherKernel { lstar, linked };
    let distance = lstar.offset_from(linked).ok_or_else(|| other.clone())?;
    if !distance.is_multiple_of(STEP) || distance >= RANGE {
        return Err(other);
    }
    let moved = |name| symbol(image, name).map(|at| at.wrapping_add(distance));
    // The tables of whatever process runs lead to the kernel's own, unless they are those of its user space.
    let own = moved("init_top_pgt")?;
    let by = |cr3| AddressSpace::new(memory, PageTables::new(cr3, vcpu.cr4)).physical(own);
    let root = by(vcpu.cr3)
        .or_else(|_| by(vcpu.cr3 & !USER_TABLES))
        .map_err(|source| NotFound::Unreadable { what: "topmost page table", source })?;
    let tables = PageTables { root, levels: PageTables::new(0, vcpu.cr4).levels };
    let space = AddressSpace::new(memory, tables);
    // Nobody writes to either: the name with the version, and the notes with the build-id.
    compare(image, &space, distance, "linux_banner", symbol(image, "linux_banner")?, image.banner().len())?;
    let notes = image.sections().find(|(name, _, _)| *name == ".notes");
    if let Some((_, at, len)) = notes {
        compare(image, &space, distance, "the build-id", at, len)?;
    }
    Ok(Place { distance, tables })
}

fn symbol(image: &Image, name: &'static str) -> Result<Gva, NotFound> {
    image.symbols().only(name).map(|symbol| symbol.address).ok_or(NotFound::NoSymbol(name))
}

fn compare(
    image: &Image,
    space: &AddressSpace<'_, impl Memory>,
    distance: u64,
    what: &'static str,
    linked: Gva,
    len: usize,
) -> Result<(), NotFound> {
    let at = linked.wrapping_add(distance);
    let mut found = vec![0; len];
    space.read(at, &mut found).map_err(|source| NotFound::Unreadable { what, source })?;
    if image.moved_bytes(linked, len, distance) == Some(found) {
        Ok(())
    } else {
        Err(NotFound::Differs { at, what })
    }
}
