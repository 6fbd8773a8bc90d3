//! Repositories, the manifests in them, and their tags; which tags never change, and which go by themselves: pure.
//!
//! A manifest is in a repository by its digest, with or without a tag, until somebody deletes it or retention takes it.
//! One that a container starts from belongs to an image of the catalogue; any other (an index, an artifact) to none.

use super::Record;
use amphi_api::image::Blob;
use amphi_api::repository::{RepositoryVisibility, Retention};
use amphi_api::{ImageId, ProjectId, RepositoryId};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RepositoryRecord {
    pub project: ProjectId,
    /// Without its project's; unique in the project.
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default)]
    pub visibility: RepositoryVisibility,
    /// Patterns of tags that never change and never go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub immutable: Vec<String>,
    #[serde(default)]
    pub retention: Retention,
    /// The upstream whose mirror it is: nobody pushes here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    pub created_at: Timestamp,
}

impl RepositoryRecord {
    pub fn new(project: ProjectId, name: &str, now: Timestamp) -> Self {
        Self {
            project,
            name: name.to_owned(),
            description: String::new(),
            visibility: RepositoryVisibility::Private,
            immutable: Vec::new(),
            retention: Retention::default(),
            mirror: None,
            created_at: now,
        }
    }

    /// Whether a tag of this name never changes and never goes.
    pub fn keeps(&self, tag: &str) -> bool {
        self.immutable.iter().any(|pattern| fits(pattern.as_bytes(), tag.as_bytes()))
    }
}

impl Record for RepositoryRecord {
    const PREFIX: &'static str = "/repository/";
    const NOUN: &'static str = "repository";
    type Id = RepositoryId;
    fn id(&self) -> RepositoryId {
        RepositoryId::of(self.project, &self.name)
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            pub fn of(repository: RepositoryId, text: &str) -> Self {
                Self(Uuid::new_v5(&repository.0, text.as_bytes()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

key!(/// A manifest's place in the store: made of its repository and its digest.
    ManifestKey);
key!(/// A tag's place in the store: made of its repository and its name.
    TagKey);

/// A manifest in a repository.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestRecord {
    pub repository: RepositoryId,
    /// Of its bytes; lower-case hexadecimal.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
    pub media_type: String,
    /// What a body starts from, once all its blobs are here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageId>,
    /// Configuration and layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<Blob>,
    /// Digests of the manifests that an index names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<String>,
    /// The digest of the manifest that this one says something of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What kind of artifact it is, as the list of referrers has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    pub pushed_at: Timestamp,
    /// To the hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulled_at: Option<Timestamp>,
}

impl Record for ManifestRecord {
    const PREFIX: &'static str = "/manifest/";
    const NOUN: &'static str = "manifest";
    type Id = ManifestKey;
    fn id(&self) -> ManifestKey {
        ManifestKey::of(self.repository, &self.sha256)
    }
    /// By repository: the tables' index by owner serves what is in one.
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((ProjectId(self.repository.0), &self.sha256))
    }
}

/// A tag of a repository.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TagRecord {
    pub repository: RepositoryId,
    pub name: String,
    /// The manifest that it names.
    pub sha256: String,
    pub pushed_at: Timestamp,
    /// To the hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulled_at: Option<Timestamp>,
    /// When the upstream was last asked for it; of a mirror only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<Timestamp>,
}

impl Record for TagRecord {
    const PREFIX: &'static str = "/tag/";
    const NOUN: &'static str = "tag";
    type Id = TagKey;
    fn id(&self) -> TagKey {
        TagKey::of(self.repository, &self.name)
    }
    /// By repository: the tables' index by owner serves what is in one.
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((ProjectId(self.repository.0), &self.name))
    }
}

/// Whether a text fits a pattern: `*` stands for any characters, `?` for one.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last star stood, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

fn days_since(at: Timestamp, now: Timestamp) -> i64 {
    now.duration_since(at).as_hours() / 24
}

/// The tags of a repository that retention removes now.
pub fn tags_due<'a>(repository: &RepositoryRecord, tags: &[&'a TagRecord], now: Timestamp) -> Vec<&'a str> {
    let Retention { keep_last, keep_days, .. } = repository.retention;
    if keep_last.is_none() && keep_days.is_none() {
        return Vec::new();
    }
    let mut newest: Vec<&TagRecord> = tags.to_vec();
    newest.sort_by(|a, b| b.pushed_at.cmp(&a.pushed_at).then(a.name.cmp(&b.name)));
    let last = keep_last.map_or(0, |n| n as usize);
    let young = |tag: &TagRecord| {
        let used = tag.pulled_at.unwrap_or(tag.pushed_at).max(tag.pushed_at);
        keep_days.is_some_and(|days| days_since(used, now) < i64::from(days))
    };
    let due = newest.into_iter().skip(last).filter(|tag| !young(tag) && !repository.keeps(&tag.name));
    due.map(|tag| tag.name.as_str()).collect()
}

/// The manifests of a repository that no tag names any more, not through an index nor as what they speak of either, and
/// that have lain so for long enough.
pub fn manifests_due<'a>(
    repository: &RepositoryRecord,
    manifests: &[&'a ManifestRecord],
    tags: &[&TagRecord],
    now: Timestamp,
) -> Vec<&'a str> {
    let Some(days) = repository.retention.untagged_days else { return Vec::new() };
    let kept = held(manifests, tags.iter().map(|tag| tag.sha256.as_str()));
    let old = |m: &&&ManifestRecord| {
        let used = m.pulled_at.unwrap_or(m.pushed_at).max(m.pushed_at);
        now.duration_since(used) >= SignedDuration::from_hours(24 * i64::from(days))
    };
    let left = manifests.iter().filter(|m| !kept.contains(m.sha256.as_str())).filter(old);
    left.map(|m| m.sha256.as_str()).collect()
}

/// The digests that hang on these: what an index names, and what speaks of one that stays.
fn held<'a>(
    manifests: &[&'a ManifestRecord],
    roots: impl Iterator<Item = &'a str>,
) -> BTreeSet<&'a str> {
    let by_digest: BTreeMap<&str, &ManifestRecord> =
        manifests.iter().map(|m| (m.sha256.as_str(), *m)).collect();
    let mut speaking: BTreeMap<&str, Vec<&'a str>> = BTreeMap::new();
    for manifest in manifests {
        if let Some(subject) = &manifest.subject {
            speaking.entry(subject).or_default().push(&manifest.sha256);
        }
    }
    let mut kept = BTreeSet::new();
    let mut next: Vec<&'a str> = roots.collect();
    while let Some(digest) = next.pop() {
        if !kept.insert(digest) {
            continue;
        }
        next.extend(speaking.get(digest).into_iter().flatten());
        if let Some(manifest) = by_digest.get(digest) {
            next.extend(manifest.manifests.iter().map(String::as_str));
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(day: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * day)
    }

    fn repository(immutable: &[&str], retention: Retention) -> RepositoryRecord {
        RepositoryRecord {
            immutable: immutable.iter().map(|p| (*p).to_owned()).collect(),
            retention,
            ..RepositoryRecord::new(ProjectId::DEFAULT, "web", at(0))
        }
    }

    fn tag(name: &str, pushed: i64, pulled: Option<i64>) -> TagRecord {
        TagRecord {
            repository: RepositoryId::of(ProjectId::DEFAULT, "web"),
            name: name.into(),
            sha256: format!("digest of {name}"),
            pushed_at: at(pushed),
            pulled_at: pulled.map(at),
            checked_at: None,
        }
    }

    #[test]
    fn patterns() {
        for (pattern, text, fit) in [
            ("*", "anything", true),
            ("*", "", true),
            ("v*", "v1", true),
            ("v*", "w1", false),
            ("v?", "v1", true),
            ("v?", "v12", false),
            ("v?", "v", false),
            ("*-rc", "1-rc", true),
            ("*-rc", "1-rc2", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("latest", "latest", true),
            ("latest", "latest2", false),
            ("**", "x", true),
        ] {
            assert_eq!(fits(pattern.as_bytes(), text.as_bytes()), fit, "{pattern} {text}");
        }
    }

    #[test]
    fn which_tags_go() {
        let tags = [tag("v1", 1, None), tag("v2", 2, Some(19)), tag("v3", 3, None), tag("latest", 4, None)];
        let tags: Vec<&TagRecord> = tags.iter().collect();
        let keep = |last, days| Retention { keep_last: last, keep_days: days, untagged_days: None };
        for (immutable, retention, want) in [
            (&[][..], keep(None, None), &[][..]),
            (&[], keep(Some(4), None), &[]),
            (&[], keep(Some(2), None), &["v2", "v1"]),
            (&["v1"], keep(Some(2), None), &["v2"]),
            (&["v*"], keep(Some(1), None), &[]),
            (&[], keep(None, Some(2)), &["latest", "v3", "v1"]),
            (&[], keep(None, Some(17)), &["v3", "v1"]),
            (&[], keep(None, Some(30)), &[]),
            (&[], keep(Some(1), Some(2)), &["v3", "v1"]),
        ] {
            let found = tags_due(&repository(immutable, retention), &tags, at(20));
            assert_eq!(found, want, "{immutable:?} {retention:?}");
        }
    }

    #[test]
    fn which_manifests_go() {
        let manifest = |sha256: &str, pushed: i64| ManifestRecord {
            repository: RepositoryId::of(ProjectId::DEFAULT, "web"),
            sha256: sha256.into(),
            size: 1,
            media_type: "m".into(),
            image: None,
            blobs: Vec::new(),
            manifests: Vec::new(),
            subject: None,
            artifact_type: None,
            annotations: BTreeMap::new(),
            pushed_at: at(pushed),
            pulled_at: None,
        };
        let mut index = manifest("digest of v1", 1);
        index.manifests = vec!["child".into()];
        let mut signature = manifest("signature", 1);
        signature.subject = Some("child".into());
        let mut orphan = manifest("signature of nothing", 1);
        orphan.subject = Some("gone".into());
        let all = [index, manifest("child", 1), signature, orphan, manifest("old", 1), manifest("new", 19)];
        let all: Vec<&ManifestRecord> = all.iter().collect();
        let v1 = tag("v1", 1, None);
        let days = |untagged_days| repository(&[], Retention { untagged_days, ..Retention::default() });
        assert!(manifests_due(&days(None), &all, &[&v1], at(20)).is_empty());
        assert_eq!(manifests_due(&days(Some(5)), &all, &[&v1], at(20)), ["signature of nothing", "old"]);
        assert_eq!(
            manifests_due(&days(Some(0)), &all, &[&v1], at(20)),
            ["signature of nothing", "old", "new"]
        );
        assert_eq!(manifests_due(&days(Some(0)), &all, &[], at(20)).len(), 6);
    }
}
