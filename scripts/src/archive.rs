//! Debian's archive, looked at through an apt root of our own inside the cache.
//!
//! The machine's package lists stay untouched, no rights are needed, and the answers are those of one Debian on any
//! machine that has apt. Verification is apt's own: signed lists, and the digests in them.

mod sources;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use sources::BACKPORTS;
pub use sources::{EMULATOR_SUITE, Mirrors, SUITE};

use crate::cache::{Cache, Lock, write_atomically};
use crate::command::{command, run};
use crate::progress::Step;

/// Names the mirrors on a machine whose own sources have none: the main archive, then the security archive.
pub const MIRROR_VARIABLE: &str = "LUCOS_DEBIAN_MIRROR";
/// See [`MIRROR_VARIABLE`].
pub const SECURITY_VARIABLE: &str = "LUCOS_DEBIAN_SECURITY_MIRROR";

/// Package lists younger than this are not fetched again unless something is missing from them.
const LISTS_AGE: Duration = Duration::from_hours(24);

/// How an index of packages ends, and one of what they are built from.
const BINARIES: &str = "Packages";
/// See [`BINARIES`].
const SOURCES: &str = "Sources";

/// One version of one package in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its Debian version.
    pub version: String,
}

/// The private apt root; its lock is held as long as it is open.
#[derive(Debug)]
pub struct Archive {
    suite: &'static str,
    root: PathBuf,
    sources: PathBuf,
    acquire: Vec<String>,
    _lock: Lock,
}

impl Archive {
    /// Opens [`SUITE`].
    pub fn open(cache: &Cache) -> Result<Self> {
        Self::of_suite(cache, SUITE)
    }

    /// Opens what the packages of [`SUITE`] are built from, in a root of its own: hardly anybody needs it.
    pub fn of_sources(cache: &Cache) -> Result<Self> {
        Self::at(cache, SUITE, format!("apt-{SUITE}-sources"), |mirrors| {
            mirrors.sources_list(SUITE).replace("deb [", "deb-src [")
        })
    }

    /// Sets up an apt root in the cache for one suite on the mirrors that this machine uses.
    pub fn of_suite(cache: &Cache, suite: &'static str) -> Result<Self> {
        Self::at(cache, suite, format!("apt-{suite}"), |mirrors| mirrors.sources_list(suite))
    }

    fn at(
        cache: &Cache,
        suite: &'static str,
        name: String,
        list: impl FnOnce(&Mirrors) -> String,
    ) -> Result<Self> {
        let lock = cache.lock(&name)?;
        let mirrors = mirrors()?;
        let root = cache.root().join(name);
        for folder in ["lists/partial", "archives/partial", "log", "etc"] {
            fs::create_dir_all(root.join(folder))
                .with_context(|| format!("cannot make {}", root.join(folder).display()))?;
        }
        let archive = Self {
            suite,
            sources: root.join("sources.list"),
            root,
            acquire: acquire_options()?,
            _lock: lock,
        };
        let text = list(&mirrors);
        if fs::read_to_string(&archive.sources).unwrap_or_default() != text {
            write_atomically(&archive.sources, &text)?;
            // The lists that are there belong to another mirror.
            let _ = fs::remove_file(archive.stamp());
        }
        write_atomically(&archive.root.join("status"), "")?;
        write_atomically(&archive.config(), archive.settings())?;
        Ok(archive)
    }

    /// The `sources.list` of the suites in use, for tools that set up an apt of their own.
    pub fn sources(&self) -> &Path {
        &self.sources
    }

    /// The machine's own settings for downloads (proxies, timeouts), as apt configuration lines.
    pub fn acquire_options(&self) -> &[String] {
        &self.acquire
    }

    /// Fetches the package lists if they are older than a day; `now` fetches them whatever their age.
    pub fn update(&self, now: bool) -> Result<()> {
        let age = fs::metadata(self.stamp()).and_then(|stamp| stamp.modified()).map(|time| time.elapsed());
        if !now && matches!(age, Ok(Ok(age)) if age < LISTS_AGE) {
            return Ok(());
        }
        let step = Step::start(format!("fetching the package lists of Debian {}", self.suite));
        run(
            self.apt("apt-get").arg("update"),
            "fetch Debian's package lists; check the network and the mirror",
        )?;
        write_atomically(&self.stamp(), "")?;
        step.done();
        Ok(())
    }

    /// Every version of every package whose name begins with `prefix`.
    pub fn list(&self, prefix: &str) -> Result<Vec<Package>> {
        let names = run(self.apt("apt-cache").args(["pkgnames", prefix]), "list Debian's packages")?;
        let names: Vec<&str> = names.lines().collect();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let table = run(self.apt("apt-cache").arg("madison").args(names), "list the versions of packages")?;
        Ok(parse_madison(&table, BINARIES))
    }

    /// Every version of the source package `name`.
    pub fn list_sources(&self, name: &str) -> Result<Vec<Package>> {
        let mut madison = self.apt("apt-cache");
        let table = run(madison.args(["madison", name]), "list the versions of a source package")?;
        Ok(parse_madison(&table, SOURCES))
    }

    /// What the newest version of a package depends on, of packages that there are.
    pub fn dependencies(&self, name: &str) -> Result<Vec<String>> {
        let what = format!("ask Debian's archive what {name} depends on");
        Ok(parse_depends(&run(self.apt("apt-cache").args(["depends", name]), &what)?))
    }

    /// Downloads one package into `folder` and returns the path of its file.
    pub fn download(&self, name: &str, version: Option<&str>, folder: &Path) -> Result<PathBuf> {
        let wanted = version.map_or_else(|| name.to_owned(), |version| format!("{name}={version}"));
        let what = format!("download {wanted} from Debian's archive");
        run(self.apt("apt-get").args(["download", &wanted]).current_dir(folder), &what)?;
        let is_it = |path: &PathBuf| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.starts_with(&format!("{name}_")) && file.ends_with(".deb")
        };
        fs::read_dir(folder)?.flatten().map(|entry| entry.path()).find(is_it).with_context(|| {
            format!("apt-get downloaded {wanted}, but no such file is in {}", folder.display())
        })
    }

    /// Downloads what Debian has added to the source of a package, `debian.tar.xz`, into `folder`, and returns its path.
    pub fn download_packaging(&self, name: &str, version: &str, folder: &Path) -> Result<PathBuf> {
        let mut source = self.apt("apt-get");
        source.args(["source", "--download-only", "--diff-only", &format!("{name}={version}")]);
        run(source.current_dir(folder), &format!("download the packaging of {name} {version}"))?;
        let is_it = |path: &PathBuf| path.to_string_lossy().ends_with(".debian.tar.xz");
        let found = fs::read_dir(folder)?.flatten().map(|entry| entry.path()).find(is_it);
        found.with_context(|| format!("apt-get downloaded no packaging of {name} to {}", folder.display()))
    }

    /// Downloads the newest version of a package, with lists that are fresh enough to know it.
    pub fn fetch(&self, name: &str, folder: &Path) -> Result<PathBuf> {
        self.update(false)?;
        if let Ok(deb) = self.download(name, None, folder) {
            return Ok(deb);
        }
        self.update(true)?;
        self.download(name, None, folder)
    }

    /// Downloads the newest version of a package with all that it depends on, as if nothing were installed.
    pub fn fetch_whole(&self, name: &str, folder: &Path) -> Result<Vec<PathBuf>> {
        self.update(false)?;
        let download = || -> Result<()> {
            let mut install = self.apt("apt-get");
            install.args(["install", "--yes", "--download-only", "--no-install-recommends", "-o"]);
            install.arg(format!("Dir::Cache::archives={}", folder.display())).arg(name);
            run(&mut install, &format!("download {name} and what it needs from Debian's archive")).map(drop)
        };
        fs::create_dir_all(folder.join("partial"))
            .with_context(|| format!("cannot make {}", folder.display()))?;
        if download().is_err() {
            self.update(true)?;
            download()?;
        }
        let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
        Ok(fs::read_dir(folder)?.flatten().map(|entry| entry.path()).filter(is_package).collect())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = command(program);
        command.env("APT_CONFIG", self.config());
        command
    }

    fn config(&self) -> PathBuf {
        self.root.join("apt.conf")
    }

    fn stamp(&self) -> PathBuf {
        self.root.join("updated")
    }

    /// `APT_CONFIG` is read before the machine's own configuration, which it replaces: hooks in there (desktop updaters,
    /// removal of downloads in containers) are not meant for us.
    fn settings(&self) -> String {
        let root = self.root.display();
        let mut text = format!(
            "Dir::Etc::main \"/dev/null\";\nDir::Etc::parts \"{root}/etc\";\n\
             Dir::Etc::sourcelist \"{root}/sources.list\";\nDir::Etc::sourceparts \"{root}/etc\";\n\
             Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"{root}/etc\";\n\
             Dir::State \"{root}\";\nDir::State::lists \"{root}/lists\";\nDir::State::status \"{root}/status\";\n\
             Dir::Cache \"{root}\";\nDir::Cache::archives \"{root}/archives\";\nDir::Log \"{root}/log\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\nAPT::Sandbox::User \"\";\n\
             APT::Update::Error-Mode \"any\";\nAcquire::Languages {{ \"none\"; }};\n"
        );
        // Nobody gets backports without asking for them (apt_preferences(5): NotAutomatic).
        if self.suite.ends_with(BACKPORTS) {
            let _ = writeln!(text, "APT::Default-Release \"{}\";", self.suite);
        }
        for option in &self.acquire {
            text.push_str(option);
            text.push('\n');
        }
        text
    }
}

/// Unpacks the files of a package, as any user.
pub fn unpack(deb: &Path, folder: &Path) -> Result<()> {
    run(command("dpkg-deb").arg("-x").arg(deb).arg(folder), &format!("unpack {}", deb.display()))?;
    // It gives the folder the age of the package, by which the cache would take it for what a killed build has left.
    let touch = || File::open(folder)?.set_modified(SystemTime::now());
    touch().with_context(|| format!("cannot set the time of {}", folder.display()))
}

fn mirrors() -> Result<Mirrors> {
    if let Ok(main) = std::env::var(MIRROR_VARIABLE) {
        let machine = Mirrors::of_machine(Path::new("/etc/apt"));
        let keyring = machine.and_then(|mirrors| mirrors.keyring);
        return Ok(Mirrors { main, security: std::env::var(SECURITY_VARIABLE).ok(), keyring });
    }
    let Some(mirrors) = Mirrors::of_machine(Path::new("/etc/apt")) else {
        bail!(
            "no Debian mirror among the apt sources of this machine (/etc/apt/sources.list, sources.list.d); \
             name one in {MIRROR_VARIABLE} (and {SECURITY_VARIABLE}), and install debian-archive-keyring"
        );
    };
    Ok(mirrors)
}

/// The settings of this machine's apt that say how to download.
fn acquire_options() -> Result<Vec<String>> {
    let dump = run(command("apt-config").arg("dump"), "read this machine's apt configuration")?;
    Ok(keep_acquire(&dump))
}

fn keep_acquire(dump: &str) -> Vec<String> {
    let ours =
        ["Acquire::IndexTargets", "Acquire::Changelogs", "Acquire::Languages", "Acquire::CompressionTypes"];
    let wanted = |line: &&str| {
        line.starts_with("Acquire::")
            && !line.ends_with(" \"\";")
            && !ours.iter().any(|o| line.starts_with(o))
    };
    dump.lines().filter(wanted).map(str::to_owned).collect()
}

/// Parses `apt-cache madison`: `name | version | source`, one line for each place that has it.
fn parse_madison(table: &str, index: &str) -> Vec<Package> {
    let mut packages: Vec<Package> = Vec::new();
    for line in table.lines() {
        let mut cells = line.split('|').map(str::trim);
        let (Some(name), Some(version), Some(source)) = (cells.next(), cells.next(), cells.next()) else {
            continue;
        };
        let package = Package { name: name.to_owned(), version: version.to_owned() };
        if source.ends_with(index) && !packages.contains(&package) {
            packages.push(package);
        }
    }
    packages
}

/// Parses `apt-cache depends`: a bar marks the first of two that one of is enough, angle brackets what is no package.
fn parse_depends(text: &str) -> Vec<String> {
    let names =
        text.lines().filter_map(|line| line.trim_start().trim_start_matches('|').strip_prefix("Depends: "));
    names.filter(|name| !name.starts_with('<')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read() {
        let text = "linux-headers-a\n  Depends: linux-headers-common\n |Depends: linux-image-a\n\
                    \x20 Depends: <linux-image-a-unsigned>\n  Suggests: b\n";
        assert_eq!(parse_depends(text), ["linux-headers-common", "linux-image-a"]);
    }

    #[test]
    fn the_version_table_is_read_once_per_version() {
        let table = "linux-image-a | 6.1.2-1 | http://m/security s/main amd64 Packages\n\
                     linux-image-a | 6.1.2-1 | http://m/debian s/main amd64 Packages\n\
                     linux-image-a | 6.1.1-1 | http://m/debian s/main amd64 Packages\n\
                     linux-image-a | 6.1.1-1 | http://m/debian s/main Sources\n";
        let versions: Vec<_> =
            parse_madison(table, BINARIES).into_iter().map(|package| package.version).collect();
        assert_eq!(versions, ["6.1.2-1", "6.1.1-1"]);
        assert_eq!(parse_madison(table, SOURCES).len(), 1);
    }

    #[test]
    fn only_download_settings_are_taken_over() {
        let dump = "APT::Update::Post-Invoke:: \"rm\";\nAcquire \"\";\nAcquire::http::Proxy \"http://p:1\";\n\
                    Acquire::Languages:: \"de\";\nAcquire::Check-Date \"false\";\n";
        assert_eq!(
            keep_acquire(dump),
            ["Acquire::http::Proxy \"http://p:1\";", "Acquire::Check-Date \"false\";"]
        );
    }
}
