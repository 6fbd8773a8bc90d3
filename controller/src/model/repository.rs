//! Repositories, the manifests in them, and their tags; which tags never change, and which go by themselves: pure.
//!
//! A manifest is in a repository by its digest, with or without a tag, until somebody deletes it or retention takes it.

use super::{Digest, ManifestKind, ManifestRecord, Record};
use amphi_api::image::Blob;
use amphi_api::repository::{RepositoryVisibility, Retention};
use amphi_api::{ProjectId, RepositoryId};
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

key!(/// A link's place in the store: made of its repository and its digest.
    LinkKey);
key!(/// A tag's place in the store: made of its repository and its name.
    TagKey);

/// That a manifest is in a repository. What it is says the project's [`ManifestRecord`]; a mirror's says it here until all
/// that it names has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkRecord {
    pub repository: RepositoryId,
    /// Of the manifest's bytes.
    pub digest: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirrored: Option<Mirrored>,
    pub pushed_at: Timestamp,
    /// To the hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pulled_at: Option<Timestamp>,
}

/// A manifest that an upstream has given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mirrored {
    pub media_type: String,
    /// In bytes.
    pub size: u64,
    /// Configuration and layers, with their sizes: whether they have come is another thing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<Blob>,
    /// An index's manifests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Digest>,
}

impl LinkRecord {
    /// The digests of a mirror's bytes, which stay for as long as this does.
    pub fn keeps(&self) -> impl Iterator<Item = Digest> {
        let blobs = self.mirrored.iter().flat_map(|m| &m.blobs).filter_map(|b| b.sha256.parse().ok());
        self.mirrored.iter().map(|_| self.digest).chain(blobs)
    }
}

impl Record for LinkRecord {
    const PREFIX: &'static str = "/link/";
    const NOUN: &'static str = "manifest";
    type Id = LinkKey;
    fn id(&self) -> LinkKey {
        LinkKey::of(self.repository, &self.digest.to_string())
    }
    /// By repository: the tables' index by owner serves what is in one.
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((ProjectId(self.repository.0), ""))
    }
}

/// A tag of a repository.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TagRecord {
    pub repository: RepositoryId,
    pub name: String,
    /// Of the manifest that it names.
    pub digest: Digest,
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
pub(super) fn fits(pattern: &[u8], text: &[u8]) -> bool {
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

/// A manifest of a repository, as retention sees it.
#[derive(Clone, Debug)]
pub struct LinkSight {
    pub digest: Digest,
    /// What an index names.
    pub manifests: Vec<Digest>,
    /// What it says something of.
    pub subject: Option<Digest>,
    /// When it was last pushed or pulled.
    pub used_at: Timestamp,
}

impl LinkSight {
    pub fn of(link: &LinkRecord, manifest: Option<&ManifestRecord>) -> Self {
        let index = manifest.filter(|m| m.kind == ManifestKind::Index);
        let named = index.into_iter().flat_map(|m| &m.blobs).filter_map(|b| b.sha256.parse().ok());
        let mirrored = link.mirrored.iter().flat_map(|m| m.manifests.iter().copied());
        Self {
            digest: link.digest,
            manifests: named.chain(mirrored).collect(),
            subject: manifest.and_then(|m| m.subject),
            used_at: link.pulled_at.unwrap_or(link.pushed_at).max(link.pushed_at),
        }
    }
}

/// The manifests of a repository that no tag names any more, not through an index nor as what they speak of either, and
/// that have lain so for long enough.
pub fn links_due(
    repository: &RepositoryRecord,
    links: &[LinkSight],
    tagged: &BTreeSet<Digest>,
    now: Timestamp,
) -> Vec<Digest> {
    let Some(days) = repository.retention.untagged_days else { return Vec::new() };
    let kept = held(links, tagged);
    let old = |link: &&LinkSight| {
        now.duration_since(link.used_at) >= SignedDuration::from_hours(24 * i64::from(days))
    };
    links.iter().filter(|link| !kept.contains(&link.digest)).filter(old).map(|link| link.digest).collect()
}

/// The digests that hang on these: what an index names, and what speaks of one that stays.
fn held(links: &[LinkSight], roots: &BTreeSet<Digest>) -> BTreeSet<Digest> {
    let by_digest: BTreeMap<Digest, &LinkSight> = links.iter().map(|link| (link.digest, link)).collect();
    let mut speaking: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
    for link in links {
        if let Some(subject) = link.subject {
            speaking.entry(subject).or_default().push(link.digest);
        }
    }
    let mut kept = BTreeSet::new();
    let mut next: Vec<Digest> = roots.iter().copied().collect();
    while let Some(digest) = next.pop() {
        if !kept.insert(digest) {
            continue;
        }
        next.extend(speaking.get(&digest).into_iter().flatten());
        next.extend(by_digest.get(&digest).into_iter().flat_map(|link| &link.manifests));
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
            digest: Digest([7; 32]),
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
        let digest = |n: u8| Digest([n; 32]);
        let link = |n: u8, day: i64| LinkSight {
            digest: digest(n),
            manifests: Vec::new(),
            subject: None,
            used_at: at(day),
        };
        let (index, child, signature, orphan, old, new) = (1, 2, 3, 4, 5, 6);
        let all = [
            LinkSight { manifests: vec![digest(child)], ..link(index, 1) },
            link(child, 1),
            LinkSight { subject: Some(digest(child)), ..link(signature, 1) },
            LinkSight { subject: Some(digest(99)), ..link(orphan, 1) },
            link(old, 1),
            link(new, 19),
        ];
        let tagged = [digest(index)].into();
        let due = |days, tagged: &BTreeSet<Digest>| {
            let repository = repository(&[], Retention { untagged_days: days, ..Retention::default() });
            links_due(&repository, &all, tagged, at(20)).into_iter().map(|d| d.0[0]).collect::<Vec<_>>()
        };
        assert!(due(None, &tagged).is_empty());
        assert_eq!(due(Some(5), &tagged), [orphan, old]);
        assert_eq!(due(Some(0), &tagged), [orphan, old, new]);
        assert_eq!(due(Some(0), &BTreeSet::new()).len(), 6);
    }
}
