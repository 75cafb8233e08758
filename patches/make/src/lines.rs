//! Line numbers that stay.
//!
//! Many macros put `__LINE__` into an instruction (ext4 and btrfs do it for every error that they report). A fix that
//! adds a line changes the number, and so the code, of every function behind it. `#line` behind each change gives later
//! lines their old numbers back, and the code its old form.

use std::fmt::Write as _;

use similar::{Algorithm, DiffTag, TextDiff};

/// Ends of lines behind which a directive can stand: between two statements or declarations, not within one. Inside of a
/// comment it is a part of that, and the lines up to the next one keep wrong numbers, which is no more than a nuisance.
const ENDS: [&str; 5] = [";", "{", "}", ":", "*/"];

/// Returns `fixed` with directives in it, so that what it has in common with `original` has the line numbers from there.
pub(crate) fn realigned(original: &str, fixed: &str) -> String {
    let mut text = String::with_capacity(fixed.len() + 256);
    let (mut shift, mut can_divide) = (0, true);
    for (line, (index, number)) in fixed.lines().zip((0_i64..).zip(numbers(original, fixed))) {
        if let Some(number) = number.filter(|number| number - index != shift && can_divide) {
            let _ = writeln!(text, "#line {}", number + 1);
            shift = number - index;
        }
        text.push_str(line);
        text.push('\n');
        if !line.trim().is_empty() {
            can_divide = ENDS.iter().any(|end| line.trim_end().ends_with(end));
        }
    }
    text
}

/// For each line of `fixed` its index in `original`, if it is there.
fn numbers(original: &str, fixed: &str) -> Vec<Option<i64>> {
    let diff = TextDiff::configure().algorithm(Algorithm::Myers).diff_lines(original, fixed);
    let mut numbers = vec![None; fixed.lines().count()];
    for operation in diff.ops().iter().filter(|operation| operation.tag() == DiffTag::Equal) {
        for (new, old) in operation.new_range().zip(operation.old_range()) {
            if let Some(number) = numbers.get_mut(new) {
                *number = i64::try_from(old).ok();
            }
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number that the preprocessor gives to a line.
    fn number_of(text: &str, wanted: &str) -> usize {
        let mut number = 1;
        for line in text.lines() {
            if line == wanted {
                return number;
            }
            number = match line.strip_prefix("#line ") {
                Some(next) => next.parse().unwrap(),
                None => number + 1,
            };
        }
        panic!("no {wanted} in {text}")
    }

    #[test]
    fn lines_behind_a_change_keep_their_numbers() {
        let original = "a;\nb;\nlong\n  call();\nc;\nd;\ne;\n";
        let fixed = "a;\nnew;\nnew2;\nb;\nlong\n  call();\nd;\nlast;\ne;\n";
        let text = realigned(original, fixed);
        for line in ["c;", "d;", "e;", "  call();"] {
            if fixed.contains(line) {
                assert_eq!(number_of(&text, line), number_of(original, line), "{line} in {text}");
            }
        }
        let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("#line")).collect();
        assert_eq!(without, fixed.lines().collect::<Vec<_>>());
    }

    #[test]
    fn statements_are_not_divided() {
        let text = realigned("a;\nf(b,\n  c);\nd;\n", "a;\nnew(x,\ny);\nf(b,\n  c);\nd;\n");
        assert!(text.contains("y);\n#line 2\nf(b,\n  c);\nd;"), "{text}");
        let text = realigned("a;\nf(b,\n  c);\nd;\n", "a;\nf(b,\n  x,\n  c);\nd;\n");
        assert!(text.contains("f(b,\n  x,\n  c);\n#line 4\nd;"), "{text}");
    }

    #[test]
    fn the_same_text_stays_as_it_is() {
        assert_eq!(realigned("a;\nb;\n", "a;\nb;\n"), "a;\nb;\n");
    }
}
