//! Images that hosts fetch before anything starts from them, and what hosts say that they have. Pure.
//!
//! An order is in the record until its host says that the image is there; then the host is free to evict it like any other.
//! A policy stays, and with it the image, on every host that it means, those that join later included.

use super::Record;
use amphi_api::host::HostState;
use amphi_api::prepull::{HostImages, ImageOnHost, Mark, PrepullPolicy, PrepullState};
use amphi_api::wire::WIRE_IMAGES;
use amphi_api::{HostId, ImageId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrepullRecord {
    pub image: ImageId,
    #[serde(default)]
    pub policy: Option<PrepullPolicy>,
    /// Hosts that were told to fetch it and have not, since when.
    #[serde(default)]
    pub orders: BTreeMap<HostId, Timestamp>,
}

impl PrepullRecord {
    pub fn new(image: ImageId) -> Self {
        Self { image, policy: None, orders: BTreeMap::new() }
    }

    /// It asks for nothing any more.
    pub fn is_over(&self) -> bool {
        self.policy.is_none() && self.orders.is_empty()
    }

    pub fn keeps(&self, zone: &str) -> bool {
        self.policy.as_ref().is_some_and(|policy| policy.means(zone))
    }

    /// Whether a host of this zone is to have it.
    pub fn asks(&self, host: HostId, zone: &str) -> bool {
        self.keeps(zone) || self.orders.contains_key(&host)
    }

    /// What a host says ends its order.
    pub fn ends(&self, host: HostId, told: &HostImages) -> bool {
        self.orders.contains_key(&host) && told.fetches.iter().any(|f| f.image == self.image && f.held)
    }
}

impl Record for PrepullRecord {
    const PREFIX: &'static str = "/prepull/";
    const NOUN: &'static str = "pre-pull";
    type Id = ImageId;
    fn id(&self) -> ImageId {
        self.image
    }
}

/// What a host says that it has of images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostImagesRecord {
    pub host: HostId,
    pub told: HostImages,
}

impl Record for HostImagesRecord {
    const PREFIX: &'static str = "/host-images/";
    const NOUN: &'static str = "host's images";
    type Id = HostId;
    fn id(&self) -> HostId {
        self.host
    }
}

/// A host, as far as its images go.
pub struct HostSight<'a> {
    pub id: HostId,
    pub name: &'a str,
    pub state: HostState,
    pub zone: &'a str,
    /// How much of the controller's words its agent knows.
    pub wire: u32,
    pub told: Option<&'a HostImages>,
}

/// How it stands with an image on a host.
pub fn prepull_state(
    image: ImageId,
    mark: Option<Mark<'_>>,
    record: Option<&PrepullRecord>,
    host: &HostSight<'_>,
) -> ImageOnHost {
    let ordered = record.is_some_and(|record| record.orders.contains_key(&host.id));
    let kept = record.is_some_and(|record| record.keeps(host.zone));
    let fetch = host.told.and_then(|told| told.fetches.iter().find(|fetch| fetch.image == image));
    let there = host.told.zip(mark).is_some_and(|(told, mark)| told.has(mark));
    let row = |state, percent, reason| ImageOnHost {
        host: host.id,
        name: host.name.to_owned(),
        state,
        ordered,
        kept,
        percent,
        reason,
    };
    if there || fetch.is_some_and(|fetch| fetch.held) {
        return row(PrepullState::Held, None, None);
    }
    if !ordered && !kept {
        return row(PrepullState::Absent, None, None);
    }
    if host.wire < WIRE_IMAGES && host.state == HostState::Up {
        let why = "its agent is older than pre-pulling: upgrade it".to_owned();
        return row(PrepullState::Failed, None, Some(why));
    }
    match fetch {
        _ if host.state != HostState::Up => {
            row(PrepullState::Waiting, None, Some("the host is not connected".into()))
        }
        None => row(PrepullState::Waiting, None, None),
        Some(fetch) => match &fetch.fault {
            Some(fault) => row(PrepullState::Failed, None, Some(fault.message.clone())),
            None => row(PrepullState::Fetching, Some(fetch.percent), None),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::instance::Fault;
    use amphi_api::prepull::ImageFetch;

    #[test]
    fn how_an_image_stands_on_a_host() {
        let (image, id) = (ImageId::new(), HostId::new());
        let ordered = PrepullRecord {
            orders: BTreeMap::from([(id, Timestamp::UNIX_EPOCH)]),
            ..PrepullRecord::new(image)
        };
        let policy = PrepullPolicy { zones: ["east".to_owned()].into(), all: false };
        let kept = PrepullRecord { policy: Some(policy), ..PrepullRecord::new(image) };
        let fault =
            Fault { code: "internal".into(), message: "no room".into(), since: Timestamp::UNIX_EPOCH };
        let fetch = |percent, held, fault| HostImages {
            fetches: vec![ImageFetch { image, percent, held, fault }],
            ..HostImages::default()
        };
        let cached = HostImages { blobs: ["d".to_owned()].into(), ..HostImages::default() };
        let nothing = HostImages::default();
        let (coming, failed, done) =
            (fetch(40, false, None), fetch(0, false, Some(fault)), fetch(100, true, None));
        use PrepullState::{Absent, Failed, Fetching, Held, Waiting};
        let table = [
            ("nobody asked", None, "east", 2, &nothing, Absent, None),
            ("there all the same", None, "east", 2, &cached, Held, None),
            ("ordered", Some(&ordered), "east", 2, &nothing, Waiting, None),
            ("on its way", Some(&ordered), "east", 2, &coming, Fetching, None),
            ("failed", Some(&ordered), "east", 2, &failed, Failed, Some("no room")),
            ("fetched", Some(&ordered), "east", 2, &done, Held, None),
            ("an older agent", Some(&ordered), "east", 1, &nothing, Failed, Some("upgrade")),
            ("kept here", Some(&kept), "east", 2, &nothing, Waiting, None),
            ("kept elsewhere", Some(&kept), "west", 2, &nothing, Absent, None),
        ];
        for (what, record, zone, wire, told, state, reason) in table {
            let sight = HostSight { id, name: "h1", state: HostState::Up, zone, wire, told: Some(told) };
            let row = prepull_state(image, Some(Mark::Blob("d")), record, &sight);
            assert_eq!(row.state, state, "{what}");
            let said = row.reason.as_deref().unwrap_or_default();
            assert!(reason.map_or(said.is_empty(), |reason| said.contains(reason)), "{what}: {said}");
        }
        assert!(ordered.ends(id, &done) && !ordered.ends(id, &coming) && !kept.ends(id, &done));
    }
}
