//! A patch, made of a fix of the kernel's source.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lucos_lup::Patch;
use lucos_lup::manifest::{self, Draining, Manifest, ModuleInfo, PatchName, Policy};
use lucos_lup::module::StockModule;
use lucos_make::{Kernel, Made, MakeError, Request, changes};

use crate::exit::Failure;
use crate::files;
use crate::inspect;
use crate::stock::Stock;

/// Make a patch of a fix of the kernel's source; it is not signed yet
///
/// Compiles what the fix changes, as the kernel's own makefiles would, and makes a module of the functions that come out
/// different. All else that they refer to is the kernel's own. Needs the kernel's compiler, make, patch, and what the headers
/// depend on.
#[derive(Debug, Args)]
pub struct Make {
    /// The kernel that is to be patched: the image that guests boot
    #[arg(long, value_name = "VMLINUZ")]
    kernel: PathBuf,
    /// Its headers, as the package linux-headers-RELEASE has them, with the packages beside it that it depends on
    #[arg(long, value_name = "DIR")]
    headers: PathBuf,
    /// Its whole source, of the same version, and for a realtime kernel with the patches for those; nothing is written there
    #[arg(long, value_name = "DIR")]
    source: PathBuf,
    /// A module of it, as its package has it, if the fix is in one; may be repeated
    #[arg(long, value_name = "FILE")]
    ko: Vec<PathBuf>,
    /// The fix, as a patch of the source with paths like `b/ipc/util.c`; without it, the functions are compiled as they are
    #[arg(long, value_name = "FILE", required_unless_present_all(["unit", "function"]))]
    patch: Option<PathBuf>,
    /// The name of the patch, up to 49 characters; the module is called lucos_ and the same with _ for each -
    #[arg(long)]
    name: PatchName,
    /// One line about the patch
    #[arg(long, value_name = "TEXT")]
    summary: String,
    /// A CVE id that it fixes; may be repeated
    #[arg(long, value_name = "CVE")]
    fixes: Vec<String>,
    /// A patch that must be applied before; the source must have its changes; may be repeated
    #[arg(long, value_name = "NAME")]
    requires: Vec<PatchName>,
    /// A file to compile, from the top of the source; may be repeated [default: each .c file of the fix]
    #[arg(long, value_name = "PATH")]
    unit: Vec<String>,
    /// A function to replace; may be repeated [default: all that come out different]
    #[arg(long, value_name = "NAME")]
    function: Vec<String>,
    /// A function that comes out different and is not replaced, as its old code is as good; may be repeated
    #[arg(long, value_name = "NAME")]
    leave: Vec<String>,
    /// When it may be applied
    #[arg(long, value_name = "POLICY")]
    consistency: Consistency,
    /// With `coexist`: why old and new code may run side by side
    #[arg(long, value_name = "WHY", required_if_eq("consistency", "coexist"))]
    coexist_is_safe: Option<String>,
    /// Fill old code with traps once nobody is in it
    #[arg(long)]
    tombstones: bool,
    /// What is done about threads that are in old code when it is applied
    #[arg(long, value_name = "HOW", default_value = "watch")]
    draining: How,
    /// The compiler [default: the one that the headers name]
    #[arg(long, value_name = "PROGRAM")]
    compiler: Option<String>,
    /// Where the patch goes, in place of what is there; its name and .lup if it is not given
    #[arg(long, short, visible_alias = "out", value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The policies of docs/patch-format.md that are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Consistency {
    /// At once, while others are in old code
    Coexist,
    /// When nobody is in it
    Quiescent,
}

/// The ways of docs/patch-format.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    /// They are watched until the last has left
    Watch,
    /// Their return addresses are replaced, so that each leaving is noticed at once
    Redirect,
}

/// Makes it, and shows what is in it, as `inspect` does.
pub fn run(asked: &Make) -> Result<String, Failure> {
    let stock = Stock::read(&asked.kernel, &asked.ko)?;
    let kernel = Kernel::new(&asked.headers, &asked.source, asked.compiler.as_deref())?;
    stock.check_headers(&asked.headers, &kernel.release()?)?;
    let request = Request {
        module: format!("lucos_{}", asked.name.as_str().replace('-', "_")),
        units: asked.unit.clone(),
        changes: asked.patch.as_deref().map_or(Ok(Vec::new()), |patch| changes(&asked.source, patch))?,
        functions: asked.function.clone(),
        leave: asked.leave.clone(),
        stubs: asked.draining == How::Redirect,
    };
    let modules = stock.modules()?;
    let made = lucos_make::make(&kernel, &stock.tables(&modules), &request)?;
    let manifest = manifest(asked, &request.module, &stock, &made, &modules)?;
    let file = Patch::pack(&manifest, &made.module).map_err(Failure::refused)?;
    let output = asked.output.clone().unwrap_or_else(|| format!("{}.lup", asked.name.as_str()).into());
    files::replace(&output, &file)?;
    let mut text = inspect::show(&output, &file)?;
    for name in &made.along {
        text = format!("{text}brought along: {name}\n");
    }
    for warning in &made.warnings {
        text = format!("{text}warning: {warning}\n");
    }
    Ok(format!("{text}{}: {} bytes, not signed\n", output.display(), file.len()))
}

/// What the patch changes, and how it is applied.
fn manifest(
    asked: &Make,
    module: &str,
    stock: &Stock,
    made: &Made,
    modules: &[StockModule<'_>],
) -> Result<Manifest, Failure> {
    let functions =
        made.functions.iter().map(|replacement| stock.function(&replacement.old, &replacement.new, modules));
    Ok(Manifest {
        name: asked.name.clone(),
        summary: asked.summary.clone(),
        fixes: asked.fixes.clone(),
        kernels: vec![stock.kernel()?],
        module: ModuleInfo { name: module.to_owned(), symbols: made.symbols.clone() },
        functions: functions.collect::<Result<_, _>>()?,
        policy: Policy {
            consistency: match asked.consistency {
                Consistency::Coexist => manifest::Consistency::Coexist,
                Consistency::Quiescent => manifest::Consistency::Quiescent,
            },
            coexist_is_safe: asked.coexist_is_safe.clone(),
            draining: match asked.draining {
                How::Watch => Draining::Watch,
                How::Redirect => Draining::Redirect,
            },
            tombstones: asked.tombstones,
        },
        requires: asked.requires.clone(),
    })
}

impl From<MakeError> for Failure {
    fn from(error: MakeError) -> Self {
        match error {
            MakeError::File { .. } | MakeError::Start { .. } => Self::failed(error),
            _ => Self::refused(error),
        }
    }
}
