//! What kernel is wanted, and which of those on offer is the best fit.

use std::cmp::Ordering;
use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::archive::Package;
use crate::version;

/// The kernel series that Debian 12 carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
pub enum Series {
    /// Debian 12's own.
    #[value(name = "6.1")]
    #[serde(rename = "6.1")]
    V6_1,
    /// Debian 13's, rebuilt for Debian 12.
    #[value(name = "6.12")]
    #[serde(rename = "6.12")]
    V6_12,
}

/// Debian's builds of one kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// For virtual machines: few drivers; NVMe and ext4 built in.
    Cloud,
    /// For any PC: everything is a module.
    Generic,
    /// The generic kernel with `PREEMPT_RT`.
    Rt,
}

/// A kernel asked for by need, because Debian drops old versions from its archive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Need {
    /// Which series.
    pub series: Series,
    /// Which build of it.
    pub flavour: Flavour,
    /// Only kernels older than this: a package version (`6.1.176-1`) or a release (`6.1.0-50-cloud-amd64`).
    pub older_than: Option<String>,
    /// Only the kernel with this package version.
    pub version: Option<String>,
}

/// One kernel package, with what its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The package.
    pub package: Package,
    /// What `uname -r` says: the package name without `linux-image-`.
    pub release: String,
    series: Series,
    flavour: Flavour,
}

impl Need {
    /// The newest kernel of this kind.
    pub fn newest(series: Series, flavour: Flavour) -> Self {
        Self { series, flavour, older_than: None, version: None }
    }

    /// The kernel of this kind whose package has this version. Debian's archive may have it no more.
    pub fn exactly(series: Series, flavour: Flavour, version: impl Into<String>) -> Self {
        Self { version: Some(version.into()), ..Self::newest(series, flavour) }
    }

    /// The newest kernel of this kind that is older than `version`.
    #[must_use]
    pub fn older_than(self, version: impl Into<String>) -> Self {
        Self { older_than: Some(version.into()), ..self }
    }

    /// Whether `offer` is of the series and flavour asked for, whatever its age.
    pub fn is_same_kind(&self, offer: &Offer) -> bool {
        offer.series == self.series && offer.flavour == self.flavour
    }

    /// The best of `offers`: the newest that fits.
    pub fn choose<'a>(&self, offers: &'a [Offer]) -> Option<&'a Offer> {
        let old_enough =
            |offer: &&Offer| self.older_than.as_ref().is_none_or(|bound| offer.age_against(bound).is_lt());
        let named = |offer: &&Offer| self.version.as_ref().is_none_or(|name| offer.package.version == *name);
        let fitting = offers.iter().filter(|offer| self.is_same_kind(offer)).filter(old_enough).filter(named);
        fitting.max_by(|a, b| a.newer(b))
    }
}

impl Offer {
    /// Reads the name of a package; `None` for meta packages, debug symbols and unsigned images.
    pub fn parse(package: Package) -> Option<Self> {
        let release = package.name.strip_prefix("linux-image-")?;
        let build = release.strip_suffix("-amd64")?;
        let (abi, flavour) = match build.rsplit_once('-') {
            Some((abi, "cloud")) => (abi, Flavour::Cloud),
            Some((abi, "rt")) => (abi, Flavour::Rt),
            _ => (build, Flavour::Generic),
        };
        let fits =
            |series: &&Series| abi.strip_prefix(series.text()).is_some_and(|rest| rest.starts_with('.'));
        let series = *Series::value_variants().iter().find(fits)?;
        Some(Self { release: release.to_owned(), package, series, flavour })
    }

    /// Whether `self` comes after `other` in time.
    pub fn newer(&self, other: &Self) -> Ordering {
        version::compare(&self.package.version, &other.package.version)
            .then_with(|| version::compare(&self.release, &other.release))
    }

    /// A bound in the words of `uname -r` counts ABI numbers, which versions of packages do not contain.
    fn age_against(&self, bound: &str) -> Ordering {
        let bound = bound.strip_prefix("linux-image-").unwrap_or(bound);
        let is_release = bound.ends_with("-amd64") || bound.contains("+deb") || bound.starts_with("6.1.0-");
        if is_release {
            version::compare(abi(&self.release), abi(bound))
        } else {
            version::compare(&self.package.version, bound)
        }
    }
}

/// The release without its flavour: `6.1.0-56` of `6.1.0-56-cloud-amd64`.
fn abi(release: &str) -> &str {
    let release = release.strip_suffix("-amd64").unwrap_or(release);
    release.strip_suffix("-cloud").or_else(|| release.strip_suffix("-rt")).unwrap_or(release)
}

impl Series {
    /// As kernel versions begin: `6.1`.
    pub fn text(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cloud => "cloud",
            Self::Generic => "generic",
            Self::Rt => "rt",
        })
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} kernel", self.series, self.flavour)?;
        if let Some(version) = &self.version {
            write!(f, " of version {version}")?;
        }
        if let Some(bound) = &self.older_than {
            write!(f, " older than {bound}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers() -> Vec<Offer> {
        [
            ("linux-image-6.1.0-9-cloud-amd64", "6.1.27-1"),
            ("linux-image-6.1.0-55-cloud-amd64", "6.1.187-1"),
            ("linux-image-6.1.0-56-cloud-amd64", "6.1.192-1"),
            ("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"),
            ("linux-image-6.1.0-56-amd64", "6.1.192-2"),
            ("linux-image-6.1.0-56-rt-amd64", "6.1.192-2"),
            ("linux-image-6.1.0-56-amd64-dbg", "6.1.192-2"),
            ("linux-image-6.1.0-56-cloud-amd64-unsigned", "6.1.192-2"),
            ("linux-image-6.12-cloud-amd64", "6.12.117-1~deb12u1"),
            ("linux-image-6.12.117+deb12-cloud-amd64", "6.12.117-1~deb12u1"),
            ("linux-image-6.12.99+deb12-cloud-amd64", "6.12.99-1~deb12u1"),
            ("linux-image-amd64", "6.1.192-2"),
            ("linux-image-cloud-amd64", "6.1.192-2"),
        ]
        .into_iter()
        .filter_map(|(name, version)| Offer::parse(Package { name: name.into(), version: version.into() }))
        .collect()
    }

    fn release(need: &Need) -> Option<String> {
        need.choose(&offers()).map(|offer| format!("{} {}", offer.release, offer.package.version))
    }

    #[test]
    fn only_bootable_kernels_are_offers() {
        assert_eq!(offers().len(), 8);
    }

    #[test]
    fn the_newest_that_fits_is_taken() {
        let need = |series, flavour| release(&Need::newest(series, flavour)).unwrap();
        assert_eq!(need(Series::V6_1, Flavour::Cloud), "6.1.0-56-cloud-amd64 6.1.192-2");
        assert_eq!(need(Series::V6_1, Flavour::Generic), "6.1.0-56-amd64 6.1.192-2");
        assert_eq!(need(Series::V6_1, Flavour::Rt), "6.1.0-56-rt-amd64 6.1.192-2");
        assert_eq!(need(Series::V6_12, Flavour::Cloud), "6.12.117+deb12-cloud-amd64 6.12.117-1~deb12u1");
        assert_eq!(release(&Need::newest(Series::V6_12, Flavour::Rt)), None);
    }

    #[test]
    fn older_than_takes_a_version_or_a_release() {
        let older = |bound: &str| release(&Need::newest(Series::V6_1, Flavour::Cloud).older_than(bound));
        assert_eq!(older("6.1.192-2").as_deref(), Some("6.1.0-56-cloud-amd64 6.1.192-1"));
        assert_eq!(older("6.1.0-56").as_deref(), Some("6.1.0-55-cloud-amd64 6.1.187-1"));
        assert_eq!(older("6.1.0-55-cloud-amd64").as_deref(), Some("6.1.0-9-cloud-amd64 6.1.27-1"));
        assert_eq!(older("6.1.1-1"), None);
        let newer = Need::newest(Series::V6_12, Flavour::Cloud).older_than("6.12.117+deb12-cloud-amd64");
        assert_eq!(release(&newer).as_deref(), Some("6.12.99+deb12-cloud-amd64 6.12.99-1~deb12u1"));
    }

    #[test]
    fn a_version_is_that_one_and_no_other() {
        let of = |version: &str| Need::exactly(Series::V6_1, Flavour::Cloud, version);
        assert_eq!(release(&of("6.1.187-1")).as_deref(), Some("6.1.0-55-cloud-amd64 6.1.187-1"));
        assert_eq!(release(&of("6.1.188-1")), None);
        assert_eq!(of("6.1.188-1").to_string(), "6.1 cloud kernel of version 6.1.188-1");
    }
}
