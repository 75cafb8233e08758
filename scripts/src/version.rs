//! Debian version numbers, ordered as dpkg orders them (Debian policy 5.6.12).

use std::cmp::Ordering;

/// Compares two Debian versions: epoch, upstream version, revision.
pub fn compare(left: &str, right: &str) -> Ordering {
    let (left_epoch, left_upstream, left_revision) = split(left);
    let (right_epoch, right_upstream, right_revision) = split(right);
    left_epoch
        .cmp(&right_epoch)
        .then_with(|| compare_part(left_upstream, right_upstream))
        .then_with(|| compare_part(left_revision, right_revision))
}

fn split(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch.parse().unwrap_or(0), upstream, revision)
}

/// Alternates between a stretch of non-digits and a number, from left to right.
fn compare_part(mut left: &str, mut right: &str) -> Ordering {
    while !left.is_empty() || !right.is_empty() {
        let (left_text, left_rest) = take(left, |c| !c.is_ascii_digit());
        let (right_text, right_rest) = take(right, |c| !c.is_ascii_digit());
        let (left_number, left_after) = take(left_rest, |c| c.is_ascii_digit());
        let (right_number, right_after) = take(right_rest, |c| c.is_ascii_digit());
        let ordering =
            compare_text(left_text, right_text).then_with(|| compare_number(left_number, right_number));
        if ordering.is_ne() {
            return ordering;
        }
        (left, right) = (left_after, right_after);
    }
    Ordering::Equal
}

fn take(text: &str, wanted: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !wanted(c)).unwrap_or(text.len()))
}

/// `~` sorts before the end of the text, the end before letters, letters before everything else.
fn compare_text(left: &str, right: &str) -> Ordering {
    let weight = |character: Option<char>| match character {
        Some('~') => -1,
        None => 0,
        Some(c) if c.is_ascii_alphabetic() => i64::from(u32::from(c)),
        Some(c) => i64::from(u32::from(c)) + 256,
    };
    let (mut left, mut right) = (left.chars(), right.chars());
    loop {
        let pair = (left.next(), right.next());
        let ordering = weight(pair.0).cmp(&weight(pair.1));
        if ordering.is_ne() || pair == (None, None) {
            return ordering;
        }
    }
}

/// Compares numbers of any length, so that a date in a version cannot overflow.
fn compare_number(left: &str, right: &str) -> Ordering {
    let (left, right) = (left.trim_start_matches('0'), right.trim_start_matches('0'));
    left.len().cmp(&right.len()).then_with(|| left.cmp(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_as_dpkg_does() {
        let ascending = [
            "6.1~rc1-1",
            "6.1-1~exp1",
            "6.1-1",
            "6.1.9-1",
            "6.1.176-1",
            "6.1.192-1",
            "6.1.192-2",
            "6.1.192-2+b1",
            "6.12.9-1",
            "6.12.117-1~deb12u1",
            "6.12.117-1",
            "1:0",
        ];
        for (position, left) in ascending.iter().enumerate() {
            for (other, right) in ascending.iter().enumerate() {
                assert_eq!(compare(left, right), position.cmp(&other), "{left} against {right}");
            }
        }
    }

    #[test]
    fn leading_zeros_do_not_count() {
        assert_eq!(compare("1.02-1", "1.2-01"), Ordering::Equal);
    }
}
