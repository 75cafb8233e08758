//! The locks of those who change the kernel's text: `text_mutex` (`kernel/extable.c`), which every kernel has, and `kprobe_mutex`
//! (`kernel/kprobes.c`), if it has probes; 6.1 and 6.12.
//!
//! What the guest has changed itself is listed, too. A list that is there and cannot be found would be taken for an empty one.

use crate::addr::Gva;
use crate::image::Symbols;

/// That there is no telling from a kernel's image whether its guest changes its own text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "whether the guest changes its own text cannot be told: this kernel has no one `{symbol}`, or one of an unknown structure"
)]
pub struct Unclear {
    /// What is missing, or not the only one of its name, or of unknown types.
    pub symbol: &'static str,
}

/// The locks, where they are linked for. `has_probes` and `has_livepatches` say whether the lists of those can be read.
pub(super) fn text_locks(
    symbols: &Symbols,
    has_probes: bool,
    has_livepatches: bool,
) -> Result<Vec<Gva>, Unclear> {
    let is_there = |name| symbols.named(name).next().is_some();
    let only = |symbol| symbols.only(symbol).map(|found| found.address).ok_or(Unclear { symbol });
    for (symbol, is_read) in [("kprobe_table", has_probes), ("klp_ops", has_livepatches)] {
        if is_there(symbol) && !is_read {
            return Err(Unclear { symbol });
        }
    }
    let mut locks = vec![only("text_mutex")?];
    if has_probes || is_there("kprobe_mutex") {
        locks.push(only("kprobe_mutex")?);
    }
    Ok(locks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::SymbolsBuilder;

    fn found(names: &[&str], has_probes: bool, has_livepatches: bool) -> Result<Vec<u64>, &'static str> {
        let mut builder = SymbolsBuilder::new(names.len());
        for (name, at) in names.iter().zip((0x1000..).step_by(0x1000)) {
            builder.add(Gva(at), false, 'd', name);
        }
        let locks = text_locks(&builder.finish(), has_probes, has_livepatches);
        locks.map(|locks| locks.iter().map(|at| at.0).collect()).map_err(|unclear| unclear.symbol)
    }

    #[test]
    fn a_lock_that_cannot_be_told_is_not_passed_over() {
        let all = ["text_mutex", "kprobe_mutex", "kprobe_table", "klp_ops"];
        assert_eq!(found(&all, true, true), Ok(vec![0x1000, 0x2000]));
        assert_eq!(found(&all[..1], false, false), Ok(vec![0x1000]));
        assert_eq!(found(&[], false, false), Err("text_mutex"));
        assert_eq!(found(&["text_mutex", "text_mutex"], false, false), Err("text_mutex"));
        let twice = ["text_mutex", "kprobe_mutex", "kprobe_mutex"];
        for has_probes in [false, true] {
            assert_eq!(found(&twice, has_probes, false), Err("kprobe_mutex"));
        }
        assert_eq!(found(&["text_mutex", "kprobe_table"], true, false), Err("kprobe_mutex"));
    }

    #[test]
    fn a_list_that_is_there_and_cannot_be_read_is_not_an_empty_one() {
        let all = ["text_mutex", "kprobe_mutex", "kprobe_table", "klp_ops"];
        assert_eq!(found(&all, false, true), Err("kprobe_table"));
        assert_eq!(found(&all, true, false), Err("klp_ops"));
    }
}
