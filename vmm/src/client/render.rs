//! Answers for people.

mod kernel;
pub(super) mod patch;

use std::fmt::Write;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::verb::Verb;
use crate::config::MachineSpec;
use crate::control::model::{
    Accepted, Bucket, Counters, Histogram, PauseReport, ResumeReport, TrapReport, VersionInfo, VmInfo,
};

/// How the addresses of watched pages are listed.
const PAGES_IN_A_LINE: usize = 8;
const LINES_OF_PAGES: usize = 8;
/// Length of the longest bar of a histogram.
const BAR: u64 = 40;

/// The text for an answer; JSON if a newer VMM answers with what this client does not know.
pub(super) fn answer(verb: &Verb, body: &Value) -> String {
    let text = match verb {
        Verb::Version => read(body).map(version),
        Verb::Info => read(body).map(|info| self::info(&info)),
        Verb::Config => read::<MachineSpec>(body).and_then(|spec| toml::to_string(&spec).ok()),
        Verb::Pause => read(body).map(pause),
        Verb::Resume => read(body).map(resume),
        Verb::PowerButton | Verb::Shutdown => read(body).map(|Accepted { message }| message + "\n"),
        Verb::Counters => read(body).map(|counters| self::counters(&counters)),
        Verb::Stacks { .. } => read(body).map(|report| kernel::stacks(&report)),
        Verb::Tasks => read(body).map(|report| kernel::tasks(&report)),
        Verb::TextCheck => read(body).map(|report| kernel::text(&report)),
        Verb::Symbols { .. } => read(body).map(|report| kernel::symbols(&report)),
        Verb::Modules { .. } => read(body).map(|report| kernel::modules(&report)),
        Verb::Arm { .. } | Verb::Traps | Verb::Disarm { .. } => read(body).map(|report| traps(&report)),
        Verb::Openapi => None,
    };
    text.unwrap_or_else(|| super::pretty(body) + "\n")
}

fn read<T: DeserializeOwned>(body: &Value) -> Option<T> {
    T::deserialize(body).ok()
}

fn version(VersionInfo { version, api, pid }: VersionInfo) -> String {
    format!("lucos-vmm {version}, API {api}, process {pid}\n")
}

fn info(VmInfo { state, kernel, cpus, memory }: &VmInfo) -> String {
    let rows = [
        ("state", state.to_string()),
        ("kernel", kernel.display().to_string()),
        ("vCPUs", cpus.to_string()),
        ("memory", memory.to_string()),
    ];
    rows.iter().fold(String::new(), |text, (name, value)| text + &format!("{name:<8}{value}\n"))
}

fn pause(PauseReport { took_us, vcpus }: PauseReport) -> String {
    let plural = if vcpus == 1 { "vCPU stands" } else { "vCPUs stand" };
    format!("paused: {vcpus} {plural} still after {}\n", duration(took_us))
}

fn resume(ResumeReport { paused_us }: ResumeReport) -> String {
    format!("running again; it had stood still for {}\n", duration(paused_us))
}

fn counters(Counters { exits, pauses, devices }: &Counters) -> String {
    let mut text = String::new();
    section(&mut text, "exits", exits.iter().map(|(name, &count)| (name.as_str(), count)));
    histogram(&mut text, pauses);
    for (device, counts) in devices {
        section(&mut text, device, counts.iter().map(|(name, &count)| (name.as_str(), count)));
    }
    text
}

fn traps(TrapReport { way, pages, counts, lost }: &TrapReport) -> String {
    let way = match way.as_str() {
        "second-view" => "while all other vCPUs run on",
        "hold-all" => "with all other vCPUs held",
        other => other,
    };
    let mut text = match pages.len() {
        0 => "no page is watched\n".to_owned(),
        1 => format!("1 page is watched; accesses are carried out {way}\n"),
        count => format!("{count} pages are watched; accesses are carried out {way}\n"),
    };
    listed(&mut text, pages);
    section(
        &mut text,
        "since the guest was started",
        counts.iter().map(|(name, &count)| (name.as_str(), count)),
    );
    for page in lost {
        let _ = writeln!(text, "no longer watched: {}: {}", page.page, page.why);
    }
    text
}

/// The addresses of pages, as many as fit on a screen.
fn listed(text: &mut String, pages: &[String]) {
    for line in pages.chunks(PAGES_IN_A_LINE).take(LINES_OF_PAGES) {
        let _ = writeln!(text, "  {}", line.join(" "));
    }
    let more = pages.len().saturating_sub(PAGES_IN_A_LINE * LINES_OF_PAGES);
    if more > 0 {
        let _ = writeln!(text, "  and {more} more, which `--json` has");
    }
}

/// A titled table, the largest number first.
fn section<'a>(text: &mut String, title: &str, rows: impl Iterator<Item = (&'a str, u64)>) {
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(other.0)));
    let width = rows.iter().map(|row| row.0.chars().count()).max().unwrap_or(0);
    let digits = rows.iter().map(|row| row.1.to_string().len()).max().unwrap_or(0);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{title}{}", if rows.is_empty() { ": none" } else { "" });
    for (name, count) in rows {
        let _ = writeln!(text, "  {name:<width$}  {count:>digits$}");
    }
}

fn histogram(text: &mut String, pauses: &Histogram) {
    let Some(mean) = pauses.mean_us() else {
        *text += "pauses: none\n";
        return;
    };
    let (count, longest) = (pauses.count(), duration(pauses.max_us()));
    let _ = writeln!(text, "pauses: {count}, mean {}, longest {longest}", duration(mean));
    let most = pauses.buckets().map(|bucket| bucket.count).max().unwrap_or(1).max(1);
    for Bucket { from_us, count } in pauses.buckets() {
        let below = duration(if from_us == 0 { 1 } else { from_us.saturating_mul(2) });
        let filled = usize::try_from(count.saturating_mul(BAR) / most).unwrap_or(0).max(1);
        let _ =
            writeln!(text, "  {:>9} .. {below:>9}  {count:>8}  {}", duration(from_us), "#".repeat(filled));
    }
}

/// Microseconds in the unit in which they read best, cut to three digits.
fn duration(us: u64) -> String {
    let three = |whole: u64, rest: u64, unit: &str| match whole {
        0..10 => format!("{whole}.{:02} {unit}", rest / 10),
        10..100 => format!("{whole}.{} {unit}", rest / 100),
        _ => format!("{whole} {unit}"),
    };
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => three(us / 1_000, us % 1_000, "ms"),
        _ => three(us / 1_000_000, us / 1_000 % 1_000, "s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn durations_keep_three_digits() {
        let table = [
            (0, "0 us"),
            (999, "999 us"),
            (1_234, "1.23 ms"),
            (12_345, "12.3 ms"),
            (123_456, "123 ms"),
            (61_000_000, "61.0 s"),
        ];
        for (us, expected) in table {
            assert_eq!(duration(us), expected);
        }
    }

    #[test]
    fn counters_are_a_table() {
        let mut counters = Counters::default();
        counters.exits.insert("io".into(), 12);
        counters.exits.insert("mmio".into(), 3456);
        for us in [100, 110, 3000] {
            counters.pauses.record(Duration::from_micros(us));
        }
        counters.devices.entry("nvme0".into()).or_default().insert("reads".into(), 7);
        let expected = "\
exits
  mmio  3456
  io      12
pauses: 3, mean 1.07 ms, longest 3.00 ms
      64 us ..    128 us         2  ########################################
    2.04 ms ..   4.09 ms         1  ####################
nvme0
  reads  7
";
        assert_eq!(self::counters(&counters), expected);
        assert_eq!(self::counters(&Counters::default()), "exits: none\npauses: none\n");
    }

    #[test]
    fn an_answer_of_a_newer_vmm_is_shown_as_it_is() {
        let body = serde_json::json!({"state": "dreaming"});
        assert_eq!(answer(&Verb::Info, &body), "{\n  \"state\": \"dreaming\"\n}\n");
    }
}
