//! Reads the machine's own apt sources to learn which Debian mirror it uses and which keyring it trusts.
//!
//! Mirrors are a property of the machine (a company's proxy, a nearby mirror, a frozen snapshot), so none is
//! written down in this project.

use std::fs;
use std::path::{Path, PathBuf};

/// The release that the test bed's kernels and images come from, whatever the machine itself runs.
pub const SUITE: &str = "bookworm";
/// Where the AMD host's emulator comes from.
pub const EMULATOR_SUITE: &str = "trixie-backports";
/// The ending of a suite that holds newer packages for the release it is named after.
pub(super) const BACKPORTS: &str = "-backports";

/// The names by which a main Debian archive can stand in a machine's sources.
const DEBIAN_SUITES: [&str; 11] = [
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "sid",
];

/// Where Debian's `debian-archive-keyring` package puts its keys, newest spelling first.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg"];

/// One enabled binary source of the machine, for one URI and one suite.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
    main: bool,
    signed_by: Option<PathBuf>,
}

/// The mirrors to use, in place of those that the machine's owner chose for its own release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    /// URI of the main archive.
    pub main: String,
    /// URI of the security archive, if the machine uses one.
    pub security: Option<String>,
    /// The keyring that signs both; `None` leaves the choice to apt's trusted keys.
    pub keyring: Option<PathBuf>,
}

impl Mirrors {
    /// Finds the Debian mirrors among the sources below `etc_apt` (normally `/etc/apt`).
    pub fn of_machine(etc_apt: &Path) -> Option<Self> {
        let mut sources = Vec::new();
        for path in source_files(etc_apt) {
            let text = fs::read_to_string(&path).unwrap_or_default();
            if path.extension().is_some_and(|extension| extension == "sources") {
                sources.extend(parse_deb822(&text));
            } else {
                sources.extend(parse_one_line(&text));
            }
        }
        choose(&sources, Path::is_file)
    }

    /// The text of a `sources.list` for a release, its updates and its security fixes, and its backports if `suite` is
    /// what they are called.
    pub fn sources_list(&self, suite: &str) -> String {
        let release = suite.strip_suffix(BACKPORTS).unwrap_or(suite);
        let keyring =
            self.keyring.as_ref().map(|path| format!(" signed-by={}", path.display())).unwrap_or_default();
        let line = |uri: &str, suite: String| format!("deb [arch=amd64{keyring}] {uri} {suite} main\n");
        let mut text = line(&self.main, release.to_owned());
        text.push_str(&line(&self.main, format!("{release}-updates")));
        if let Some(security) = &self.security {
            text.push_str(&line(security, format!("{release}-security")));
        }
        if release != suite {
            text.push_str(&line(&self.main, suite.to_owned()));
        }
        text
    }
}

/// Prefers a source that also offers `-updates`, and one signed by Debian's keyring: other archives call their
/// suites `stable` or `bookworm` too.
fn choose(sources: &[Source], exists: impl Fn(&Path) -> bool) -> Option<Mirrors> {
    let is_debian_key = |source: &Source| {
        source.signed_by.as_ref().is_some_and(|path| path.to_string_lossy().contains("debian-archive"))
    };
    let score = |source: &Source| {
        let updates = format!("{}-updates", source.suite);
        let has_updates = sources.iter().any(|other| other.uri == source.uri && other.suite == updates);
        u8::from(is_debian_key(source)) * 4
            + u8::from(has_updates) * 2
            + u8::from(source.uri.trim_end_matches('/').ends_with("debian"))
    };
    // Of equals the first one counts, as it does for apt; max_by_key would take the last.
    let main = sources
        .iter()
        .rev()
        .filter(|source| source.main && DEBIAN_SUITES.contains(&source.suite.as_str()))
        .max_by_key(|source| score(source))
        .filter(|source| score(source) > 0)?;
    let security = sources.iter().find(|source| {
        let base = source.suite.strip_suffix("-security").or_else(|| source.suite.strip_suffix("/updates"));
        source.main && base.is_some_and(|base| DEBIAN_SUITES.contains(&base))
    });
    let keyring = main
        .signed_by
        .clone()
        .filter(|path| exists(path))
        .or_else(|| KEYRINGS.map(PathBuf::from).into_iter().find(|path| exists(path)));
    Some(Mirrors { main: main.uri.clone(), security: security.map(|source| source.uri.clone()), keyring })
}

fn source_files(etc_apt: &Path) -> Vec<PathBuf> {
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(entries) = fs::read_dir(etc_apt.join("sources.list.d")) {
        let mut parts: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        parts.retain(|path| path.extension().is_some_and(|e| e == "list" || e == "sources"));
        parts.sort();
        files.extend(parts);
    }
    files
}

/// Parses the older format: `deb [options] URI SUITE COMPONENT...`.
fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let rest = line.strip_prefix("deb")?.strip_prefix(char::is_whitespace)?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by =
        options.split_whitespace().find_map(|option| option.strip_prefix("signed-by=")).map(path_of);
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?.to_owned(), words.next()?.to_owned());
    Some(Source { uri, suite, main: words.any(|word| word == "main"), signed_by: signed_by.flatten() })
}

/// Parses the deb822 format: stanzas of `Field: value`, continued by indented lines.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in stanzas(text) {
        let get = |name: &str| {
            let found = stanza.iter().find(|(field, _)| field.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.as_str()).unwrap_or_default()
        };
        let enabled = !["no", "false", "0", "off"].contains(&get("Enabled").to_ascii_lowercase().as_str());
        if !enabled || !get("Types").split_whitespace().any(|kind| kind == "deb") {
            continue;
        }
        for uri in get("URIs").split_whitespace() {
            for suite in get("Suites").split_whitespace() {
                sources.push(Source {
                    uri: uri.to_owned(),
                    suite: suite.to_owned(),
                    main: get("Components").split_whitespace().any(|word| word == "main"),
                    signed_by: path_of(get("Signed-By")),
                });
            }
        }
    }
    sources
}

fn stanzas(text: &str) -> Vec<Vec<(String, String)>> {
    let mut stanzas = vec![Vec::<(String, String)>::new()];
    for line in text.lines() {
        if line.starts_with('#') {
            continue;
        }
        let current = stanzas.len() - 1;
        if line.trim().is_empty() {
            stanzas.push(Vec::new());
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanzas[current].last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((field, value)) = line.split_once(':') {
            stanzas[current].push((field.trim().to_owned(), value.trim().to_owned()));
        }
    }
    stanzas
}

/// A `Signed-By` can also be a fingerprint or a whole key; only a path is of use here.
fn path_of(signed_by: &str) -> Option<PathBuf> {
    signed_by.split([',', ' ', '\n']).find(|part| part.starts_with('/')).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
# a comment
Types: deb deb-src
# another
URIs: http://mirror.example/debian
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp

Types: deb
URIs: http://mirror.example/debian-security/
Suites: trixie-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://other.example/
Suites: stable
Components: main
Enabled: no
";

    #[test]
    fn deb822_sources_are_understood() {
        let sources = parse_deb822(DEB822);
        assert_eq!(sources.len(), 3);
        let mirrors = choose(&sources, |_| true).unwrap();
        assert_eq!(mirrors.main, "http://mirror.example/debian");
        assert_eq!(mirrors.security.as_deref(), Some("http://mirror.example/debian-security/"));
        assert_eq!(mirrors.keyring, Some(PathBuf::from(KEYRINGS[0])));
    }

    #[test]
    fn one_line_sources_are_understood() {
        let sources = parse_one_line(
            "deb [arch=amd64 signed-by=/k/other.gpg] http://other.example/ stable main # theirs\n\
             #deb http://off.example/debian bookworm main\n\
             deb-src http://mirror.example/debian bookworm main\n\
             deb http://mirror.example/debian bookworm main contrib\n\
             deb http://mirror.example/debian bookworm-updates main\n\
             deb http://security.example/ bookworm-security main\n",
        );
        assert_eq!(sources.len(), 4);
        let mirrors = choose(&sources, |path| path == Path::new(KEYRINGS[1])).unwrap();
        assert_eq!(mirrors.main, "http://mirror.example/debian");
        assert_eq!(mirrors.security.as_deref(), Some("http://security.example/"));
        assert_eq!(mirrors.keyring, Some(PathBuf::from(KEYRINGS[1])));
    }

    #[test]
    fn a_machine_that_is_not_debian_has_no_mirror() {
        let ubuntu = parse_one_line("deb http://archive.example/ubuntu noble main universe");
        assert_eq!(choose(&ubuntu, |_| true), None);
        let other = parse_one_line("deb [signed-by=/k/other.gpg] http://other.example/ stable main");
        assert_eq!(choose(&other, |_| true), None);
    }

    #[test]
    fn the_list_names_the_suites_of_a_release() {
        let mirrors = Mirrors { main: "m".into(), security: Some("s".into()), keyring: Some("/k".into()) };
        assert_eq!(
            mirrors.sources_list(SUITE),
            "deb [arch=amd64 signed-by=/k] m bookworm main\n\
             deb [arch=amd64 signed-by=/k] m bookworm-updates main\n\
             deb [arch=amd64 signed-by=/k] s bookworm-security main\n"
        );
        let backports = mirrors.sources_list("trixie-backports");
        let suites: Vec<_> = backports.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
        assert_eq!(suites, ["trixie", "trixie-updates", "trixie-security", "trixie-backports"]);
    }
}
