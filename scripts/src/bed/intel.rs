//! The Intel host: Bochs with VMX and EPT.
//!
//! Bochs interprets every instruction, so what counts is how few there are until the command starts. Debian's cloud
//! kernel is up in 25 s where the generic one takes 3 minutes: its payload is LZ4 or zstd instead of XZ, it probes
//! few devices, and it has `kvm-intel` all the same.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::initramfs::Recipe;
use super::machine::{self, RunFolder};
use super::scratch::{CYLINDER, Scratch, programs};
use super::{Cpu, Ending, HostSpec, Input, Sink, quote, target_folder};
use crate::cache::{Cache, Inputs};
use crate::command::{command, run as run_program};
use crate::images;
use crate::kernels::{self, Flavour, Kernel, Need, Series};
use crate::packages::{self, Group};
use crate::progress;

const MEMORY_MIB: u32 = 1024;
const PROCESSORS: u32 = 1;
const SCRATCH_GIB: u64 = 4;

const MODULES: [&str; 2] = ["ata_piix", "sd_mod"];

const GRUB: &str = "set timeout=0\n\
    menuentry host {\n\
    linux /boot/vmlinuz console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on\n\
    initrd /boot/initramfs\n\
    }\n";

/// Runs `argv` on it.
pub(super) fn run(spec: &HostSpec, argv: &[OsString], sink: &mut Sink) -> Result<Ending> {
    if spec.input != Input::Nothing {
        bail!(
            "the Intel host has no way to pass on input; use the AMD host, or leave --input and --terminal out"
        );
    }
    packages::ensure(&[Group::Intel])?;
    let cache = Cache::open()?;
    let kernel = kernels::find(&cache, &Need::newest(spec.kernel.unwrap_or(Series::V6_1), Flavour::Cloud))?;
    let root = padded(&cache, &images::host_root(&cache)?)?;
    let medium = boot_medium(&cache, &kernel)?;

    let folder = RunFolder::new(&cache)?;
    let scratch = Scratch::new(spec, argv, folder.path())?;
    for file in programs(&target_folder().join(&spec.profile)) {
        let name = file.file_name().unwrap_or_default().to_owned();
        scratch.add(&Path::new("bin").join(name), &file)?;
    }
    for image in &spec.images {
        scratch.add(&Path::new("images").join(&image.name), &image.path)?;
    }
    scratch.folder("out")?;
    let disk = scratch.finish(SCRATCH_GIB)?;
    let settings = settings(spec, &root, disk, &medium);
    let place = folder.path().join("bochsrc");
    fs::write(&place, settings).with_context(|| format!("cannot write {}", place.display()))?;
    // Debian's Bochs has its debugger compiled in, which waits for a word at the start.
    let word = folder.path().join("debugger");
    fs::write(&word, "c\n").with_context(|| format!("cannot write {}", word.display()))?;

    progress::note(format!(
        "starting an Intel host with kernel {} in Bochs, which interprets every instruction: half a minute",
        kernel.release
    ));
    // Its only display that needs no window wants a terminal, which `script` makes.
    let mut bochs: Vec<OsString> = Vec::new();
    let inner = machine::bound_to_us("bochs");
    bochs.push(inner.get_program().to_owned());
    bochs.extend(inner.get_args().map(OsString::from));
    bochs.extend(["-q", "-f", "bochsrc", "-rc", "debugger"].map(OsString::from));
    let mut line = OsString::from("exec ");
    line.push(quote::words(&bochs));
    let mut script = machine::bound_to_us("script");
    script.current_dir(folder.path()).env("TERM", "vt100").env("SHELL", "/bin/sh");
    script.args(["-q", "-e", "-c"]).arg(line).arg(machine::EMULATOR);
    let ending = machine::supervise(spec, script, &folder, sink)?;
    if let Some(out) = &spec.out {
        fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        scratch.collect(out)?;
    }
    Ok(ending)
}

/// A CD with GRUB, the kernel and the initramfs: the one thing that Bochs' BIOS starts without more ado.
fn boot_medium(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let recipe = Recipe { machine: Cpu::Intel, kernel, modules: &MODULES, tags: &[] };
    let inputs = recipe.inputs()?.with("grub", GRUB);
    let place = cache.entry("bed/intel-medium", &inputs, |folder| {
        let step =
            progress::Step::start(format!("making the Intel host's boot medium for {}", kernel.release));
        let tree =
            tempfile::tempdir_in(cache.root().join("tmp")).context("cannot make a folder for the medium")?;
        let boot = tree.path().join("boot");
        let fill = || -> Result<()> {
            fs::create_dir_all(boot.join("grub"))?;
            fs::write(boot.join("grub/grub.cfg"), GRUB)?;
            fs::write(boot.join("initramfs"), recipe.build()?)?;
            fs::copy(&kernel.vmlinuz, boot.join("vmlinuz"))?;
            Ok(())
        };
        fill().with_context(|| format!("cannot fill {}", boot.display()))?;
        let mut mkrescue = command("grub-mkrescue");
        // No locales, fonts and themes: the BIOS reads all of it through an emulated drive.
        mkrescue
            .args(["--locales=", "--fonts=", "--themes=", "-o"])
            .arg(folder.join("host.iso"))
            .arg(tree.path());
        run_program(&mut mkrescue, "make the boot medium")?;
        step.done();
        Ok(())
    })?;
    Ok(place.join("host.iso"))
}

/// The userland as a disk that Bochs reads to its end.
fn padded(cache: &Cache, root: &Path) -> Result<PathBuf> {
    let size = fs::metadata(root).with_context(|| format!("cannot find {}", root.display()))?.len();
    if size.is_multiple_of(CYLINDER) {
        return Ok(root.to_owned());
    }
    let inputs =
        Inputs::new().with("root", root.as_os_str().as_encoded_bytes()).with("size", size.to_le_bytes());
    let place = cache.entry("bed/intel-root", &inputs, |folder| {
        let copy = folder.join("root.img");
        let mut cp = command("cp");
        cp.args(["--sparse=always", "--reflink=auto"]).arg(root).arg(&copy);
        run_program(&mut cp, "copy the host's userland")?;
        let file = fs::File::options().write(true).open(&copy).context("cannot open the copied userland")?;
        file.set_len(size.next_multiple_of(CYLINDER)).context("cannot lengthen the copied userland")
    })?;
    Ok(place.join("root.img"))
}

/// The `bochsrc`; paths in it are relative to the run's folder where they can be.
fn settings(spec: &HostSpec, root: &Path, scratch: &Path, medium: &Path) -> String {
    let memory = spec.memory_mib.unwrap_or(MEMORY_MIB);
    let count = spec.smp.unwrap_or(PROCESSORS);
    let (model, ips) = (&spec.bochs.cpu_model, spec.bochs.ips);
    let (out, err, status, console) = (machine::OUT, machine::ERR, machine::STATUS, machine::CONSOLE);
    let [root, scratch, medium] = [root, scratch, medium].map(|path| path.display().to_string());
    // `volatile` keeps writes to the shared userland (there are none: it is mounted read-only) out of its file.
    // `sync=none`: the clock counts instructions, so that a slow or busy machine cannot make timers fire early.
    format!(
        "megs: {memory}\n\
         romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
         vgaromimage: file=/usr/share/vgabios/vgabios.bin\n\
         cpu: model={model}, count={count}, ips={ips}, reset_on_triple_fault=0\n\
         ata0-master: type=disk, mode=volatile, path=\"{root}\", journal=\"root.redolog\", cylinders=0\n\
         ata0-slave: type=disk, mode=flat, path=\"{scratch}\", cylinders=0\n\
         ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15\n\
         ata1-master: type=cdrom, path=\"{medium}\", status=inserted\n\
         boot: cdrom\n\
         com1: enabled=1, mode=file, dev={console}\n\
         com2: enabled=1, mode=file, dev={out}\n\
         com3: enabled=1, mode=file, dev={err}\n\
         com4: enabled=1, mode=file, dev={status}\n\
         display_library: term\n\
         clock: sync=none, time0=utc\n\
         log: bochs.log\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         info: action=ignore\n"
    )
}
