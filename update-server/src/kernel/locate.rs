//! Where the kernel of the image is in a running guest.

use super::paging::PageTables;
use super::space::{AddressSpace, ReadError};
use crate::addr::Gva;
use crate::guest::{Memory, Vcpu};
use crate::image::Image;

/// CR0.PG.
const PAGING: u64 = 1 << 31;
/// RFLAGS.IF.
const INTERRUPTS: u64 = 1 << 9;
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
    /// Some vCPUs run this kernel, and another one does not.
    #[error("vCPU {vcpu} does not run the kernel that others run: {why}")]
    Elsewhere {
        /// The one that does not.
        vcpu: u32,
        /// What was found by it.
        why: String,
    },
    /// It is there, but has not got far enough to be told from another start of itself.
    #[error(
        "the kernel is still starting, or about to leave: it has no interrupt table or stack canary of its own"
    )]
    Starting,
    /// The image lacks a symbol that is needed to find it.
    #[error("the image has no one symbol `{0}`")]
    NoSymbol(&'static str),
}

/// A kernel's place. Another start of the same kernel may be at the same place
/// ([`super::generation::Generation`] tells them apart).
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
    let found = witnesses(vcpus).map(|vcpu| (vcpu.id, locate_by(image, memory, vcpu, linked)));
    let found: Vec<_> = found.collect();
    let first = found.iter().find_map(|(_, found)| found.as_ref().ok()).copied();
    let Some(place) = first else {
        return found.into_iter().next().map_or(Err(NotFound::NotUp), |(_, found)| found);
    };
    check(image, memory, place)?;
    for (vcpu, found) in found {
        match found {
            Ok(other) if other == place => {}
            Ok(_) => return Err(NotFound::Elsewhere { vcpu, why: "it is at another place".to_owned() }),
            Err(error) => return Err(NotFound::Elsewhere { vcpu, why: error.to_string() }),
        }
    }
    Ok(place)
}

/// The vCPUs that tell which kernel runs.
///
/// Those that a kernel has put aside for good do not: they stand where the kernel before this one has left them, with its
/// page tables and, after a kdump, all of its memory. Where there are no others, they do.
pub(super) fn witnesses(vcpus: &[Vcpu]) -> impl Iterator<Item = &Vcpu> {
    let ready = |vcpu: &&Vcpu| vcpu.started && vcpu.cr0 & PAGING != 0 && vcpu.lstar != 0;
    let any_awake = vcpus.iter().filter(ready).any(|vcpu| !is_parked(vcpu));
    vcpus.iter().filter(ready).filter(move |vcpu| !any_awake || !is_parked(vcpu))
}

/// Whether nothing but an NMI or INIT wakes it up (`stop_this_cpu`, `crash_nmi_callback`, `native_play_dead`: `arch/x86/kernel`).
fn is_parked(vcpu: &Vcpu) -> bool {
    vcpu.halted && vcpu.rflags & INTERRUPTS == 0
}

/// Whether the tables of `vcpu` lead to those of the kernel at `place`, which are at `own`.
pub(super) fn is_run_by(memory: &impl Memory, place: Place, own: Gva, vcpu: &Vcpu) -> bool {
    tables(memory, vcpu, own) == Ok(place.tables)
}

fn locate_by(image: &Image, memory: &impl Memory, vcpu: &Vcpu, linked: Gva) -> Result<Place, NotFound> {
    let lstar = Gva(vcpu.lstar);
    let other = NotFound::OtherKernel { lstar, linked };
    let distance = lstar.offset_from(linked).ok_or_else(|| other.clone())?;
    if !distance.is_multiple_of(STEP) || distance >= RANGE {
        return Err(other);
    }
    let own = symbol(image, "init_top_pgt")?.wrapping_add(distance);
    Ok(Place { distance, tables: tables(memory, vcpu, own)? })
}

/// The kernel's own tables, which are at `own`.
fn tables(memory: &impl Memory, vcpu: &Vcpu, own: Gva) -> Result<PageTables, NotFound> {
    // The tables of whatever process runs lead to the kernel's own, unless they are those of its user space.
    let by = |cr3| PageTables::new(cr3, vcpu.cr4).translate(memory, own);
    let root = by(vcpu.cr3)
        .or_else(|_| by(vcpu.cr3 & !USER_TABLES))
        .map_err(|source| NotFound::Unreadable { what: "topmost page table", source })?;
    Ok(PageTables { root, levels: PageTables::new(0, vcpu.cr4).levels })
}

/// Holds what nobody writes to against the image.
fn check(image: &Image, memory: &impl Memory, place: Place) -> Result<(), NotFound> {
    let space = AddressSpace::new(memory, place.tables);
    let distance = place.distance;
    // The name with the version, and the notes with the build-id.
    compare(image, &space, distance, "linux_banner", symbol(image, "linux_banner")?, image.banner().len())?;
    let notes = image.sections().find(|(name, _, _)| *name == ".notes");
    if let Some((_, at, len)) = notes {
        compare(image, &space, distance, "the build-id", at, len)?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_put_aside_is_asked_only_if_there_is_nobody_else() {
        let vcpu = |id, halted, rflags| Vcpu {
            id,
            started: true,
            halted,
            rflags,
            cr0: PAGING,
            lstar: 1,
            ..Vcpu::default()
        };
        let ids = |vcpus: &[Vcpu]| witnesses(vcpus).map(|vcpu| vcpu.id).collect::<Vec<_>>();
        let (parked, idle, busy) = (vcpu(0, true, 0), vcpu(1, true, INTERRUPTS), vcpu(2, false, 0));
        assert_eq!(ids(&[parked.clone(), idle.clone(), busy.clone()]), [1, 2]);
        assert_eq!(ids(std::slice::from_ref(&parked)), [0]);
        let waiting = Vcpu { started: false, ..busy.clone() };
        let real_mode = Vcpu { cr0: 0, ..busy.clone() };
        let boot_loader = Vcpu { lstar: 0, ..busy };
        assert_eq!(ids(&[waiting, real_mode, boot_loader]), [] as [u32; 0]);
    }
}
