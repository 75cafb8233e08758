//! Figures as a table, in Markdown so that it can go into a document as it is.

use std::fmt::Write;

use super::figure::{Aim, Figure};

const HEAD: [&str; 7] = ["figure", "value", "low..high", "reference", "ratio", "aim", "met"];

/// The table.
pub(super) fn render(figures: &[Figure]) -> String {
    let rows: Vec<[String; 7]> = figures.iter().map(row).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([HEAD[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    let mut line = |cells: [&str; 7]| {
        for (cell, width) in cells.iter().zip(widths) {
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
    };
    line(HEAD);
    let rules = widths.map(|width| "-".repeat(width));
    line(rules.each_ref().map(String::as_str));
    for row in &rows {
        line(row.each_ref().map(String::as_str));
    }
    text
}

fn row(figure: &Figure) -> [String; 7] {
    let reference = figure.reference.as_ref();
    let aim = figure.aim.map(|aim| match aim {
        Aim::RatioAtMost(limit) => format!("ratio <= {limit}"),
        Aim::RatioAtLeast(limit) => format!("ratio >= {limit}"),
        Aim::ValueAtMost(limit) => format!("<= {limit} {}", figure.unit),
    });
    [
        figure.name.clone(),
        format!("{} {}", short(figure.value), figure.unit),
        format!("{}..{}", short(figure.low), short(figure.high)),
        reference.map_or_else(String::new, |other| format!("{} {}", other.name, short(other.value))),
        figure.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
        aim.unwrap_or_default(),
        figure.met.map_or("", |met| if met { "yes" } else { "NO" }).to_owned(),
    ]
}

/// Three significant digits or so.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_as_wide_as_the_head() {
        let line = r#"{"name":"boot.init_vs_q35","value":6.5,"unit":"s","samples":5,"low":6.25,"high":7.0,
            "reference":{"name":"qemu q35","value":10.0},"ratio":0.65,"aim":{"ratio_at_most":0.6},"met":false}"#;
        let plain = r#"{"name":"pause.x","value":1234.5,"unit":"us","samples":1,"low":1.0,"high":20.0,
            "reference":null,"ratio":null,"aim":null,"met":null}"#;
        let figures: Vec<Figure> = [line, plain].map(|line| Figure::parse(line).unwrap()).to_vec();
        let table = render(&figures);
        assert!(table.contains("| qemu q35 10.0 | 0.65  | ratio <= 0.6 | NO  |"), "{table}");
        assert!(table.contains("| 1234 us "), "{table}");
        let widths: Vec<usize> = table.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|&width| width == widths[0]), "{table}");
    }

    #[test]
    fn other_output_is_no_figure() {
        assert_eq!(Figure::parse("lucos-bench: no"), None);
        assert_eq!(Figure::parse("{}"), None);
    }
}
