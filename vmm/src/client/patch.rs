//! What a user does with patches: each is asked for, and then watched until it is done.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueHint};
use lucos_lup::limits::FILE_BYTES;
use serde::Deserialize;

use super::http::{self, Answer};
use super::verb::Method;
use super::{FAILED, GONE, NOT_DONE, OK, REFUSED, ask_for, fail, pretty, print, render};
use crate::control::model::{PatchInfo, PatchList, PatchState};
use crate::update::Deadline;

/// For how many seconds it may be tried.
type Limit = clap::builder::RangedU64ValueParser<u64>;

fn limit() -> Limit {
    clap::value_parser!(u64).range(1..=Deadline::SECONDS_MAX)
}

/// What a user does with patches.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum PatchVerb {
    /// Apply a patch to the guest's running kernel
    ///
    /// Ends when each new call runs the new code, or nothing was changed.
    Apply {
        /// The patch
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Wait until the last thread has left the old code
        #[arg(long)]
        wait: bool,
        /// Take it although nobody vouches for it
        #[arg(long)]
        unsigned: bool,
        /// For how long it may be tried [default: 60]
        #[arg(long, value_name = "SECONDS", value_parser = limit())]
        limit: Option<u64>,
    },
    /// Undo a patch
    ///
    /// Ends when each new call runs the old code again, or nothing was changed.
    Rollback {
        /// Its number
        id: u32,
        /// Wait until the last thread has left the new code, and the guest has unloaded it or never will
        #[arg(long)]
        wait: bool,
        /// For how long it may be tried [default: 60]
        #[arg(long, value_name = "SECONDS", value_parser = limit())]
        limit: Option<u64>,
    },
    /// The patches of the guest, one in a line
    List,
    /// What patches are doing, and who is still in old code
    Status {
        /// The number of one; all patches without it
        id: Option<u32>,
    },
    /// Each change of the patches, as it comes; until the VM's end
    Watch,
}

/// Where the VMM is, and how to print.
#[derive(Debug, Clone, Copy)]
pub(super) struct Desk<'a> {
    pub(super) socket: &'a Path,
    pub(super) json: bool,
}

impl Desk<'_> {
    /// Does what the user wants; the exit code.
    pub(super) fn serve(self, verb: &PatchVerb) -> u8 {
        let done = match verb {
            PatchVerb::Apply { file, wait, unsigned, limit } => self.apply(file, *wait, *unsigned, *limit),
            PatchVerb::Rollback { id, wait, limit } => self.roll_back(*id, *wait, *limit),
            PatchVerb::List => self.list().map(|list| self.show(&list, &render::patch::list(&list))),
            PatchVerb::Status { id } => self.status(*id),
            PatchVerb::Watch => self.watch(),
        };
        done.unwrap_or_else(|code| code)
    }

    fn apply(self, path: &Path, wait: bool, unsigned: bool, limit: Option<u64>) -> Result<u8, u8> {
        let file = read(path)
            .map_err(|error| fail(FAILED, &format!("cannot read the patch {}: {error}", path.display())))?;
        if unsigned {
            fail(OK, &format!("warning: {} is applied although nobody vouches for it", path.display()));
        }
        let path = format!("/api/v1/patch.apply?unsigned={unsigned}{}", limited(limit));
        let info = self.put(&path, file)?;
        let undecided = |state| match state {
            PatchState::Loading | PatchState::Applying => true,
            PatchState::Draining => wait,
            _ => false,
        };
        let info = self.follow(info, undecided)?;
        let code = match info.state {
            PatchState::Draining | PatchState::Closed => OK,
            PatchState::Gone => GONE,
            _ => NOT_DONE,
        };
        Ok(self.end(&info, code))
    }

    fn roll_back(self, id: u32, wait: bool, limit: Option<u64>) -> Result<u8, u8> {
        let path = format!("/api/v1/patch.rollback?id={id}{}", limited(limit));
        let info = self.put(&path, Vec::new())?;
        let undecided = |state| match state {
            PatchState::RollingBack => true,
            PatchState::Leaving | PatchState::Removing => wait,
            _ => false,
        };
        let info = self.follow(info, undecided)?;
        let code = match info.state {
            PatchState::Leaving
            | PatchState::Removing
            | PatchState::Resident
            | PatchState::Removed
            | PatchState::Failed => OK,
            PatchState::Gone => GONE,
            _ => NOT_DONE,
        };
        Ok(self.end(&info, code))
    }

    /// Watches a patch as long as it is `undecided`, and says what happens.
    fn follow(self, mut info: PatchInfo, undecided: impl Fn(PatchState) -> bool) -> Result<PatchInfo, u8> {
        let mut revision = 0;
        let mut said = String::new();
        while undecided(info.state) {
            let line = render::patch::progress(&info);
            if line != said && !self.json {
                print(format!("{line}\n").as_bytes());
                said = line;
            }
            let list = self.list_after(revision)?;
            revision = list.revision;
            let found = list.patches.into_iter().find(|patch| patch.id == info.id);
            info =
                found.ok_or_else(|| fail(FAILED, &format!("the VMM knows no patch {} any more", info.id)))?;
        }
        Ok(info)
    }

    fn end(self, info: &PatchInfo, code: u8) -> u8 {
        let text = format!("{}\n", render::patch::progress(info));
        if self.json {
            let printed = serde_json::to_value(info).map_or(text, |value| pretty(&value) + "\n");
            return print(printed.as_bytes()).max(code);
        }
        if code == OK { print(text.as_bytes()) } else { fail(code, text.trim_end()) }
    }

    fn status(self, id: Option<u32>) -> Result<u8, u8> {
        let mut list = self.list()?;
        if let Some(id) = id {
            list.patches.retain(|patch| patch.id == id);
            if list.patches.is_empty() {
                return Err(fail(FAILED, &format!("there is no patch {id}; `lucos list` has them all")));
            }
        }
        Ok(self.show(&list, &render::patch::status(&list)))
    }

    fn watch(self) -> Result<u8, u8> {
        let mut revision = 0;
        let mut begun = false;
        let mut said: Vec<String> = Vec::new();
        loop {
            let list = if begun {
                // Whoever was there and is not any more has ended, and with it what there was to watch.
                match http::request(self.socket, Method::Get, &changes_after(revision), Vec::new()) {
                    Ok(answer) => self.take(&answer)?,
                    Err(_) => return Ok(fail(OK, "the VM has ended")),
                }
            } else {
                self.list_after(revision)?
            };
            begun = true;
            if list.revision == revision {
                continue;
            }
            revision = list.revision;
            if self.json {
                let line = serde_json::to_string(&list).unwrap_or_default();
                let printed = print((line + "\n").as_bytes());
                if printed != OK {
                    return Ok(printed);
                }
                continue;
            }
            let lines: Vec<String> = list.patches.iter().map(render::patch::progress).collect();
            for line in lines.iter().filter(|line| !said.contains(line)) {
                print(format!("{line}\n").as_bytes());
            }
            said = lines;
        }
    }

    fn show(self, list: &PatchList, text: &str) -> u8 {
        let printed =
            if self.json { serde_json::to_value(list).map(|value| pretty(&value) + "\n").ok() } else { None };
        print(printed.as_deref().unwrap_or(text).as_bytes())
    }

    fn list(self) -> Result<PatchList, u8> {
        self.take(&ask_for(self.socket, Method::Get, "/api/v1/patch.list", Vec::new())?)
    }

    fn list_after(self, revision: u64) -> Result<PatchList, u8> {
        self.take(&ask_for(self.socket, Method::Get, &changes_after(revision), Vec::new())?)
    }

    fn put(self, path: &str, body: Vec<u8>) -> Result<PatchInfo, u8> {
        self.take(&ask_for(self.socket, Method::Put, path, body)?)
    }

    fn take<T: for<'de> Deserialize<'de>>(self, answer: &Answer) -> Result<T, u8> {
        if !answer.success {
            return Err(self.refuse(answer));
        }
        T::deserialize(&answer.body)
            .map_err(|error| fail(FAILED, &format!("the VMM's answer is of another version: {error}")))
    }

    fn refuse(self, answer: &Answer) -> u8 {
        let code = match answer.body["code"].as_str() {
            Some("not_trusted" | "bad_patch" | "other_kernel" | "not_applicable" | "guest_refuses") => {
                REFUSED
            }
            _ => FAILED,
        };
        if self.json {
            return print((pretty(&answer.body) + "\n").as_bytes()).max(code);
        }
        fail(code, &super::refusal(&answer.body))
    }
}

/// The path of all patches, as soon as there is something new since `revision`.
fn changes_after(revision: u64) -> String {
    format!("/api/v1/patch.list?after={revision}")
}

/// The limit as a part of a query.
fn limited(limit: Option<u64>) -> String {
    limit.map(|seconds| format!("&limit={seconds}")).unwrap_or_default()
}

/// Reads no more than a patch has.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = Vec::new();
    File::open(path)?.take(FILE_BYTES as u64 + 1).read_to_end(&mut file)?;
    if file.len() > FILE_BYTES {
        return Err(io::Error::other(format!(
            "it has more than the {FILE_BYTES} bytes that a patch can have"
        )));
    }
    Ok(file)
}
