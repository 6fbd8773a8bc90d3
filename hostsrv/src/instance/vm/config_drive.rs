//! Owns the config drive: OpenStack's layout (cloud-init's ConfigDrive source), rendered from a plan into JSON texts
//! and those into a small FAT image labelled `config-2`. Deterministic: the same plan gives the same bytes.

use crate::instance::BodyPlan;
use amphi_api::validate::hostname;
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use serde_json::{Map, Value, json};
use std::io::{self, Cursor, Write};
use std::net::IpAddr;

/// What cloud-init reads first: `openstack/latest`.
const FOLDERS: [&str; 2] = ["openstack", "latest"];
/// The label that marks a config drive, padded as FAT has it.
const LABEL: [u8; 11] = *b"config-2   ";
/// Room beside the files, for the FAT itself and half-filled clusters, in bytes.
const SLACK: usize = 256 << 10;

/// The drive's files: name and bytes.
pub fn files(plan: &BodyPlan) -> Vec<(&'static str, Vec<u8>)> {
    let text = |value: Value| format!("{value:#}\n").into_bytes();
    let mut files = vec![
        ("meta_data.json", text(meta_data(plan))),
        ("network_data.json", text(network_data(plan))),
        ("vendor_data.json", text(json!({}))),
    ];
    if let Some(user_data) = &plan.user_data {
        files.push(("user_data", user_data.clone().into_bytes()));
    }
    files
}

/// `meta_data.json` as nova writes it (docs.openstack.org/nova, "Metadata service").
pub fn meta_data(plan: &BodyPlan) -> Value {
    let named: Vec<(String, &String)> =
        plan.ssh_keys.iter().enumerate().map(|(at, key)| (format!("key-{at}"), key)).collect();
    let public: Map<String, Value> = named.iter().map(|(name, key)| (name.clone(), json!(key))).collect();
    let keys: Vec<Value> =
        named.iter().map(|(name, key)| json!({"name": name, "type": "ssh", "data": key})).collect();
    json!({
        "uuid": plan.instance,
        "name": plan.name,
        "hostname": hostname(&plan.name),
        "project_id": plan.project,
        "launch_index": 0,
        "meta": plan.metadata,
        "public_keys": public,
        "keys": keys,
    })
}

/// `network_data.json` as nova writes it: links, their static addresses, name servers.
pub fn network_data(plan: &BodyPlan) -> Value {
    let links: Vec<Value> = plan
        .ports
        .iter()
        .map(|port| {
            json!({"id": port.id, "vif_id": port.id, "type": "ovs", "mtu": port.mtu, "ethernet_mac_address": port.mac})
        })
        .collect();
    let networks: Vec<Value> = plan
        .ports
        .iter()
        .enumerate()
        .map(|(at, port)| {
            let any = if port.address.addr().is_ipv4() { "0.0.0.0" } else { "::" };
            // Only eth0's gateway becomes the default route: a second one would only compete.
            let routes: Vec<Value> = port
                .gateway
                .filter(|_| at == 0)
                .iter()
                .map(|gateway| json!({"network": any, "netmask": any, "gateway": gateway}))
                .collect();
            json!({
                "id": format!("network{at}"),
                "network_id": port.network,
                "link": port.id,
                "type": if port.address.addr().is_ipv4() { "ipv4" } else { "ipv6" },
                "ip_address": port.address.addr(),
                "netmask": port.address.netmask(),
                "routes": routes,
            })
        })
        .collect();
    let mut servers: Vec<IpAddr> = Vec::new();
    for server in plan.ports.iter().flat_map(|port| &port.dns) {
        if !servers.contains(server) {
            servers.push(*server);
        }
    }
    let services: Vec<Value> = servers.iter().map(|s| json!({"type": "dns", "address": s})).collect();
    json!({"links": links, "networks": networks, "services": services})
}

/// The FAT image's bytes.
pub fn image(files: &[(&str, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let content: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    // Whole MiB, so that every guest's partition tools are content.
    let size = (content + SLACK).div_ceil(1 << 20) << 20;
    let mut disk = Cursor::new(vec![0_u8; size]);
    // A volume id that never changes; nothing tells drives apart by it.
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat12)
        .bytes_per_cluster(cluster(size))
        .volume_id(0x616d_7068)
        .volume_label(LABEL);
    format_volume(&mut disk, options)?;
    {
        let system = FileSystem::new(&mut disk, FsOptions::new().update_accessed_date(false))?;
        let folder = system.root_dir().create_dir(FOLDERS[0])?.create_dir(FOLDERS[1])?;
        for (name, bytes) in files {
            let mut file = folder.create_file(name)?;
            file.write_all(bytes)?;
            file.flush()?;
        }
        drop(folder);
        system.unmount()?;
    }
    Ok(disk.into_inner())
}

/// Clusters so large that FAT12's 4,084 of them cover the drive.
fn cluster(size: usize) -> u32 {
    let mut bytes = 512_usize;
    while size / bytes > 4000 {
        bytes *= 2;
    }
    bytes as u32
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use amphi_api::image::ImageFormat;
    use std::io::Read;

    #[test]
    fn golden_texts() {
        let plan = sample::plan(ImageFormat::KernelInitramfs);
        insta::assert_json_snapshot!("meta_data", meta_data(&plan));
        insta::assert_json_snapshot!("network_data", network_data(&plan));
    }

    #[test]
    fn two_ports_have_one_default_route_and_each_server_once() {
        let mut plan = sample::plan(ImageFormat::KernelInitramfs);
        let mut second = plan.ports[0].clone();
        second.address = "2001:db8::5/64".parse().unwrap();
        second.gateway = Some("2001:db8::1".parse().unwrap());
        plan.ports.push(second);
        let data = network_data(&plan);
        assert_eq!(data["networks"][1]["type"], "ipv6");
        assert_eq!(data["networks"][1]["routes"], json!([]));
        assert_eq!(data["services"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn the_image_holds_the_files_and_is_always_the_same() {
        let mut plan = sample::plan(ImageFormat::KernelInitramfs);
        for user_data in [None, Some("x".into()), Some("y".repeat(65_535)), Some("z".repeat(3 << 20))] {
            plan.user_data = user_data;
            let files = files(&plan);
            let bytes = image(&files).unwrap();
            assert_eq!(bytes, image(&files).unwrap());
            let system = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
            assert_eq!(system.volume_label(), "config-2");
            assert_eq!(system.read_volume_label_from_root_dir().unwrap().as_deref(), Some("config-2"));
            for (name, expected) in &files {
                let mut found = Vec::new();
                let path = format!("openstack/latest/{name}");
                system.root_dir().open_file(&path).unwrap().read_to_end(&mut found).unwrap();
                assert!(&found == expected, "{name}");
            }
        }
    }
}
