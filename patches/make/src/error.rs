//! Why no module is made.

use std::path::PathBuf;

/// What is in the way, and what the author can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MakeError {
    /// A file or folder cannot be used.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A program does not start.
    #[error("`{program}` does not start; is it installed and in PATH?")]
    Start {
        /// Which one.
        program: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A program has failed.
    #[error("cannot {what}: `{program}` ended with {status}; its last words:\n{said}")]
    Failed {
        /// What was to be done.
        what: String,
        /// Which one.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it wrote.
        said: String,
    },
    /// The fix is no patch of this source.
    #[error("{} cannot be used: {why}", patch.display())]
    Patch {
        /// Its file.
        patch: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The headers are those of another version than the source.
    #[error("the source {} is {source_version}, and the headers {} are {headers_version}; get those of one version", source_folder.display(), headers.display())]
    Versions {
        /// The source.
        source_folder: PathBuf,
        /// Its version.
        source_version: String,
        /// The headers.
        headers: PathBuf,
        /// Their version.
        headers_version: String,
    },
    /// The kernel is a realtime one, and the source is that of the others.
    #[error(
        "{release} is a realtime kernel, and the source {} has no localversion-rt, so the patches for realtime kernels are not \
         in it; apply those of the packaging of this version (debian/patches-rt, in the order of its file `series`)",
        source_folder.display()
    )]
    NotRealtime {
        /// The kernel's release.
        release: String,
        /// The source.
        source_folder: PathBuf,
    },
    /// A file of headers or source lacks what is read there.
    #[error("{} has no {what}; name the folder of a kernel's package", path.display())]
    NotSaid {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        what: &'static str,
    },
    /// A name that cannot be that of a file or module.
    #[error("`{name}` is no name for {what}")]
    Name {
        /// The name.
        name: String,
        /// What it should name.
        what: &'static str,
    },
    /// The kernel's build system has no command for the file.
    #[error(
        "the kernel's build system does not compile {unit} in this configuration, so this kernel has no code of it: take it \
         out of the fix, or name with --unit the file that includes it"
    )]
    NotCompiled {
        /// The file.
        unit: String,
    },
    /// It is assembly.
    #[error("{unit} is assembly: only functions in C can be replaced")]
    Assembly {
        /// The file.
        unit: String,
    },
    /// A changed file is not what the compiler reads.
    #[error("{path} is changed, and compiling {} does not read it; name with --unit the file that includes it, or take it out of the fix", .units.join(", "))]
    NotRead {
        /// The changed file.
        path: String,
        /// The files that are compiled.
        units: Vec<String>,
    },
    /// The compiler reads a changed file as it was, beside the changed one.
    #[error(
        "compiling {unit} reads {path} by two ways, of which one leads to the file as it was; make the module by hand"
    )]
    ReadTwice {
        /// The changed file.
        path: String,
        /// The file that is compiled.
        unit: String,
    },
    /// gcc's output has a line that is not understood.
    #[error("line {number} of gcc's output is not understood: {why}: {line}")]
    Listing {
        /// Its number.
        number: usize,
        /// The line.
        line: String,
        /// Why.
        why: String,
    },
    /// There is nothing to compile.
    #[error("the fix changes no .c file; name with --unit the file to compile that includes what it changes")]
    NoUnit,
    /// There is nothing to replace.
    #[error("by what gcc makes of {}, the fix changes no function at all; if it changes other files that include what it \
         changes, name those with --unit", .units.join(", "))]
    NoFunction {
        /// The files that were compiled.
        units: Vec<String>,
    },
    /// Several files have a function of that name.
    #[error("the fix changes a `{name}` in each of {}: make a patch for each file", .units.join(", "))]
    Several {
        /// The function.
        name: String,
        /// The files.
        units: Vec<String>,
    },
    /// One name stands for two things in one module.
    #[error("`{name}` of {first} is another than that of {second}: make a patch for each file")]
    TwoMeanings {
        /// The symbol.
        name: String,
        /// The one file.
        first: String,
        /// The other.
        second: String,
    },
    /// The symbols of a module are needed.
    #[error(
        "{unit} is a part of the module {module}: name with --ko the file of that module, {module}.ko of this kernel"
    )]
    NoModule {
        /// The module.
        module: String,
        /// The file.
        unit: String,
    },
    /// Nobody has the symbol.
    #[error(
        "`{name}`, which {unit} refers to, is nowhere in the kernel: if the fix adds it in another file, let that be in the \
         fix, and compiled; else source, configuration and kernel are not of one version"
    )]
    NotInKernel {
        /// The symbol.
        name: String,
        /// Who refers to it.
        unit: String,
    },
    /// Several have that name, and which is meant cannot be found out.
    #[error(
        "which of the kernel's {count} symbols `{name}` {unit} means cannot be told; a manifest written by hand can say it"
    )]
    Undecided {
        /// The symbol.
        name: String,
        /// How many have the name.
        count: usize,
        /// Who refers to it.
        unit: String,
    },
    /// A named function has no code of its own.
    #[error(
        "`{name}` has no code of its own: gcc puts it into its callers, so name those with --function; {}",
        by_gcc(.changed)
    )]
    Inlined {
        /// The function.
        name: String,
        /// What the fix changes.
        changed: Vec<String>,
    },
    /// A named function is not in the kernel.
    #[error("`{name}` is not in the original, so there is nothing to replace; what calls it brings it along")]
    New {
        /// The function.
        name: String,
    },
    /// A named function is another one's second name.
    #[error("`{name}` is another name of `{target}`: name that with --function")]
    Alias {
        /// The name.
        name: String,
        /// What it stands for.
        target: String,
    },
    /// A named function is gcc's variant of one.
    #[error(
        "`{name}` is a variant that gcc has made for callers in the same file: name those callers with --function"
    )]
    Variant {
        /// The function.
        name: String,
    },
    /// A function that runs only when the kernel or a module starts or ends, or code that refers to such.
    #[error("`{name}` is in {section}, which serves only while the kernel or a module starts or ends{}", used_by(.by.as_deref()))]
    Init {
        /// The function or object.
        name: String,
        /// Its section.
        section: String,
        /// Who refers to it.
        by: Option<String>,
    },
    /// The low-level entry code cannot be replaced.
    #[error("`{name}` is in {section}: code on the way into the kernel cannot be replaced")]
    Entry {
        /// The function.
        name: String,
        /// Its section.
        section: String,
    },
    /// A named function is as it was.
    #[error("the fix does not change `{name}`; {}", by_gcc(.changed))]
    Unchanged {
        /// The function.
        name: String,
        /// What the fix changes.
        changed: Vec<String>,
    },
    /// Other functions come out different, too.
    #[error(
        "the fix changes the code of {} as well: name each with --function to replace it, or, where only gcc's \
         choices have changed and the old code is as good, with --leave",
        list(.functions)
    )]
    AlsoChanged {
        /// Which ones.
        functions: Vec<String>,
    },
    /// Objects begin with something else.
    #[error("the fix changes what {} has in it from the start; a patch of code does not reach that", list(.objects))]
    DataChanged {
        /// Which ones.
        objects: Vec<String>,
    },
    /// There are new objects with a state.
    #[error("the fix adds data that the kernel writes to: {}; a patch of code has no place for it", list(.objects))]
    NewData {
        /// Which ones.
        objects: Vec<String>,
    },
    /// A static object may be any of several.
    #[error("which of the original's `{base}` is `{name}`, which `{by}` refers to, cannot be told")]
    Ambiguous {
        /// The object.
        name: String,
        /// Its name without number.
        base: String,
        /// Who refers to it.
        by: String,
    },
    /// Assembly outside of functions defines something new.
    #[error("`{by}` refers to `{name}`, which assembly outside of functions adds")]
    NewAssembly {
        /// The symbol.
        name: String,
        /// Who refers to it.
        by: String,
    },
    /// More than there is ever need for.
    #[error("{count} {what}: {limit} is the limit")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The module that came out is not as it should be.
    #[error("the module has come out wrong: {why}")]
    Module {
        /// What is wrong.
        why: String,
    },
    /// The module that came out cannot be read.
    #[error("the module has come out wrong")]
    Elf(#[from] lucos_lup::module::ModuleError),
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn by_gcc(names: &[String]) -> String {
    match names {
        [] => "by what gcc makes of it, the fix changes no function at all".to_owned(),
        names => format!("by what gcc makes of it, the fix changes {}", list(names)),
    }
}

fn used_by(by: Option<&str>) -> String {
    by.map(|by| format!("; `{by}` refers to it")).unwrap_or_default()
}
