//! Makes an image of a member with all that it has written: Docker commits the container, held still for that moment, and
//! saves it as an archive. The image says nothing of Amphi's labels and goes again at once.

use super::labels;
use super::observed::Part;
use super::shared::Shared;
use super::{ENGINE, engine, succession};
use crate::instance::{DriverError, ExportPart, ExportPlan};
use amphi_api::image::ImageFormat;
use bollard::models::ContainerConfig;
use bollard::query_parameters::{
    CommitContainerOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder,
};
use futures_util::StreamExt;
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// For all bytes of a member.
const SAVE: Duration = Duration::from_secs(1800);
/// Labels of ours that a container has. Empty, they make no container of this image one of ours.
const OWN: [&str; 12] = [
    labels::INSTANCE,
    labels::EPOCH,
    labels::MEMBER,
    labels::INDEX,
    labels::SPEC,
    labels::PROJECT,
    labels::NAME,
    labels::KIND,
    labels::MEMBERS,
    labels::RESCUE,
    labels::GENERATION,
    labels::LIFE,
];

/// `parts`: of the instance, in start order.
pub async fn export(shared: &Shared, plan: &ExportPlan, parts: &[Part]) -> Result<(), DriverError> {
    let doing = format!("make an image of a member of {}", plan.instance);
    let refused = |message: &str| DriverError::EngineRefused {
        engine: ENGINE,
        doing: doing.clone(),
        message: message.to_owned(),
    };
    let (ExportPart::Member(member), ImageFormat::DockerArchive) = (&plan.part, plan.format) else {
        return Err(refused("a set has no disk, and its members become docker archives"));
    };
    let part = choose(parts, member.as_deref()).ok_or_else(|| refused("there is no such container"))?;
    remove_images(shared, plan).await?;
    let options = CommitContainerOptionsBuilder::default().container(&part.id).pause(true).build();
    let mut own: HashMap<String, String> =
        OWN.iter().map(|label| ((*label).to_owned(), String::new())).collect();
    own.insert(labels::EXPORT.to_owned(), plan.image.to_string());
    let config = ContainerConfig { labels: Some(own), ..Default::default() };
    let committed = {
        let _still = shared.keep_still(&part.id);
        let limit = shared.engine.limits.load;
        shared
            .engine
            .call(&doing, limit, |docker| async move { docker.commit_container(options, config).await })
            .await
    };
    let saved = match committed {
        Ok(image) => save(shared, plan, &image.id, &doing).await,
        Err(error) => Err(error),
    };
    let removed = remove_images(shared, plan).await;
    saved?;
    removed
}

/// The named member, or the first. A rescue's members are not the set's.
fn choose<'a>(parts: &'a [Part], member: Option<&str>) -> Option<&'a Part> {
    let newest = parts.last()?.tag.epoch;
    let own = |part: &&Part| part.tag.epoch == newest && matches!(part.tag.role, labels::Role::Member { .. });
    let first = parts.iter().find(own).and_then(|part| part.tag.role.member()).map(|(_, name)| name);
    succession::present(parts.iter().filter(own), member.or(first)?)
}

async fn save(shared: &Shared, plan: &ExportPlan, image: &str, doing: &str) -> Result<(), DriverError> {
    let io = |source| DriverError::Io { doing: doing.to_owned(), source };
    let client = shared.engine.client(doing)?;
    let write = async {
        let mut file = tokio::fs::File::create_new(&plan.to).await.map_err(io)?;
        let mut pieces = std::pin::pin!(client.export_image(image));
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| engine::refusal(doing, error))?;
            file.write_all(&piece).await.map_err(io)?;
        }
        file.flush().await.map_err(io)
    };
    let written = tokio::time::timeout(SAVE, write).await;
    written.unwrap_or_else(|_| {
        Err(DriverError::EngineTimeout { engine: ENGINE, doing: doing.to_owned(), limit: SAVE })
    })
}

/// Those made for this export, by this call or by one that was cut short.
async fn remove_images(shared: &Shared, plan: &ExportPlan) -> Result<(), DriverError> {
    let engine = &shared.engine;
    let label = format!("{}={}", labels::EXPORT, plan.image);
    let filters = HashMap::from([("label", vec![label.as_str()])]);
    let options = ListImagesOptionsBuilder::default().all(true).filters(&filters).build();
    let listed =
        engine
            .call("list images", engine.limits.call, |docker| async move {
                docker.list_images(Some(options)).await
            })
            .await?;
    for image in listed {
        let doing = format!("remove image {}", image.id);
        let options = RemoveImageOptionsBuilder::default().force(true).build();
        engine
            .find(&doing, engine.limits.call, |docker| async move {
                docker.remove_image(&image.id, Some(options), None).await
            })
            .await?;
    }
    Ok(())
}
