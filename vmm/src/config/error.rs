//! Why a configuration was refused.

use std::io;
use std::path::PathBuf;

/// What is wrong with one value, and what to write instead.
///
/// The option's name and the value stand in front of it: clap puts them there for flags, the TOML reader
/// shows the line, and [`ConfigError::Value`] does it for what is found later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Nothing there.
    #[error("it is empty; give a value")]
    Empty,
    /// A key that this option does not have.
    #[error(
        "it has no key `{key}`; known keys: {known} (a value with `,` or `=` in it goes in double quotes)"
    )]
    UnknownKey {
        /// The key found.
        key: String,
        /// The keys there are.
        known: String,
    },
    /// A needed key is missing.
    #[error("the key `{key}` is missing; write {example}")]
    MissingKey {
        /// The key that is missing.
        key: &'static str,
        /// A complete value.
        example: &'static str,
    },
    /// One key twice.
    #[error("the key `{key}` is given twice; give it once")]
    RepeatedKey {
        /// The key.
        key: String,
    },
    /// A quote without its partner.
    #[error("a double quote is never closed; close it")]
    OpenQuote,
    /// A switch that is neither on nor off.
    #[error("`{found}` is neither on nor off; write {key}=on or {key}=off")]
    Switch {
        /// The key of the switch.
        key: &'static str,
        /// What stood there.
        found: String,
    },
    /// No size.
    #[error("`{found}` is no size; write bytes or a number with K, M, G or T, for example 512M or 2G")]
    Size {
        /// What stood there.
        found: String,
    },
    /// No guest memory can have this size, because huge pages back it.
    #[error("{bytes} bytes is no multiple of 2 MiB; the nearest sizes are {below} and {above}")]
    MemoryMultiple {
        /// The size found.
        bytes: u64,
        /// The next smaller size.
        below: String,
        /// The next larger size.
        above: String,
    },
    /// Too little for any kernel.
    #[error("{found} is too little for any Linux kernel; give at least {least}")]
    MemoryTooSmall {
        /// The size found.
        found: String,
        /// The smallest size.
        least: String,
    },
    /// More than a guest can address.
    #[error("it is more memory than a guest can address; give at most {most}")]
    MemoryTooLarge {
        /// The largest size.
        most: String,
    },
    /// Not a number of vCPUs.
    #[error("`{found}` is no number of vCPUs; give 1 to {most}")]
    Cpus {
        /// What stood there.
        found: String,
        /// The largest number.
        most: u8,
    },
    /// Not a MAC address.
    #[error("`{found}` is no MAC address; write six pairs of hex digits, for example 52:54:00:12:34:56")]
    Mac {
        /// What stood there.
        found: String,
    },
    /// A MAC address that no interface may have.
    #[error("{found} is a multicast or an all-zero address; use one that begins with 52:54:00, say")]
    MacGroup {
        /// The address.
        found: String,
    },
    /// Not the name of a network interface.
    #[error("`{found}` cannot name a tap; a name has 1 to 15 bytes, no `/` and no space")]
    TapName {
        /// What stood there.
        found: String,
    },
    /// Not a destination of the serial port.
    #[error("`{found}` is no serial destination; write tty, null or file=PATH")]
    Serial {
        /// What stood there.
        found: String,
    },
    /// Not one of a few words.
    #[error("`{found}` is not known; write one of {known}")]
    Word {
        /// What stood there.
        found: String,
        /// The words there are.
        known: String,
    },
    /// A path that a Unix socket cannot have.
    #[error("a socket's path has at most {most} bytes, this one has {len}; choose a shorter one")]
    SocketPath {
        /// The longest path.
        most: usize,
        /// The length found.
        len: usize,
    },
    /// A path that neither TOML nor JSON can carry.
    #[error("the path is not valid UTF-8; rename the file, or reach it by a link")]
    NotUtf8,
    /// A kernel command line that cannot be handed over.
    #[error("it has {len} bytes; the kernel takes at most {most} with the VMM's own part, shorten it")]
    CmdlineLength {
        /// The longest command line.
        most: usize,
        /// The length found.
        len: usize,
    },
    /// A control character where none can be.
    #[error("it holds a control character (code {code}); take it out")]
    Control {
        /// The character's code.
        code: u32,
    },
    /// Two users for one file or tap.
    #[error("it is given twice; what is written to can have one user only, so give each its own")]
    Shared,
    /// A way to trap accesses of a guest that can have guests of its own.
    #[error(
        "no access of a guest with `--cpu-profile host` can be trapped, as a step would end its own guests; leave it out, or \
             use `--cpu-profile stock`"
    )]
    Nests,
}

/// Why no machine can be made of what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No kernel was named.
    #[error("no kernel is given; name a bzImage or a vmlinux ELF with --kernel PATH")]
    NoKernel,
    /// One value is wrong.
    #[error("{option} {value}: {source}")]
    Value {
        /// The flag, whose name is also the key in the file.
        option: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        source: ValueError,
    },
    /// The configuration file cannot be read.
    #[error("--config {}: cannot read it: {source}; check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The configuration file is longer than any configuration.
    #[error("--config {}: it has more than {most} bytes; this is no configuration file", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit.
        most: u64,
    },
    /// The configuration file is no TOML or has a wrong key or value.
    #[error("--config {}: {source}\nThe keys are the names of the flags; `lucos-vmm --help` lists them", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
}
