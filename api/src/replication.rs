//! Regions, the images that go to them and come from them, and policies by which images go by themselves. All of it is the
//! administrators'.

use crate::image::ImageVisibility;
use crate::{FieldError, ImageId, RegionId, ReplicationId, ReplicationPolicyId, validate};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use utoipa::ToSchema;

/// The slowest that a region may be limited to, in bytes per second: below, a line would pass for a dead one.
pub const RATE_MIN: u64 = 64 << 10;
/// Longest secret, and longest CA bundle, in bytes.
const SECRET_MAX: usize = 4096;
const CA_MAX: usize = 64 << 10;
/// Most properties that a policy asks for.
const PROPERTIES_MAX: usize = 16;

/// A text that is shown to nobody: not in listings, not in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// An application credential of another cloud's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegionCredential {
    pub id: String,
    #[schema(write_only)]
    pub secret: Secret,
}

/// Another controller to make known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegionCreate {
    /// 1 to 63 letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// `https://HOST[:PORT][/PATH]`, what `AMPHI_URL` is there.
    pub url: String,
    /// Its API token. Either this or a credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub token: Option<Secret>,
    /// An application credential there; the role `replicator` is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub credential: Option<RegionCredential>,
    /// Certificates (PEM) to trust in place of the usual ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// To it and from it, all transfers together; none: as fast as it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 65536)]
    pub bytes_per_second: Option<u64>,
}

/// What is to change of a region; what is not named stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RegionChange {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub token: Option<Secret>,
    /// In place of the former one, or of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(write_only)]
    pub credential: Option<RegionCredential>,
    /// Empty: the usual ones again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// 0: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

/// A region as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Region {
    pub id: RegionId,
    pub name: String,
    pub url: String,
    /// Whether it has certificates of its own to trust.
    pub ca: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub created_at: Timestamp,
}

impl RegionCreate {
    pub fn check(&self) -> Result<(), FieldError> {
        validate::label("name", &self.name)?;
        if self.token.is_none() && self.credential.is_none() {
            return Err(FieldError::new("token", "a token or an application credential is wanted"));
        }
        let change = RegionChange {
            url: Some(self.url.clone()),
            token: self.token.clone(),
            credential: self.credential.clone(),
            ca: self.ca.clone(),
            bytes_per_second: self.bytes_per_second,
        };
        change.check()
    }
}

impl RegionChange {
    pub fn check(&self) -> Result<(), FieldError> {
        if let Some(url) = &self.url {
            let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.:[]/~".contains(&b);
            let sound = |r: &str| !r.is_empty() && !r.starts_with(['/', ':']) && r.bytes().all(plain);
            if url.len() > 2000 || !rest.is_some_and(sound) {
                let message = "must be https://HOST[:PORT][/PATH] (or http://…), without user or password";
                return Err(FieldError::new("url", message));
            }
        }
        let secret = |field: &str, text: &str| {
            let sound =
                !text.is_empty() && text.len() <= SECRET_MAX && text.bytes().all(|b| b.is_ascii_graphic());
            let wrong = || FieldError::new(field, "is empty, too long or has characters that no token has");
            sound.then_some(()).ok_or_else(wrong)
        };
        if let Some(token) = &self.token {
            secret("token", &token.0)?;
            if self.credential.is_some() {
                return Err(FieldError::new("credential", "either a token or a credential, not both"));
            }
        }
        if let Some(credential) = &self.credential {
            secret("credential.id", &credential.id)?;
            secret("credential.secret", &credential.secret.0)?;
        }
        if self.ca.as_ref().is_some_and(|ca| {
            ca.len() > CA_MAX || !(ca.is_empty() || ca.contains("-----BEGIN CERTIFICATE-----"))
        }) {
            return Err(FieldError::new("ca", "must be certificates as PEM, at most 64 KiB"));
        }
        match self.bytes_per_second {
            Some(rate) if rate != 0 && rate < RATE_MIN => Err(FieldError::new(
                "bytes_per_second",
                format!("must be {RATE_MIN} or more; 0 for no limit"),
            )),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
// That of a security group's rule has the plain name.
#[schemars(rename = "ReplicationDirection")]
#[schema(as = ReplicationDirection)]
pub enum Direction {
    /// From here to the region.
    #[default]
    Push,
    /// From the region to here.
    Fetch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplicationState {
    /// It goes on by itself; after a failure that passes, `reason` says which.
    Waiting,
    Sending,
    Done,
    /// It was refused; `reason` says why. It is tried again all the same, less and less often.
    Failed,
}

/// An image to bring to a region, or to fetch from one. Ordered again, it is tried at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicationCreate {
    /// An id; of a fetch also the name that it has there.
    pub image: String,
    /// The region's name.
    pub region: String,
    #[serde(default)]
    pub direction: Direction,
    /// With the tags that name it in repositories.
    #[serde(default)]
    pub tags: bool,
}

impl ReplicationCreate {
    pub fn check(&self) -> Result<(), FieldError> {
        validate::name("image", &self.image)?;
        validate::name("region", &self.region)
    }
}

/// How far an image is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Replication {
    pub id: ReplicationId,
    pub image: ImageId,
    /// The image's.
    pub name: String,
    /// The region's name.
    pub region: String,
    pub direction: Direction,
    pub state: ReplicationState,
    /// The policy that asks for it; none: it was ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    pub tags: bool,
    /// Of the image, in bytes; what other images have brought before is in both.
    pub bytes_total: u64,
    pub bytes_arrived: u64,
    /// That went over the line, all attempts together.
    pub bytes_sent: u64,
    /// In a row, without success.
    pub attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub next_at: Option<Timestamp>,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub updated_at: Timestamp,
}

/// Which images go to a region by themselves, once they are whole and again when something is said anew of them. All that is
/// named must hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplicationPolicySpec {
    /// The policy's own: 1 to 63 letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// The region's name.
    pub region: String,
    /// Of the image's name: `web-*`, `debian-1?`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The name or id of the image's project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<ImageVisibility>,
    /// Properties that the image has, with these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// With the tags that name it in repositories.
    #[serde(default)]
    pub tags: bool,
    /// When the image is deleted here, its replica is there. Else replicas stay.
    #[serde(default)]
    pub deletes: bool,
}

impl ReplicationPolicySpec {
    pub fn check(&self) -> Result<(), FieldError> {
        validate::label("name", &self.name)?;
        validate::name("region", &self.region)?;
        self.image.iter().try_for_each(|pattern| validate::name("image", pattern))?;
        self.project.iter().try_for_each(|project| validate::name("project", project))?;
        match self.properties.len() > PROPERTIES_MAX {
            true => Err(FieldError::new("properties", format!("at most {PROPERTIES_MAX}"))),
            false => Ok(()),
        }
    }
}

/// A policy as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct ReplicationPolicy {
    pub id: ReplicationPolicyId,
    #[serde(flatten)]
    pub spec: ReplicationPolicySpec,
    /// Images that have gone by it, or are to.
    pub images: u64,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub created_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_secret_shows_nowhere() {
        let create: RegionCreate =
            serde_json::from_value(json!({"name": "south", "url": "http://h:1", "token": "hush-hush"}))
                .unwrap();
        assert!(!format!("{create:?}").contains("hush"), "{create:?}");
    }

    #[test]
    fn what_is_wrong_is_said_of_its_field() {
        let good =
            json!({"name": "south", "url": "https://h:1/amphi", "token": "t", "bytes_per_second": 65536});
        let check = |change: serde_json::Value| {
            let mut all = good.clone();
            all.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            serde_json::from_value::<RegionCreate>(all).unwrap().check().map_err(|e| e.field)
        };
        assert_eq!(check(json!({})), Ok(()));
        for (change, field) in [
            (json!({"name": "a b"}), "name"),
            (json!({"url": "ftp://h"}), "url"),
            (json!({"url": "http://u:p@h"}), "url"),
            (json!({"url": "http://"}), "url"),
            (json!({"token": ""}), "token"),
            (json!({"token": "a b"}), "token"),
            (json!({"token": null}), "token"),
            (json!({"credential": {"id": "i", "secret": "s"}}), "credential"),
            (json!({"token": null, "credential": {"id": "i", "secret": ""}}), "credential.secret"),
            (json!({"ca": "x"}), "ca"),
            (json!({"bytes_per_second": 1}), "bytes_per_second"),
        ] {
            assert_eq!(check(change.clone()), Err(field.to_owned()), "{change}");
        }
    }
}
