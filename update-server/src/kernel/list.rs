//! The kernel's circular lists (`struct list_head`, `include/linux/types.h`): a head, and nodes that begin with the next one's
//! address.

use super::space::{AddressSpace, ReadError};
use crate::addr::Gva;
use crate::guest::Memory;

/// How a walk over a list ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// At its head.
    Head,
    /// At a node that it had been at: what comes twice comes for ever.
    Circle,
    /// Where the visitor had seen enough.
    Enough,
}

/// That something the guest lists was not followed to its end. What is there beyond is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest lists more than {limit} {what}, or the same ones again and again")]
pub struct Cut {
    /// What is listed.
    pub what: &'static str,
    /// How many of it are looked at.
    pub limit: usize,
}

/// What the guest lists, as far as it was followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T> {
    /// What was found.
    pub entries: Vec<T>,
    /// Whether there may be more.
    pub cut: Option<Cut>,
}

impl<T> Listed<T> {
    /// What a kernel lists that has no such list.
    pub(super) fn nothing() -> Self {
        Self { entries: Vec::new(), cut: None }
    }
}

/// Calls `visit` with each node of the list at `head`, as long as it answers `true`. The nodes of a list that ends come once;
/// those of a circle may come again before it is found out.
pub(crate) fn walk(
    space: &AddressSpace<'_, impl Memory>,
    head: Gva,
    mut visit: impl FnMut(Gva) -> Result<bool, ReadError>,
) -> Result<End, ReadError> {
    let mut link = space.pointer(head)?;
    // Brent, An improved Monte Carlo factorization algorithm, BIT 20 (1980): a mark that is moved up at ever greater
    // distances is met again after at most three times as many steps as there are nodes.
    let (mut mark, mut steps, mut distance) = (head, 0_u64, 1_u64);
    while link != head {
        if link == mark {
            return Ok(End::Circle);
        }
        steps += 1;
        if steps == distance {
            (mark, steps, distance) = (link, 0, distance * 2);
        }
        if !visit(link)? {
            return Ok(End::Enough);
        }
        link = space.pointer(link)?;
    }
    Ok(End::Head)
}

/// Calls `visit` with each node of the list at `head`, but no more of them than `cut` allows. That is the answer if the list was not
/// followed to its end.
pub(super) fn walk_within(
    space: &AddressSpace<'_, impl Memory>,
    head: Gva,
    cut: Cut,
    mut visit: impl FnMut(Gva) -> Result<(), ReadError>,
) -> Result<Option<Cut>, ReadError> {
    let mut left = cut.limit;
    let end = walk(space, head, |link| {
        if left == 0 {
            return Ok(false);
        }
        left -= 1;
        visit(link)?;
        Ok(true)
    })?;
    Ok((end != End::Head).then_some(cut))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gpa;
    use crate::guest::NoRam;
    use crate::kernel::paging::PageTables;

    /// Nodes at multiples of 8, each with the address of the next; one large page from 0 on, behind two tables.
    struct Nodes(Vec<u64>);

    impl Memory for Nodes {
        fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), NoRam> {
            let word = match at.0 {
                0x10_0000 => 0x11_0001,
                0x11_0000 => 0x81,
                _ => *self.0.get(usize::try_from(at.0 / 8).unwrap()).ok_or(NoRam { at, len: into.len() })?,
            };
            into.copy_from_slice(&word.to_le_bytes()[..into.len()]);
            Ok(())
        }
    }

    fn walked(nodes: &[u64]) -> (Result<End, ReadError>, Vec<u64>) {
        let memory = Nodes(nodes.iter().map(|node| node * 8).collect());
        let space = AddressSpace::new(&memory, PageTables { root: Gpa(0x10_0000), levels: 4 });
        let mut seen = Vec::new();
        let end = walk(&space, Gva(0), |link| {
            seen.push(link.0 / 8);
            Ok(seen.len() < 1000)
        });
        (end, seen)
    }

    #[test]
    fn every_node_of_a_list_comes_once() {
        assert_eq!(walked(&[0]), (Ok(End::Head), vec![]));
        assert_eq!(walked(&[3, 0, 1, 2]), (Ok(End::Head), vec![3, 2, 1]));
        let (end, seen) = walked(&[5]);
        assert!(end.is_err());
        assert_eq!(seen, [5]);
    }

    #[test]
    fn a_circle_is_found_wherever_it_begins() {
        for start in 1..40 {
            let mut nodes: Vec<u64> = (1..=40).collect();
            nodes.push(start);
            let (end, seen) = walked(&nodes);
            assert_eq!(end, Ok(End::Circle), "{start}");
            assert!(seen.len() <= 3 * nodes.len(), "{start}: {}", seen.len());
        }
        assert_eq!(walked(&[1, 1]).0, Ok(End::Circle));
    }
}
