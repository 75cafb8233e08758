//! Every bound on what an image or a guest can make us do. None is near what a real kernel needs.

/// A bound, and a smaller one for fuzzing: what a guest makes up there is endless, and each input should take no time.
const fn bound(real: usize, fuzzing: usize) -> usize {
    if cfg!(fuzzing) { fuzzing } else { real }
}

/// Bytes of an unpacked kernel. Debian's are 52 to 64 MiB; a small file can claim to unpack to any size.
pub const IMAGE_BYTES: usize = 512 << 20;

/// Symbols of one kernel. Debian's generic kernel has 170,000.
pub const SYMBOLS: usize = 4 << 20;

/// Types in one BTF section. Debian's kernels have 100,000.
pub const TYPES: usize = 4 << 20;

/// How deep structures may be nested in each other, or one type be another's alias.
pub const TYPE_DEPTH: usize = 32;

/// Translations of 4 KiB pages that one address space remembers, and of 2 MiB pages: the kernel's own data and its tasks are in
/// large pages, 2 GiB of them here, and of the stacks, which are not, each is looked at once.
pub const CACHED_PAGES: usize = 1 << 12;
/// See [`CACHED_PAGES`].
pub const CACHED_LARGE_PAGES: usize = 1 << 10;

/// Bytes of one piece of text out of the guest: a path has 4096.
pub const TEXT_BYTES: usize = 4096;

/// Processors of a guest: what Linux is built for at most (`CONFIG_NR_CPUS` of Debian's kernels).
pub const CPUS: u32 = 8192;

/// Modules of one kernel. Debian builds 4,000.
pub const MODULES: usize = bound(8192, 8);

/// Bytes of one module's text: modules are within 2 GiB altogether, and the largest of Debian's has 5 MiB.
pub const MODULE_BYTES: u64 = 256 << 20;

/// Entries of the unwind tables of all modules together. The largest of Debian's has 200,000.
pub const MODULE_ORCS: usize = bound(4 << 20, 256);

/// Symbols of all modules together. The largest of Debian's has 40,000.
pub const MODULE_SYMBOLS: usize = bound(1 << 18, 256);

/// Bytes of their names, all together. Debian's have 20 to 30 each, and none has more than 511 (`KSYM_NAME_LEN`), which would be
/// 400 MiB where each is no UTF-8 and becomes three.
pub const MODULE_NAME_BYTES: usize = bound(16 << 20, 1 << 12);

/// Entries of the tables of sites of all modules together. Debian's 4,000 have 600,000.
pub const MODULE_SITES: usize = bound(1 << 21, 256);

/// Sections of all modules together: one has some 50.
pub const MODULE_SECTIONS: usize = 1 << 17;

/// Bytes of a section's name. The longest that is looked for has 17.
pub const SECTION_NAME_BYTES: usize = 64;

/// Tasks of one guest. With its stack a task takes 24 KiB, so that these would take 6 GiB.
pub const TASKS: usize = bound(1 << 18, 32);

/// Links that are followed for them, all lists together: each task is on one list of threads, and may be a process on the list of
/// those. A guest that makes up many processes with one list of threads would have it followed for each.
pub const TASK_LINKS: u64 = 2 * TASKS as u64;

/// Frames in the code of one patch that are followed until they are left: one for each task that there may be, 25 MiB of them. If
/// there are more, that is a doubt, which counts against the patch.
pub const HOLDERS: usize = bound(TASKS, 16);

/// Doubts of one look at all stacks that are put into words: whoever reads as many knows that something is wrong with the guest.
pub const DOUBTS: usize = 32;

/// Frames of one stack. A kernel stack has 16 KiB, and a frame at least 8 bytes.
pub const FRAMES: usize = 2048;

/// Places of the text that differ for no known reason and are listed.
pub const UNEXPLAINED: usize = 1000;

/// Probes of one guest. Tracing every function by probes would take some 50,000.
pub const PROBES: usize = bound(1 << 16, 32);

/// Owners of one probe that are named, programs that run at it, and tasks that have opened it: whoever reads that removes them one
/// by one.
pub const PROBE_OWNERS: usize = 8;

/// Pieces of code that BPF has made. A guest with much of it has some thousand.
pub const BPF_TEXTS: usize = bound(1 << 14, 32);

/// Bytes of one: a program of a million instructions, which is the most, has some 5 MiB.
pub const BPF_TEXT_BYTES: u64 = 16 << 20;

/// Packs that it is in, of 2 MiB each.
pub const BPF_PACKS: usize = bound(256, 2);

/// Chunks of 64 bytes of them that are looked at one by one, all packs together: what has a name and what is empty is passed over.
/// A thousand programs without a name take some 10,000; a guest that lists one pack many times would have it read as often.
pub const BPF_CHUNKS: u64 = if cfg!(fuzzing) { 1 << 10 } else { 1 << 18 };

/// Returns of one task that tracers have taken over: the function graph tracer has room for some 50 to 500.
pub const HOOKS: u64 = 4096;

/// Trampolines of ftrace: one for each of its users, who are few.
pub const TRAMPOLINES: usize = bound(4096, 8);

/// Frames, records of tracers and followed instructions that one round of a census looks at, all stacks together: 100,000
/// tasks with 40 frames each. It keeps a guest that makes up stacks from being looked at for ever.
pub const CENSUS_STEPS: u64 = if cfg!(fuzzing) { 1 << 12 } else { 1 << 22 };

/// Frames that are kept from one census to the next, all stacks together: 32 MiB of them. 16,000 tasks have 250,000.
pub const KEPT_FRAMES: usize = 1 << 20;

/// Instructions of one function that are followed: the longest of Debian's have 20,000.
pub const FOLLOWED_INSTRUCTIONS: usize = bound(1 << 16, 512);

/// Bytes of one function that are followed: the longest of Debian's have 100,000.
pub const FUNCTION_BYTES: u64 = 1 << 18;

/// How many bytes of code that is read count as much as one frame or instruction that is looked at.
pub const BYTES_PER_STEP: u64 = 64;

/// Tasks whose counts are read again and again until nothing happens in between: those that have just run. Thousands do not
/// within one round.
pub const LIKELY: usize = 1 << 12;

/// Ways through the static keys at a function's beginning. Each key makes one into two, and two keys in a row are rare.
pub const PLACES: usize = 8;

/// Bytes of code that a jump may be written over: four of one instruction and all of the longest one.
pub const PLACE_BYTES: usize = 19;

/// Bytes of all memory of one module with a function that is replaced: all of it is searched. The largest of Debian's have less
/// than half of that.
pub const SEARCHED_MODULE_BYTES: usize = 64 << 20;

/// Bytes of a patch's module. Those of distributors' live patches have up to some 500 KiB.
pub const PATCH_MODULE_BYTES: usize = 16 << 20;
/// Sections of it: a file has 16 bits for them, and one for each function and object makes thousands.
pub const PATCH_SECTIONS: usize = 1 << 16;
/// Symbols of it.
pub const PATCH_SYMBOLS: usize = 1 << 16;
/// Relocations of it.
pub const PATCH_RELOCATIONS: usize = 1 << 20;

/// Instructions that the addresses of a patch's module are followed over, all together: most are handed to a function some
/// instructions later.
pub const FOLLOWED_ADDRESSES: usize = 1 << 18;

/// Functions that the guest has live-patched by itself: a distributor's patches change some hundred.
pub const LIVEPATCHES: usize = bound(4096, 8);

/// Frames whose return is redirected at a time: as many as a module has stubs.
pub const REDIRECTED: usize = lucos_lup::module::stubs::COUNT;

/// Patches of one guest. A distributor makes some fifty in the life of a kernel.
pub const PATCHES: usize = 256;

/// Readings of guest memory that are kept to be compared in a pause: with 200 modules and 50 functions there are some 3,000.
pub const READS: usize = bound(1 << 15, 256);
/// Bytes of them: a patch's module and the functions that it replaces have some 100 KiB. To compare these takes a millisecond.
pub const READ_BYTES: usize = bound(8 << 20, 1 << 16);
