//! The user's JSON: read, with every complaint naming file, line and column, and the field where there is one.

use crate::failure::Failure;
use amphi_api::{FieldError, validate};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

/// A file's text, kept to say where in it something stands. `-` is standard input.
pub struct JsonFile {
    name: String,
    text: String,
}

impl JsonFile {
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let name = if path.as_os_str() == "-" { "stdin".to_owned() } else { path.display().to_string() };
        let unreadable = |e: std::io::Error| Failure::new(2, format!("{name}: cannot be read: {e}"));
        // One byte more than allowed is enough to know.
        let most = validate::BODY_MAX as u64 + 1;
        let mut bytes = Vec::new();
        if path.as_os_str() == "-" {
            std::io::stdin().lock().take(most).read_to_end(&mut bytes).map_err(unreadable)?;
        } else {
            let file = std::fs::File::open(path).map_err(unreadable)?;
            file.take(most).read_to_end(&mut bytes).map_err(unreadable)?;
        }
        if bytes.len() > validate::BODY_MAX {
            return Err(Failure::new(
                4,
                format!("{name}: larger than the {} bytes of a request", validate::BODY_MAX),
            ));
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            let (line, column) =
                place(&String::from_utf8_lossy(&e.as_bytes()[..e.utf8_error().valid_up_to()]));
            Failure::new(4, format!("{name}:{line}:{column}: not UTF-8"))
        })?;
        Ok(Self { name, text })
    }

    /// A text that was made here, not read.
    pub fn of(name: &str, text: String) -> Self {
        Self { name: name.to_owned(), text }
    }

    /// The text as `T`.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let mut reader = serde_json::Deserializer::from_str(&self.text);
        let parsed = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
            let path = e.path().to_string();
            self.syntax(e.inner(), (path != ".").then_some(path))
        })?;
        reader.end().map_err(|e| self.syntax(&e, None))?;
        Ok(parsed)
    }

    fn syntax(&self, error: &serde_json::Error, field: Option<String>) -> Failure {
        let text = error.to_string();
        let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
        let what = format!("{}:{}:{}: {message}", self.name, error.line(), error.column());
        // A step that the parser could not name is no help.
        let named = |path: String| path.split('.').filter(|step| *step != "?").collect::<Vec<_>>().join(".");
        let mut field = field.map(named).filter(|path| !path.is_empty());
        // The parser knows only what should have held the missing field; the server names the field itself.
        if let Some(missing) = message.strip_prefix("missing field `").and_then(|m| m.split('`').next()) {
            field = Some(field.map_or(missing.to_owned(), |path| format!("{path}.{missing}")));
        }
        Failure { code: 4, what, field, next: None }
    }

    /// A rule's complaint about a field, with the field's place in the file.
    pub fn refused(&self, error: FieldError) -> Failure {
        let (line, column) = self.find(&error.field);
        Failure {
            code: 4,
            what: format!("{}:{line}:{column}: {}", self.name, error.message),
            field: Some(error.field),
            next: None,
        }
    }

    /// Line and column of a field's value, or of the innermost thing around it that is there.
    fn find(&self, field: &str) -> (usize, usize) {
        let mut rest = self.text.as_str();
        let mut steps = field.replace('[', ".").replace(']', "");
        if steps.starts_with('.') {
            steps.remove(0);
        }
        let steps: Vec<&str> = steps.split('.').collect();
        let mut at = 0;
        while at < steps.len() {
            let Some((child, taken)) = child(rest, &steps[at..]) else { break };
            rest = child;
            at += taken;
        }
        // `rest` is always a part of `text`.
        let offset = rest.as_ptr() as usize - self.text.as_ptr() as usize;
        let offset = offset + rest.len() - rest.trim_start().len();
        place(&self.text[..offset])
    }
}

/// The part of an object or a list that the first of `steps` names, and how many steps its name took: a key may
/// have dots of its own (`net.core.somaxconn`).
fn child<'a>(json: &'a str, steps: &[&str]) -> Option<(&'a str, usize)> {
    if json.trim_start().starts_with('[') {
        let list: Vec<&'a RawValue> = serde_json::from_str(json).ok()?;
        return Some((list.get(steps[0].parse::<usize>().ok()?)?.get(), 1));
    }
    let object: HashMap<String, &'a RawValue> = serde_json::from_str(json).ok()?;
    (1..=steps.len()).find_map(|taken| Some((object.get(&steps[..taken].join("."))?.get(), taken)))
}

/// Line and column, both from 1, of what follows `before`.
fn place(before: &str) -> (usize, usize) {
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::set::SetSpec;

    fn file(text: &str) -> JsonFile {
        JsonFile { name: "set.json".to_owned(), text: text.to_owned() }
    }

    #[test]
    fn syntax_and_shape_name_line_column_and_field() {
        let table = [
            ("{\n  \"members\": [,]\n}", "set.json:2:15: expected value", Some("members[0]")),
            ("{\"members\": []} x", "set.json:1:17: trailing characters", None),
            (
                "{\"members\": [\n {\"index\": 0, \"image\": \"b\", \"colour\": 1}]}",
                "set.json:2:36: unknown field `colour`",
                Some("members[0].colour"),
            ),
            ("{\"members\": [{\"index\": -1}]}", "set.json:1:25: invalid value", Some("members[0].index")),
            ("", "set.json:1:0: EOF", None),
        ];
        for (text, what, field) in table {
            let failure = file(text).parse::<SetSpec>().unwrap_err();
            assert!(failure.what.starts_with(what), "{text}: {failure:?}");
            assert_eq!(failure.field.as_deref(), field, "{text}: {failure:?}");
            assert_eq!(failure.code, 4);
        }
    }

    #[test]
    fn fields_of_a_body_keep_their_path() {
        let text = r#"{"name": "a", "vcpus": 1, "memory_mib": 64, "bodies": [{"set": {"members": [{"index": "x"}]}}]}"#;
        let failure = file(text).parse::<amphi_api::instance::InstanceCreate>().unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("bodies[0].set.members[0].index"), "{failure:?}");
    }

    #[test]
    fn a_refused_field_has_a_place() {
        let text = "{\n  \"anchor\": {\"sysctls\": {\"kernel.x.y\": \"1\"}},\n  \"members\": [\n    {\"index\": 0, \"image\": \"a\"},\n    {\"index\":  0, \"image\": \"b\"}\n  ]\n}";
        let file = file(text);
        for (field, place) in [
            ("members[1].index", (5, 16)),
            ("members[1].name", (5, 5)),
            ("members[9].name", (3, 14)),
            ("anchor.sysctls.kernel.x.y", (2, 40)),
            ("nothing", (1, 1)),
        ] {
            assert_eq!(file.find(field), place, "{field}");
        }
    }
}
