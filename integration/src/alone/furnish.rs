//! What instances on hosts in memory are made of: one network, and an image for each kind of body. The bytes are nobody's
//! to read.

use crate::container;
use amphi_api::client::Client;
use amphi_api::image::{BlobRole, ImageCreate};
use amphi_api::network::NetworkCreate;
use anyhow::{Context, Result};
use serde_json::json;
use std::path::Path;

/// The images' names.
pub const DISK: &str = "disk";
pub const ARCHIVE: &str = "archive";

/// Makes the network, and both images; their bytes lie in `folder`.
pub async fn furnish(client: &Client, folder: &Path, network: &str, cidr: &str) -> Result<()> {
    let network: NetworkCreate =
        serde_json::from_value(json!({ "name": network, "subnet": { "cidr": cidr } }))?;
    client.create_network(&network).await?;
    let file = folder.join("bytes");
    for (name, format, role, bytes) in [
        (DISK, "raw", BlobRole::Disk, vec![0; 4096]),
        (ARCHIVE, "docker-archive", BlobRole::Archive, container::archive()?),
    ] {
        std::fs::write(&file, bytes).context("an image's bytes")?;
        let image: ImageCreate = serde_json::from_value(json!({ "name": name, "format": format }))?;
        let image = client.create_image(&image).await?;
        client.upload_file(image.id, role, &file, Box::new(|_, _| {})).await?;
    }
    Ok(())
}
