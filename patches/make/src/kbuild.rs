//! The kernel's own build system, asked for what it would do, and to make a module.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::MakeError;
use crate::run::{absolute, read, run, text, write};
use crate::skeleton;
use crate::symvers::Symvers;
use crate::words::commands;

/// One section for each function and object. Two of one section can be assembled without relocations between them, and the
/// order of sections says nothing.
const SECTIONS: &str = "KCFLAGS=-ffunction-sections -fdata-sections";

/// What the patches for realtime kernels add to a source, and no other source has: the `-rt58` of upstream's names of releases.
const REALTIME: &str = "localversion-rt";

/// Options of the compiler that are not for us: what a file depends on is written to where kbuild keeps it, and comments
/// only make the output longer.
const DROPPED: [&str; 2] = ["-Wp,-MMD,", "-fverbose-asm"];

/// A stock kernel, as Debian's packages have it.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The folder of its headers: `usr/src/linux-headers-RELEASE`, with the packages that it depends on beside it.
    pub headers: PathBuf,
    /// The folder of its whole source.
    pub source: PathBuf,
    /// The compiler that the kernel was built with: `gcc-12`.
    pub compiler: String,
}

/// How a file of the kernel is compiled.
#[derive(Debug)]
pub(crate) struct Compilation<'a> {
    kernel: &'a Kernel,
    source: PathBuf,
    unit: String,
    /// Compiler and options, up to where the output is named.
    words: Vec<String>,
    /// The module that the file is a part of: `None` for the kernel itself.
    pub(crate) module: Option<String>,
}

impl Kernel {
    /// The kernel of these headers and this source, with the compiler that the headers name if none is given.
    pub fn new(headers: &Path, source: &Path, compiler: Option<&str>) -> Result<Self, MakeError> {
        let compiler = compiler.map_or_else(|| compiler_of(headers), |compiler| Ok(compiler.to_owned()))?;
        let kernel = Self { headers: headers.to_owned(), source: source.to_owned(), compiler };
        let (source_version, headers_version) = (kernel.source_version()?, kernel.headers_version()?);
        if source_version != headers_version {
            let Self { headers, source: source_folder, .. } = kernel;
            return Err(MakeError::Versions { source_folder, source_version, headers, headers_version });
        }
        let release = kernel.release()?;
        // The patches leave the version as it is.
        if is_realtime(&release) && !kernel.source.join(REALTIME).exists() {
            return Err(MakeError::NotRealtime { release, source_folder: kernel.source });
        }
        Ok(kernel)
    }

    /// The release that the headers are for, as `uname -r` prints it.
    pub fn release(&self) -> Result<String, MakeError> {
        value(&self.headers.join("include/generated/utsrelease.h"), "#define UTS_RELEASE ", "release")
    }

    /// What the kernel is built upon, as `6.1.170`: its source has that in the first lines of its makefile.
    fn source_version(&self) -> Result<String, MakeError> {
        let part = |name| value(&self.source.join("Makefile"), name, "version of a kernel");
        Ok(format!("{}.{}.{}", part("VERSION = ")?, part("PATCHLEVEL = ")?, part("SUBLEVEL = ")?))
    }

    fn headers_version(&self) -> Result<String, MakeError> {
        let path = self.headers.join("include/generated/uapi/linux/version.h");
        let part =
            |name: &str| value(&path, &format!("#define LINUX_VERSION_{name} "), "version of a kernel");
        Ok(format!("{}.{}.{}", part("MAJOR")?, part("PATCHLEVEL")?, part("SUBLEVEL")?))
    }

    /// What the kernel and its modules export.
    pub(crate) fn exported(&self) -> Result<Symvers, MakeError> {
        Ok(Symvers::parse(&text(&read(&self.headers.join("Module.symvers"))?)))
    }

    /// Asks for the command that compiles `unit`, a path from the top of the source.
    ///
    /// The source is given to kbuild as if it were a module of somebody's outside of the tree: then nothing of the kernel
    /// has to be configured or built before. Which options a file gets is a matter of the makefiles on the way to it, and
    /// those are the same.
    pub(crate) fn compilation(&self, unit: &str) -> Result<Compilation<'_>, MakeError> {
        let (headers, source) = (absolute(&self.headers)?, absolute(&self.source)?);
        let goal = Path::new(unit).with_extension("s");
        let mut make = Command::new("make");
        make.arg("--dry-run").arg("-C").arg(&source).arg(format!("O={}", headers.display()));
        make.arg(format!("M={}", source.display()))
            .arg(format!("CC={}", self.compiler))
            .args(["V=1", SECTIONS]);
        let said = run(make.arg(&goal), &format!("ask the kernel's makefiles how {unit} is compiled"))?;
        // A command can go on behind the end of a line.
        let said = text(&said.stdout).replace("\\\n", " ");
        let wanted = |words: &Vec<String>| {
            words.first() == Some(&self.compiler) && words.iter().any(|word| Path::new(word).ends_with(&goal))
        };
        let found = said.lines().flat_map(commands).find(wanted);
        let words = found.ok_or_else(|| MakeError::NotCompiled { unit: unit.to_owned() })?;

        // Folders are given as if they were below the source, which they are already.
        let (top, twice) = (source.display(), format!("{0}/{0}/", source.display()));
        let words = words.into_iter().take_while(|word| word != "-S");
        let words: Vec<String> = words
            .filter(|word| !DROPPED.iter().any(|start| word.starts_with(start)))
            .map(|word| word.replace(&twice, &format!("{top}/")))
            .map(|word| {
                let is_path = word.starts_with("-DKBUILD_MODFILE=");
                if is_path { word.replace(&format!("{top}/"), "") } else { word }
            })
            .collect();
        let named = words.iter().find_map(|word| word.strip_prefix("-DKBUILD_MODNAME="));
        let module = named.map(|name| name.trim_matches('"').to_owned());
        let module = module.filter(|_| words.iter().any(|word| word == "-DMODULE"));
        Ok(Compilation { kernel: self, source, unit: unit.to_owned(), words, module })
    }

    /// Makes the module `name` of what was kept of each file, in `folder`, with room for redirected returns if it is to have `stubs`.
    /// Returns what was said.
    pub(crate) fn make_module(
        &self,
        folder: &Path,
        name: &str,
        parts: &[String],
        namespaces: &[&str],
        stubs: bool,
    ) -> Result<String, MakeError> {
        for (index, assembly) in parts.iter().enumerate() {
            let part = folder.join(skeleton::part(index));
            write(&part.with_extension("s"), assembly)?;
            write(&part.with_extension("c"), &skeleton::part_source(index))?;
        }
        let main = folder.join(skeleton::MAIN).with_extension("c");
        write(&main, &skeleton::main_source(namespaces, stubs))?;
        write(&folder.join("Kbuild"), &skeleton::kbuild(name, parts.len()))?;
        let mut make = Command::new("make");
        make.arg("-C").arg(&self.headers).arg(format!("M={}", folder.display()));
        make.arg(format!("CC={}", self.compiler));
        // Symbols that the kernel does not export are found later, by somebody else. Its types are not for a module that
        // nobody traces by them.
        // Debug information would have the folder's name in it, and with that the build-id; nobody in a guest reads it.
        make.args(["KCFLAGS=-g0", "KBUILD_MODPOST_WARN=1", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
        let said = run(&mut make, &format!("make the module {name}"))?;
        let mut strip = Command::new("strip");
        strip.arg("--strip-debug").arg(folder.join(format!("{name}.ko")));
        run(&mut strip, &format!("take debug information out of {name}.ko"))?;
        Ok(text(&said.stderr))
    }
}

impl Compilation<'_> {
    /// Compiles the unit with the files below `changed` instead of the source's own. Returns the assembly, and which of `paths`,
    /// all of which are below `changed`, the compiler has read.
    pub(crate) fn assembly<'p>(
        &self,
        changed: &Path,
        paths: &[&'p str],
    ) -> Result<(String, BTreeSet<&'p str>), MakeError> {
        let (output, read_list) = (changed.join("unit.s"), changed.join("unit.d"));
        let folder = Path::new(&self.unit).parent().unwrap_or_else(|| Path::new(""));
        let mut gcc = Command::new(&self.kernel.compiler);
        gcc.current_dir(&self.kernel.headers);
        // A file is looked for beside the one that includes it, then here.
        gcc.arg("-iquote").arg(changed.join(folder)).arg("-iquote").arg(self.source.join(folder));
        let mut words = self.words.iter().skip(1).peekable();
        while let Some(word) = words.next() {
            let folder = match word.as_str() {
                "-I" => words.peek().map(|next| next.as_str()),
                word => word.strip_prefix("-I"),
            };
            let below = folder.and_then(|folder| Path::new(folder).strip_prefix(&self.source).ok());
            if let Some(replaced) = below.map(|below| changed.join(below)).filter(|folder| folder.is_dir()) {
                gcc.arg(format!("-I{}", replaced.display()));
            }
            gcc.arg(word);
        }
        gcc.arg(format!("-fmacro-prefix-map={}/=", changed.display())).arg("-g0");
        gcc.arg("-MD").arg("-MF").arg(&read_list).arg("-S").arg("-o").arg(&output);
        gcc.arg(changed.join(&self.unit));
        run(&mut gcc, &format!("compile {}", self.unit))?;
        let list = text(&read(&read_list)?);
        let files: BTreeSet<&Path> = list.split_whitespace().map(Path::new).collect();
        // The source's own beside the changed one would be a mixture of both.
        if let Some(path) = paths.iter().find(|path| files.contains(&*self.source.join(path))) {
            return Err(MakeError::ReadTwice { path: (*path).to_owned(), unit: self.unit.clone() });
        }
        let is_read = |path: &&&str| files.contains(&*changed.join(path));
        Ok((text(&read(&output)?), paths.iter().filter(is_read).copied().collect()))
    }
}

/// Whether a release has `rt` among its words, as Debian's `6.1.0-47-rt-amd64` and upstream's `6.1.158-rt58` have.
fn is_realtime(release: &str) -> bool {
    let mut numbers = release.split('-').filter_map(|word| word.strip_prefix("rt"));
    numbers.any(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The compiler that the kernel of these headers was built with.
fn compiler_of(headers: &Path) -> Result<String, MakeError> {
    let text =
        value(&headers.join("include/config/auto.conf"), "CONFIG_CC_VERSION_TEXT=", "name of a compiler")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// What stands behind `name` at the beginning of a line, without quotes.
fn value(path: &Path, name: &str, what: &'static str) -> Result<String, MakeError> {
    let text = text(&read(path)?);
    let found = text.lines().find_map(|line| line.strip_prefix(name));
    let found = found.map(|value| value.trim().trim_matches('"')).filter(|value| !value.is_empty());
    found.map(str::to_owned).ok_or_else(|| MakeError::NotSaid { path: path.to_owned(), what })
}
