//! Compose's spellings of commands, times and sizes.

/// A command line as a shell divides it: quotes and backslashes, nothing else.
pub fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        None => return Err(format!("a quote that does not end in '{line}'")),
                        Some(end) if end == c => break,
                        Some('\\') if c == '"' => word.extend(chars.next()),
                        Some(other) => word.push(other),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(chars.next()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

/// `1m30s`, `500ms`, `10` (seconds): whole seconds, rounded up.
pub fn seconds(text: &str) -> Option<u32> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut micros: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "us" => 1.0,
            "ms" => 1e3,
            "s" | "" => 1e6,
            "m" => 60e6,
            "h" => 3600e6,
            _ => return None,
        };
        rest = &rest[letters..];
        micros = micros.checked_add((number * unit) as u64)?;
    }
    u32::try_from(micros.div_ceil(1_000_000)).ok()
}

/// `512m`, `1.5g`, `1073741824`, `64MB`: bytes. Compose counts in 1,024s.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let factor = match text[digits..].trim().trim_end_matches('b').trim_end_matches('i') {
        "" => 1u64,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    Some((number * factor as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_divide_as_in_a_shell() {
        for (line, words) in [
            ("a b  c", vec!["a", "b", "c"]),
            ("sh -c \"echo 'x y' \\\"z\\\"\"", vec!["sh", "-c", "echo 'x y' \"z\""]),
            ("a '' b\\ c", vec!["a", "", "b c"]),
            ("", vec![]),
        ] {
            assert_eq!(split(line).unwrap(), words, "{line}");
        }
        assert!(split("a 'b").is_err());
    }

    #[test]
    fn times_and_sizes() {
        for (text, expected) in [
            ("1m30s", Some(90)),
            ("500ms", Some(1)),
            ("10", Some(10)),
            ("1.5s", Some(2)),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
        for (text, expected) in [
            ("512m", Some(512 << 20)),
            ("1.5g", Some(1536 << 20)),
            ("64MB", Some(64 << 20)),
            ("2GiB", Some(2 << 30)),
            ("1024", Some(1024)),
            ("b", None),
            ("1x", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }
}
