//! Where functions are in a C file of the kernel.
//!
//! No parser: the kernel's coding style (`Documentation/process/coding-style.rst`, 3 and 6) puts both braces of a function's
//! body, and of nothing else that has parameters, alone at the beginning of a line.

use std::ops::Range;

/// One definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Function<'a> {
    /// What it is called.
    pub(super) name: &'a str,
    /// Its lines, from the first of its head to the closing brace, counted from 0.
    pub(super) lines: Range<usize>,
}

/// Every function that `text` defines, in order.
pub(super) fn functions(text: &str) -> Vec<Function<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let mut next = 0;
    while let Some(open) = position(&lines, next, |line| line.trim_end() == "{") {
        let Some(close) = position(&lines, open, |line| line.starts_with('}')) else { break };
        let head =
            lines[next..open].iter().rposition(|line| ends_something(line)).map_or(next, |at| next + at + 1);
        if let Some(name) = name(&lines[head..open]) {
            found.push(Function { name, lines: head..close + 1 });
        }
        next = close + 1;
    }
    found
}

fn position(lines: &[&str], from: usize, wanted: impl Fn(&str) -> bool) -> Option<usize> {
    lines[from..].iter().position(|line| wanted(line)).map(|at| from + at)
}

/// Whether no line behind this one belongs to what is on it.
fn ends_something(line: &str) -> bool {
    let line = line.trim_end();
    line.is_empty() || line.starts_with('#') || [";", "}", "*/"].iter().any(|end| line.ends_with(end))
}

/// The word before the first parenthesis.
fn name<'a>(head: &[&'a str]) -> Option<&'a str> {
    let (before, _) = head.iter().find_map(|line| line.split_once('('))?;
    let name = before.rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_').next()?;
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
#include <a.h>
#define MACRO(x) \\
	(x)

struct s {
	int a;
};

static const struct s
table[] = {
	{ 1 },
};

/* one(): a comment */
static inline int one(int a,
		      int b)
{
	if (a) {
		return b;
	}
	return a;
}
EXPORT_SYMBOL(one);
static int
two(void)
{
}

int declared(void);
";

    #[test]
    fn functions_are_found_with_their_heads() {
        let found = functions(TEXT);
        let expected = [("one", 14..22), ("two", 23..27)];
        assert_eq!(found, expected.map(|(name, lines)| Function { name, lines }));
        let lines: Vec<&str> = TEXT.lines().collect();
        assert_eq!((lines[14], lines[21]), ("static inline int one(int a,", "}"));
    }
}
