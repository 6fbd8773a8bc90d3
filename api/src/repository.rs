//! Repositories: names for container images, with tags, as `docker push` makes them.

use crate::{FieldError, ImageId, ProjectId, RepositoryId};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest name of a repository, in characters, its project's not counted: what clients of registries send at most
/// (distribution's `NameTotalLengthMax` is 255 with host and project).
pub const REPOSITORY_NAME_MAX: usize = 200;
/// Longest tag (OCI distribution specification 1.1, "Pulling manifests").
pub const TAG_MAX: usize = 128;
/// Most patterns of a policy.
const PATTERNS_MAX: usize = 32;
/// Longest description, in characters.
const DESCRIPTION_MAX: usize = 4000;
/// Longest time that a policy names, in days: a hundred years.
const DAYS_MAX: u32 = 36_500;

/// Who may pull from a repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RepositoryVisibility {
    /// Whoever has a role in its project.
    #[default]
    Private,
    /// Everybody, without a password too. Other projects start instances from it.
    Public,
}

/// What is removed without being asked for. What an immutable tag names stays. Without `keep_last` and `keep_days` no tag
/// goes; with both, a tag stays that either of them keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// So many tags stay, those that were pushed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100000)]
    pub keep_last: Option<u32>,
    /// Tags stay that were pushed or pulled in the last so many days.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 36500)]
    pub keep_days: Option<u32>,
    /// Images without a tag go when nobody has pushed or pulled them for so many days. Default: they stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 36500)]
    pub untagged_days: Option<u32>,
}

impl Retention {
    pub fn check(&self) -> Result<(), FieldError> {
        for (field, value, least, most) in [
            ("retention.keep_last", self.keep_last, 1, 100_000),
            ("retention.keep_days", self.keep_days, 1, DAYS_MAX),
            ("retention.untagged_days", self.untagged_days, 0, DAYS_MAX),
        ] {
            if value.is_some_and(|v| !(least..=most).contains(&v)) {
                return Err(FieldError::new(field, format!("must be {least} to {most}")));
            }
        }
        Ok(())
    }
}

/// What is to change of a repository's policy; what is not named stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RepositoryChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 4000)]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub visibility: Option<RepositoryVisibility>,
    /// Tags that fit one of these never change and never go: `v*`, `release-?`, `*`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 32)]
    pub immutable: Option<Vec<String>>,
    /// In place of the whole of the former one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

impl RepositoryChange {
    pub fn check(&self) -> Result<(), FieldError> {
        if let Some(text) = &self.description
            && (text.chars().count() > DESCRIPTION_MAX
                || text.chars().any(|c| c.is_control() && c != '\n' && c != '\t'))
        {
            let message =
                format!("at most {DESCRIPTION_MAX} characters, no control characters but line ends and tabs");
            return Err(FieldError::new("description", message));
        }
        let patterns = self.immutable.as_deref().unwrap_or_default();
        if patterns.len() > PATTERNS_MAX {
            return Err(FieldError::new("immutable", format!("at most {PATTERNS_MAX} patterns")));
        }
        for (at, pattern) in patterns.iter().enumerate() {
            let fits = |b: u8| b.is_ascii_alphanumeric() || b"_.-*?".contains(&b);
            if pattern.is_empty() || pattern.len() > TAG_MAX || !pattern.bytes().all(fits) {
                let message = "letters, digits, '_', '.', '-', and '*' and '?' for any of them; at most 128";
                return Err(FieldError::new(format!("immutable[{at}]"), message));
            }
        }
        self.retention.as_ref().map_or(Ok(()), Retention::check)
    }
}

/// A repository as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Repository {
    pub id: RepositoryId,
    pub project: ProjectId,
    /// Without its project's: `web`, `shop/web`.
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    pub visibility: RepositoryVisibility,
    pub immutable: Vec<String>,
    pub retention: Retention,
    pub tags: u64,
    /// Manifests of any kind, those without a tag included.
    pub manifests: u64,
    /// Of all blobs that its manifests name, each counted once; in bytes.
    pub size: u64,
    /// The upstream whose mirror it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub created_at: Timestamp,
}

/// A tag as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Tag {
    pub name: String,
    /// Of the manifest that it names: `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    pub media_type: String,
    /// The image that instances start from; none: it names an index or something else that no body starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageId>,
    /// In bytes, with all layers.
    pub size: u64,
    /// It never changes and never goes, by the repository's policy.
    pub immutable: bool,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub pushed_at: Timestamp,
    /// To the hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub pulled_at: Option<Timestamp>,
}

/// Whether a text is a repository's name: the grammar of the OCI distribution specification 1.1 ("Pulling manifests").
pub fn repository_name(text: &str) -> bool {
    text.len() <= REPOSITORY_NAME_MAX && text.split('/').all(component)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let edge = |b: Option<u8>| b.is_some_and(alphanumeric);
    if !edge(text.bytes().next()) || !edge(text.bytes().last()) {
        return false;
    }
    text.split(|c: char| c.is_ascii() && alphanumeric(c as u8))
        .all(|between| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-'))
}

/// Whether a text is a tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
pub fn tag_name(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= TAG_MAX
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "web", "shop/web", "a.b", "a_b", "a__b", "a---b", "0", "a/b/c-d.e"] {
            assert!(repository_name(good), "{good}");
        }
        for bad in
            ["", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", "a:b", "ä", "a b", "a@b"]
        {
            assert!(!repository_name(bad), "{bad}");
        }
        assert!(!repository_name(&"a".repeat(REPOSITORY_NAME_MAX + 1)));
        for good in ["v1", "_", "latest", "1.0-rc_2", &"a".repeat(128)] {
            assert!(tag_name(good), "{good}");
        }
        for bad in ["", ".a", "-a", "a/b", "a:b", "ä", &"a".repeat(129)] {
            assert!(!tag_name(bad), "{bad}");
        }
    }

    #[test]
    fn changes() {
        let check = |json: serde_json::Value| {
            serde_json::from_value::<RepositoryChange>(json).unwrap().check().map_err(|e| e.field)
        };
        use serde_json::json;
        assert_eq!(check(json!({})), Ok(()));
        assert_eq!(check(json!({"immutable": ["v*", "*"], "retention": {"keep_last": 3}})), Ok(()));
        for (bad, field) in [
            (json!({"immutable": ["v/1"]}), "immutable[0]"),
            (json!({"immutable": ["v*", ""]}), "immutable[1]"),
            (json!({"immutable": vec!["a"; 33]}), "immutable"),
            (json!({"description": "a\u{7}"}), "description"),
            (json!({"retention": {"keep_last": 0}}), "retention.keep_last"),
            (json!({"retention": {"keep_days": 0}}), "retention.keep_days"),
            (json!({"retention": {"untagged_days": 40_000}}), "retention.untagged_days"),
        ] {
            assert_eq!(check(bad.clone()), Err(field.to_owned()), "{bad}");
        }
    }
}
