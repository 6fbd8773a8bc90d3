//! Small rules that several requests share. Pure; each refusal names its field.

use crate::FieldError;

/// Longest name anywhere, in characters: what OpenStack's services accept.
pub const NAME_MAX: usize = 255;
/// Largest user data, in bytes before any encoding: 64 KiB less a byte, nova's own bound on the base64 text.
pub const USER_DATA_MAX: usize = 65_535;
/// Largest volume, in GiB. A typing error should not become an order for an exabyte.
pub const VOLUME_GIB_MAX: u64 = 64 * 1024;
/// Largest body of an ordinary request, in bytes. Blobs of images are streamed and have no such bound.
pub const BODY_MAX: usize = 1 << 20;
/// Most pairs of metadata of one instance: nova's default quota of `metadata_items`.
pub const METADATA_MAX: usize = 128;

/// A name that people type and read: 1 to [`NAME_MAX`] characters, none of them a control character, no white
/// space at either end.
pub fn name(field: &str, text: &str) -> Result<(), FieldError> {
    let length = text.chars().count();
    if length == 0 || length > NAME_MAX {
        return Err(FieldError::new(field, format!("must have 1 to {NAME_MAX} characters, has {length}")));
    }
    if text.chars().any(char::is_control) {
        return Err(FieldError::new(field, "must not contain control characters"));
    }
    if text.trim() != text {
        return Err(FieldError::new(field, "must not begin or end with white space"));
    }
    Ok(())
}

/// A name that becomes part of a file, container or host name: a letter or digit, then letters, digits, `-`, `_`
/// or `.`; at most 63 characters (a DNS label's length).
pub fn label(field: &str, text: &str) -> Result<(), FieldError> {
    let ok_first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    let ok_rest = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if ok_first && ok_rest && text.len() <= 63 {
        return Ok(());
    }
    Err(FieldError::new(
        field,
        "must be 1 to 63 of letters, digits, '-', '_' and '.', beginning with a letter or digit",
    ))
}

/// A number within bounds, both included.
pub fn within(field: &str, value: u64, least: u64, most: u64, unit: &str) -> Result<(), FieldError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
    Err(FieldError::new(field, format!("must be {least} to {most}{unit}, is {value}")))
}

/// An absolute path inside a guest, without `..` or control characters.
pub fn guest_path(field: &str, text: &str) -> Result<(), FieldError> {
    let ok = text.starts_with('/')
        && text.len() > 1
        && text.len() <= 4096
        && !text.split('/').any(|part| part == ".." || part == ".")
        && !text.chars().any(|c| c.is_control() || c == ':');
    if ok {
        return Ok(());
    }
    Err(FieldError::new(
        field,
        "must be an absolute path below /, without '.', '..', ':' or control characters",
    ))
}

/// The host name that a guest sees, made of an instance's name: lower case, other characters become `-`, at most 63.
pub fn hostname(name: &str) -> String {
    let mut out: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(63)
        .collect();
    out = out.trim_matches('-').to_owned();
    if out.is_empty() { "instance".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "web 1", "größe", &"x".repeat(255)] {
            assert_eq!(name("name", good), Ok(()), "{good}");
        }
        for bad in ["", " a", "a ", "a\nb", "a\u{0}", "\u{7f}", &"x".repeat(256)] {
            assert_eq!(name("name", bad).unwrap_err().field, "name", "{bad:?}");
        }
    }

    #[test]
    fn labels_paths_hostnames() {
        assert!(label("m", "web-1.a_b").is_ok());
        for bad in ["", "-a", ".a", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(label("m", bad).is_err(), "{bad:?}");
        }
        assert!(guest_path("p", "/data/x").is_ok());
        for bad in ["", "/", "data", "/a/../b", "/a:b", "/a\n"] {
            assert!(guest_path("p", bad).is_err(), "{bad:?}");
        }
        assert_eq!(hostname("Web Server_1"), "web-server-1");
        assert_eq!(hostname("ж"), "instance");
    }
}
