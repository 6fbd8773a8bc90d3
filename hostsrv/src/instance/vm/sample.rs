//! A plan for the tests of this module: fixed ids, so that golden texts stay.

use crate::instance::{BodyPlan, CachedImage, PortAttachment, VolumeAttachment};
use amphi_api::image::{Blob, BlobRole, Image, ImageFormat, ImageState};
use amphi_api::instance::Power;
use amphi_api::wire::BodyDesired;
use amphi_api::{ImageId, InstanceId, NetworkId, PortId, ProjectId, VolumeId};
use std::collections::BTreeMap;
use uuid::Uuid;

pub fn plan(format: ImageFormat) -> BodyPlan {
    let id = |n: u128| Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0000 + n);
    let image = Image {
        id: ImageId(id(1)),
        project: ProjectId::DEFAULT,
        name: "small".into(),
        format,
        cmdline: if format == ImageFormat::KernelInitramfs { "quiet".into() } else { String::new() },
        state: ImageState::Active,
        layers: Vec::new(),
        blobs: format.roles().iter().map(|r| (*r, Blob { sha256: "0".repeat(64), size: 1 })).collect(),
        created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
    };
    let blobs: BTreeMap<BlobRole, _> = format
        .roles()
        .iter()
        .map(|role| (*role, format!("/s/images/{}", format!("{role:?}").to_lowercase()).into()))
        .collect();
    BodyPlan {
        members: Default::default(),
        instance: InstanceId(id(2)),
        project: ProjectId::DEFAULT,
        name: "web <1> & \"co\"".into(),
        epoch: 3,
        vcpus: 2,
        memory_mib: 128,
        power: Power::On,
        body: BodyDesired::Vm { image: image.clone(), root_gib: None, probes: Default::default() },
        rescue: None,
        root: 1,
        ports: vec![PortAttachment {
            id: PortId(id(3)),
            network: NetworkId(id(4)),
            subnet: "10.1.0.0/24".parse().unwrap(),
            mac: "fa:16:3e:00:00:01".into(),
            address: "10.1.0.5/24".parse().unwrap(),
            gateway: Some("10.1.0.1".parse().unwrap()),
            dns: vec!["10.1.0.2".parse().unwrap()],
            mtu: 1442,
            segment: None,
            further: Vec::new(),
            routes: Vec::new(),
        }],
        root_volume: None,
        attachments: Vec::new(),
        volume: Some(VolumeAttachment { id: VolumeId(id(5)), device: "/dev/loop7".into(), mount: None }),
        images: BTreeMap::from([(image.id, CachedImage { image, blobs })]),
        user_data: Some("#!/bin/sh\necho hello\n".into()),
        ssh_keys: vec!["ssh-ed25519 AAAA someone@there".into()],
        metadata: BTreeMap::from([("tier".to_owned(), "front".to_owned())]),
        twin: false,
    }
}
