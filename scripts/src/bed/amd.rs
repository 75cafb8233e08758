//! The AMD host: QEMU's TCG with SVM and nested paging.
//!
//! Debian's generic kernel, because its cloud kernel has no 9p, by which the host sees this machine's folders.
//! What was measured for the time until the command starts (2 cores, kernel 6.1): XZ unpacked by the emulated
//! processor costs 2.5 s, hence the ELF kernel; mitigations cost 0.5 s, hence the command line.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::emulator::Emulator;
use super::initramfs::Recipe;
use super::machine::{self, RunFolder};
use super::scratch::Scratch;
use super::{Cpu, Ending, HostSpec, Input, Sink, target_folder, vmlinux};
use crate::cache::Cache;
use crate::images;
use crate::kernels::{self, Flavour, Kernel, Need, Series};
use crate::packages::{self, Group};
use crate::progress;

const MEMORY_MIB: u32 = 4096;
/// One: with two, which QEMU runs in a thread each, guests of any VMM fall over now and then, in a triple fault or a
/// stack that repeated exceptions have filled: one boot in ten with QEMU 7.2 and 10.0, one in forty with 11.1. With one,
/// none of a hundred. In one thread together they are too slow. Guests have as many vCPUs as they like, which share it.
const PROCESSORS: u32 = 1;
/// Sparse: it costs only what is written to it.
const SCRATCH_GIB: u64 = 16;

const MODULES: [&str; 6] = ["virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "9p", "9pnet_virtio"];
const TAGS: [&str; 3] = ["bin", "cache", "modules"];

/// `tsc=reliable`: the host kernel finds the TSCs unsynchronized, because TCG's processors run at their own pace,
/// although all read the same counter. It then falls back to the HPET, which makes every clock read in the host a
/// slow exit to QEMU and takes the stable clock away from KVM and its guests.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on no_timer_check tsc=reliable";

/// Runs `argv` on it.
pub(super) fn run(spec: &HostSpec, argv: &[OsString], sink: &mut Sink) -> Result<Ending> {
    packages::ensure(&[Group::Amd])?;
    let cache = Cache::open()?;
    let kernel = kernels::find(&cache, &Need::newest(spec.kernel.unwrap_or(Series::V6_1), Flavour::Generic))?;
    let emulator = Emulator::fetch(&cache)?;
    let root = images::host_root(&cache)?;
    let boot = boot_files(&cache, &kernel)?;
    let bin = target_folder().join(&spec.profile);
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;

    let folder = RunFolder::new(&cache)?;
    let scratch = Scratch::new(spec, argv, folder.path())?;
    for image in &spec.images {
        let name = Path::new("images").join(&image.name);
        match image.path.strip_prefix(cache.root()) {
            Ok(within) => scratch.link(&name, &Path::new("/lucos/cache").join(within))?,
            Err(_) => scratch.add(&name, &image.path)?,
        }
    }
    let mut machine = Qemu::new(spec);
    machine.disk("root", &root, "readonly=on");
    machine.share("bin", &bin, true);
    machine.share("cache", cache.root(), true);
    machine.share("modules", &kernel.modules.join("lib/modules"), true);
    if let Some(out) = &spec.out {
        fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        scratch.write("tags", b"out\n")?;
        machine.share("out", out, false);
    }
    machine.disk("scratch", scratch.finish(SCRATCH_GIB)?, "cache=unsafe,discard=unmap");
    machine.arguments.extend(["-kernel".into(), boot.kernel.into(), "-initrd".into(), boot.initramfs.into()]);

    progress::note(format!("starting an AMD host with kernel {} in QEMU", kernel.release));
    let (program, arguments) = emulator.command();
    let mut qemu = machine::bound_to_us(&program);
    qemu.current_dir(folder.path()).args(arguments).args(machine.arguments);
    machine::supervise(spec, qemu, &folder, sink)
}

/// What QEMU loads.
#[derive(Debug)]
struct Boot {
    kernel: PathBuf,
    initramfs: PathBuf,
}

fn boot_files(cache: &Cache, kernel: &Kernel) -> Result<Boot> {
    let recipe = Recipe { machine: Cpu::Amd, kernel, modules: &MODULES, tags: &TAGS };
    let initramfs = cache.entry("bed/amd-initramfs", &recipe.inputs()?, |folder| {
        let place = folder.join("initramfs");
        fs::write(&place, recipe.build()?).with_context(|| format!("cannot write {}", place.display()))
    })?;
    let elf = match vmlinux::unpacked(cache, kernel) {
        Ok(elf) => elf,
        // The packed kernel does as well, only later.
        Err(error) => {
            progress::note(format!("the host's kernel will unpack itself, which takes longer: {error:#}"));
            kernel.vmlinuz.clone()
        }
    };
    Ok(Boot { kernel: elf, initramfs: initramfs.join("initramfs") })
}

/// The processor: everything that QEMU emulates, less XSAVE and what needs it (AVX, protection keys), whose state is one
/// more thing for it to get wrong between host and guest. Five-level paging, which makes the nested page tables follow suit
/// at each TLB miss of a guest, is only for who asks for it. `max` alone has SVM, but says so of nested paging only when
/// asked.
const PROCESSOR: &str = "max,+svm,+npt,-xsave,-avx,-avx2,-f16c,-fma,-pku";

/// The arguments of one QEMU.
#[derive(Debug)]
struct Qemu {
    arguments: Vec<OsString>,
}

impl Qemu {
    fn new(spec: &HostSpec) -> Self {
        let mut qemu = Self { arguments: Vec::new() };
        qemu.add("-nodefaults -no-user-config -no-reboot -display none -machine pc -rtc base=utc");
        qemu.add("-accel tcg,thread=multi");
        let five_levels = if spec.five_levels { "on" } else { "off" };
        qemu.add(&format!("-cpu {PROCESSOR},la57={five_levels}"));
        qemu.add(&format!("-smp {}", spec.smp.unwrap_or(PROCESSORS)));
        qemu.add(&format!("-m {}", spec.memory_mib.unwrap_or(MEMORY_MIB)));
        qemu.add(&format!("-serial file:{}", machine::CONSOLE));
        qemu.add("-device virtio-serial-pci -device virtio-rng-pci");
        for (number, channel) in [(1, machine::OUT), (2, machine::ERR), (3, machine::STATUS)] {
            qemu.add(&format!("-chardev file,id={channel},path={channel}"));
            qemu.add(&format!("-device virtserialport,chardev={channel},nr={number},name=lucos.{channel}"));
        }
        match spec.input {
            Input::Nothing => {}
            Input::Ours => {
                qemu.add(
                    "-chardev stdio,id=in,signal=off -device virtserialport,chardev=in,nr=4,name=lucos.in",
                );
            }
            Input::Terminal => {
                qemu.add("-chardev stdio,id=in,signal=off -device virtconsole,chardev=in,nr=5");
            }
        }
        qemu.arguments.extend(["-append".into(), COMMAND_LINE.into()]);
        qemu
    }

    /// Adds words that hold no blanks.
    fn add(&mut self, words: &str) {
        self.arguments.extend(words.split(' ').map(OsString::from));
    }

    fn disk(&mut self, id: &str, file: &Path, options: &str) {
        let drive = joined(&format!("if=none,id={id},format=raw,{options},file="), file);
        self.arguments.extend(["-drive".into(), drive]);
        self.add(&format!("-device virtio-blk-pci,drive={id}"));
    }

    fn share(&mut self, tag: &str, folder: &Path, readonly: bool) {
        let readonly = if readonly { "on" } else { "off" };
        let options = format!("local,id={tag},security_model=none,multidevs=remap,readonly={readonly},path=");
        self.arguments.extend(["-fsdev".into(), joined(&options, folder)]);
        self.add(&format!("-device virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    }
}

/// QEMU splits options at commas, and reads two of them as one that is meant.
fn joined(options: &str, path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = options.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        bytes.extend(std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(joined("a=1,file=", Path::new("/x,y")), "a=1,file=/x,,y");
    }
}
