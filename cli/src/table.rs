//! Tables and the words in them. Pure.

use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;

/// A table without borders: a header in capitals, one line per row.
pub fn rows(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    trimmed(&table.to_string())
}

/// Name and value, one pair a line; a value of several lines is indented below itself.
pub fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    let mut text = String::new();
    for (name, value) in pairs {
        for (at, line) in value.lines().enumerate() {
            let name = if at == 0 { *name } else { "" };
            text += &format!("{name:width$}{}\n", clean(line));
        }
    }
    text
}

fn trimmed(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Text of guests and engines, fit for a terminal: control characters become `?`, but for the line's end and tabs.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '?' } else { c }).collect()
}

/// An enum's value as JSON spells it.
pub fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => "?".to_owned(),
    }
}

/// `-` for what is not there.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// Bytes in the largest binary unit that keeps the number above 1: `3.2 GiB`.
pub fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let text = if unit == 0 { format!("{count}") } else { format!("{value:.1}") };
    format!("{} {}", text.strip_suffix(".0").unwrap_or(&text), units[unit])
}

/// Memory in the unit that fits: `512 MiB`, `4 GiB`.
pub fn mib(count: u64) -> String {
    bytes(count << 20)
}

/// How long ago, in the largest whole unit: `45s`, `12m`, `5h`, `3d`.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(since.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The moment and how long ago it is: `2026-01-02T03:04:05Z (5m ago)`.
pub fn moment(at: Timestamp, now: Timestamp) -> String {
    let second = Timestamp::from_second(at.as_second()).unwrap_or(at);
    format!("{second} ({} ago)", age(at, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_no_borders_and_no_trailing_space() {
        let text = rows(
            &["NAME", "STATE"],
            [vec!["web".into(), "running".into()], vec!["database\u{7}".into(), "-".into()]],
        );
        assert_eq!(text, "NAME       STATE\nweb        running\ndatabase?  -\n");
        assert_eq!(rows(&["NAME", "STATE"], []), "NAME  STATE\n");
    }

    #[test]
    fn pairs_align_and_indent() {
        let text = pairs(&[("Name", "web".into()), ("Addresses", "10.1.0.5\n10.2.0.5".into())]);
        assert_eq!(text, "Name       web\nAddresses  10.1.0.5\n           10.2.0.5\n");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1 << 20), bytes(3_435_973_837)],
            ["0 B", "1023 B", "1 MiB", "3.2 GiB"]
        );
        assert_eq!([mib(512), mib(4096), mib(1536)], ["512 MiB", "4 GiB", "1.5 GiB"]);
        let at = |s| Timestamp::from_second(s).unwrap();
        let ages: Vec<_> =
            [0, 119, 120, 7_200, 172_800, -5].map(|s| age(at(1_000_000), at(1_000_000 + s))).into();
        assert_eq!(ages, ["0s", "119s", "2m", "2h", "2d", "0s"]);
        assert_eq!(moment(at(0), at(300)), "1970-01-01T00:00:00Z (5m ago)");
    }
}
