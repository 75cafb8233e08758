//! What ends a step on this host, shown on a tiny guest before a real one depends on it.
//!
//! KVM says what it has, not whether it works: the processor below it may be an emulated one, whose breakpoints or single steps do
//! not do what the manuals say. A step that does not end where it should would run the guest on untrapped. So each way to carry out
//! what was trapped is first taken by a guest of a few instructions, with the same engine, and everything that it leaves is held
//! against what it must be. Only a way that was proven is used.

mod guest;
mod program;

use std::fmt;

use kvm_ioctls::Kvm;

use self::guest::Guest;
use crate::config::Trapping;
use crate::sys::kvm::Views;
use crate::sys::nested_paging;

/// A way to carry out what was trapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Means {
    /// Whether a step is made in the second view; with all other vCPUs held otherwise.
    pub second_view: bool,
    /// Whether KVM keeps interrupts away meanwhile (`KVM_GUESTDBG_BLOCKIRQ`, KVM api.rst 4.87).
    pub blocks_interrupts: bool,
}

impl Means {
    /// What a machine must have for it.
    pub fn views(self) -> Views {
        if self.second_view { Views::Both } else { Views::First }
    }
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.second_view { "in the second view" } else { "with all other vCPUs held" })?;
        if !self.blocks_interrupts {
            f.write_str(", with interrupts coming in between")?;
        }
        Ok(())
    }
}

/// What was tried on this host, and what of it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    means: Option<Means>,
    failed: Vec<(Means, String)>,
    unable: Option<String>,
}

impl Proof {
    /// Tries what `trapping` allows, the best first.
    ///
    /// A few milliseconds: a VM is made and some ten instructions are trapped. A guest that does not come to its end is ended after
    /// five seconds.
    pub fn of(kvm: &Kvm, trapping: Trapping) -> Self {
        let mut proof = Self { means: None, failed: Vec::new(), unable: unable(nested_paging()) };
        if proof.unable.is_some() {
            return proof;
        }
        let ways: &[bool] = match trapping {
            Trapping::Best => &[true, false],
            Trapping::SecondView => &[true],
            Trapping::HoldAll => &[false],
        };
        for &second_view in ways {
            for blocks_interrupts in [true, false] {
                let means = Means { second_view, blocks_interrupts };
                let guest = match Guest::new(kvm) {
                    Ok(guest) => guest,
                    Err(error) => {
                        proof.unable = Some(format!("no guest can be made to try traps on: {error}"));
                        return proof;
                    }
                };
                // What KVM says that it does not have need not be tried.
                if !guest.offers(means) {
                    continue;
                }
                match guest.run(means) {
                    Ok(()) => {
                        proof.means = Some(means);
                        return proof;
                    }
                    Err(why) => proof.fails(means, why),
                }
            }
        }
        proof
    }

    fn fails(&mut self, means: Means, why: String) {
        // Interrupts have nothing to do with it then.
        let again = self
            .failed
            .last()
            .is_some_and(|(last, said)| last.second_view == means.second_view && *said == why);
        if !again {
            self.failed.push((means, why));
        }
    }

    /// The way that was proven.
    ///
    /// # Errors
    ///
    /// Why there is none, for an operator.
    pub fn means(&self) -> Result<Means, String> {
        self.means.ok_or_else(|| self.to_string())
    }

    /// The ways that were tried and do not work here, with what was wrong.
    pub fn failed(&self) -> &[(Means, String)] {
        &self.failed
    }
}

/// Why nothing need be tried.
fn unable(nested_paging: Option<bool>) -> Option<String> {
    let why = "KVM does not use the processor's second-level page tables (EPT or NPT), by which accesses are trapped: load its module \
               without ept=0 or npt=0";
    (nested_paging == Some(false)).then(|| why.to_owned())
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(means) = self.means {
            write!(f, "a trapped access is carried out {means}")?;
        } else if let Some(why) = &self.unable {
            f.write_str(why)?;
        } else if self.failed.is_empty() {
            f.write_str("KVM has no second view for a vCPU, or no way to stop one behind an instruction")?;
        } else {
            f.write_str("a trapped access cannot be carried out")?;
        }
        for (means, why) in &self.failed {
            write!(f, "; {means}: {why}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shadow_pages_are_not_for_traps() {
        assert_eq!([None, Some(true)].map(unable), [None, None]);
        let proof = Proof { means: None, failed: Vec::new(), unable: unable(Some(false)) };
        assert!(proof.means().unwrap_err().contains("npt=0"));
    }

    #[test]
    fn what_failed_is_said() {
        let means = Means { second_view: true, blocks_interrupts: true };
        let mut proof = Proof { means: None, failed: vec![(means, "it ran on for 2s".into())], unable: None };
        assert_eq!(
            proof.means(),
            Err("a trapped access cannot be carried out; in the second view: it ran on for 2s".to_owned())
        );
        let held = Means { second_view: false, blocks_interrupts: false };
        proof.means = Some(held);
        assert_eq!(proof.means(), Ok(held));
        assert_eq!(
            proof.to_string(),
            "a trapped access is carried out with all other vCPUs held, with interrupts coming in between; \
             in the second view: it ran on for 2s"
        );
    }
}
