//! Regions, the images that go to them or come from them, and the policies that send them: pure.
//!
//! A replication is open from its order until what was to go is there; then it is done, until its policy finds that more is
//! said of the image than was brought. A failure leaves it open: it is tried again, less and less often.

use super::repository::fits;
use super::{ImageRecord, Record};
use amphi_api::image::ImageState;
use amphi_api::replication::{Direction, RegionCredential, ReplicationPolicySpec, ReplicationState, Secret};
use amphi_api::{ImageId, ProjectId, RegionId, ReplicationId, ReplicationPolicyId};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest time between two attempts: of what passes, and of what was refused.
const PASSING_MAX: SignedDuration = SignedDuration::from_secs(60);
const REFUSED_MAX: SignedDuration = SignedDuration::from_secs(600);
/// After the first failure, in seconds; twice as long after each that follows.
const PASSING_FIRST: i64 = 1;
const REFUSED_FIRST: i64 = 4;

/// Another controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerRecord {
    pub name: String,
    pub url: String,
    /// This or a credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<RegionCredential>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    pub created_at: Timestamp,
}

impl Record for PeerRecord {
    const PREFIX: &'static str = "/peer/";
    const NOUN: &'static str = "region";
    type Id = RegionId;
    fn id(&self) -> RegionId {
        RegionId::of(&self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicationPolicyRecord {
    pub spec: ReplicationPolicySpec,
    /// The project that its spec names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectId>,
    pub created_at: Timestamp,
}

impl ReplicationPolicyRecord {
    pub fn region(&self) -> RegionId {
        RegionId::of(&self.spec.region)
    }

    /// Whether an image goes by it.
    pub fn means(&self, image: &ImageRecord) -> bool {
        let spec = &self.spec;
        let property = |(key, value): (&String, &String)| image.traits.properties.get(key) == Some(value);
        image.state() == ImageState::Active
            && !image.closing
            && spec.image.as_ref().is_none_or(|p| fits(p.as_bytes(), image.name.as_bytes()))
            && self.project.is_none_or(|project| project == image.project)
            && spec.visibility.is_none_or(|wanted| wanted == image.traits.visibility.into())
            && spec.properties.iter().all(property)
    }
}

impl Record for ReplicationPolicyRecord {
    const PREFIX: &'static str = "/replication-policy/";
    const NOUN: &'static str = "replication policy";
    type Id = ReplicationPolicyId;
    fn id(&self) -> ReplicationPolicyId {
        ReplicationPolicyId::of(&self.spec.name)
    }
}

/// That an image goes to a region, or comes from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicationRecord {
    pub image: ImageId,
    pub region: RegionId,
    pub direction: Direction,
    /// The image's, for people.
    pub name: String,
    pub tags: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<ReplicationPolicyId>,
    pub open: bool,
    /// What was said of the image when it was brought last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brought: Option<String>,
    /// In a row, without success.
    #[serde(default)]
    pub attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hitch: Option<Hitch>,
    /// Of the image, in bytes.
    #[serde(default)]
    pub total: u64,
    /// Of them, so many were there when the last attempt ended.
    #[serde(default)]
    pub arrived: u64,
    /// That went over the line in all attempts.
    #[serde(default)]
    pub sent: u64,
    pub updated_at: Timestamp,
}

/// Why an attempt came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hitch {
    /// Somebody refused, and has to do something about it; else it passes by itself.
    pub refused: bool,
    pub reason: String,
}

impl ReplicationRecord {
    pub fn new(image: ImageId, region: RegionId, direction: Direction, name: &str, now: Timestamp) -> Self {
        Self {
            image,
            region,
            direction,
            name: name.to_owned(),
            tags: false,
            policy: None,
            open: true,
            brought: None,
            attempts: 0,
            next_at: None,
            hitch: None,
            total: 0,
            arrived: 0,
            sent: 0,
            updated_at: now,
        }
    }

    pub fn of(image: ImageId, region: RegionId, direction: Direction) -> ReplicationId {
        let way = match direction {
            Direction::Push => "push",
            Direction::Fetch => "fetch",
        };
        ReplicationId(Uuid::new_v5(&region.0, format!("{way} {image}").as_bytes()))
    }

    /// It is to be tried as soon as may be.
    pub fn ask(&mut self, now: Timestamp) {
        (self.open, self.attempts, self.next_at, self.hitch) = (true, 0, None, None);
        self.updated_at = now;
    }

    pub fn is_due(&self, now: Timestamp) -> bool {
        self.open && self.next_at.is_none_or(|at| at <= now)
    }

    pub fn succeed(&mut self, mark: String, now: Timestamp) {
        (self.open, self.attempts, self.next_at, self.hitch) = (false, 0, None, None);
        (self.brought, self.updated_at) = (Some(mark), now);
    }

    /// `moved`: bytes went over before it failed.
    pub fn fail(&mut self, hitch: Hitch, moved: bool, now: Timestamp) {
        if moved && !hitch.refused {
            self.attempts = 0;
        }
        let (first, most) = match hitch.refused {
            true => (REFUSED_FIRST, REFUSED_MAX),
            false => (PASSING_FIRST, PASSING_MAX),
        };
        let pause = SignedDuration::from_secs(first << self.attempts.min(20)).min(most);
        self.attempts = self.attempts.saturating_add(1);
        self.next_at = Some(now + pause);
        self.hitch = Some(hitch);
        self.updated_at = now;
    }

    pub fn state(&self, running: bool) -> ReplicationState {
        match (self.open, running, &self.hitch) {
            (_, true, _) => ReplicationState::Sending,
            (false, ..) => ReplicationState::Done,
            (true, _, Some(hitch)) if hitch.refused => ReplicationState::Failed,
            (true, ..) => ReplicationState::Waiting,
        }
    }
}

impl Record for ReplicationRecord {
    const PREFIX: &'static str = "/replication/";
    const NOUN: &'static str = "replication";
    type Id = ReplicationId;
    fn id(&self) -> ReplicationId {
        Self::of(self.image, self.region, self.direction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Visibility;
    use amphi_api::image::{Blob, BlobRole, ImageFormat};
    use serde_json::json;

    fn image(name: &str) -> ImageRecord {
        ImageRecord {
            id: ImageId::new(),
            project: ProjectId::DEFAULT,
            name: name.into(),
            format: ImageFormat::Raw,
            cmdline: String::new(),
            blobs: [(BlobRole::Disk, Blob { sha256: "0".repeat(64), size: 1 })].into(),
            layers: Vec::new(),
            traits: Default::default(),
            export: None,
            closing: false,
            created_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn which_images_go() {
        let means = |spec: serde_json::Value, image: &ImageRecord| {
            let mut all = json!({"name": "p", "region": "r"});
            all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            let project = spec.get("project").map(|_| ProjectId(Uuid::nil()));
            let spec = serde_json::from_value(all).unwrap();
            ReplicationPolicyRecord { spec, project, created_at: Timestamp::UNIX_EPOCH }.means(image)
        };
        let mut web = image("web-1");
        web.traits.visibility = Visibility::Public;
        web.traits.properties.insert("stage".into(), "live".into());
        for (spec, goes) in [
            (json!({}), true),
            (json!({"image": "web-*"}), true),
            (json!({"image": "web-?"}), true),
            (json!({"image": "db*"}), false),
            (json!({"visibility": "public", "properties": {"stage": "live"}}), true),
            (json!({"visibility": "private"}), false),
            (json!({"properties": {"stage": "test"}}), false),
            (json!({"project": "other"}), false),
        ] {
            assert_eq!(means(spec.clone(), &web), goes, "{spec}");
        }
        assert!(!means(json!({}), &ImageRecord { closing: true, ..web.clone() }), "on its way out");
        assert!(!means(json!({}), &ImageRecord { blobs: Default::default(), ..web }), "not whole yet");
    }

    #[test]
    fn attempts_become_rare_and_progress_makes_them_frequent() {
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        let mut record =
            ReplicationRecord::new(ImageId::new(), RegionId::of("r"), Direction::Push, "i", at(0));
        let passing = Hitch { refused: false, reason: "gone".into() };
        let refused = Hitch { refused: true, reason: "no".into() };
        assert!(record.is_due(at(0)));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            record.fail(passing.clone(), false, at(0));
            pauses.push(record.next_at.unwrap().as_second());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(!record.is_due(at(59)) && record.is_due(at(60)));
        assert_eq!(record.state(false), ReplicationState::Waiting);
        record.fail(passing, true, at(0));
        assert_eq!(record.next_at, Some(at(1)), "something arrived");
        record.attempts = 30;
        record.fail(refused, true, at(0));
        assert_eq!((record.next_at, record.state(false)), (Some(at(600)), ReplicationState::Failed));
        assert_eq!(record.state(true), ReplicationState::Sending);
        record.ask(at(5));
        assert!(record.is_due(at(5)) && record.hitch.is_none());
        record.succeed("mark".into(), at(6));
        assert_eq!((record.is_due(at(9)), record.state(false)), (false, ReplicationState::Done));
    }
}
