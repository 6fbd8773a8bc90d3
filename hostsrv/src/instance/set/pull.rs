//! Container images that come by layer: Docker pulls them from the registry of this agent, by the manifest's digest, and
//! fetches just the layers that it lacks. One pull per image however many ask. What it then has is asked for and checked:
//! the configuration's digest is the image's id, or with containerd's image store the manifest's.

use super::ENGINE;
use super::engine::{Engine, refusal};
use super::images::{Images, STORED};
use crate::images::Trouble;
use crate::images::registry::{REPOSITORY, Registry, USER};
use crate::instance::{CachedImage, DriverError};
use amphi_api::ImageId;
use amphi_api::image::{BlobRole, Image};
use bollard::auth::DockerCredentials;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};
use futures_util::StreamExt;
use std::sync::Arc;

/// Pulls of an image in a row, where a layer had changed in the cache: each takes at least one such layer away.
const PULLS: usize = 3;

/// What Docker may call the image: by its configuration, or by its manifest.
struct Ids([String; 2]);

impl Ids {
    fn of(image: &Image) -> Result<Self, DriverError> {
        let id = |role: BlobRole| {
            let blob = image.blobs.get(&role).ok_or_else(|| DriverError::ImageBroken {
                image: image.id,
                message: format!("its {role:?} has not been uploaded"),
            })?;
            Ok::<_, DriverError>(format!("sha256:{}", blob.sha256))
        };
        Ok(Self([id(BlobRole::Config)?, id(BlobRole::Manifest)?]))
    }

    /// The tag under which it stays in Docker's store.
    fn tag(&self) -> &str {
        self.0[0].trim_start_matches("sha256:")
    }
}

/// Makes sure that Docker has the image; answers its id there.
pub async fn ensure(
    images: &Images,
    registry: &Arc<Registry>,
    engine: &Engine,
    cached: &CachedImage,
) -> Result<String, DriverError> {
    let ids = Ids::of(&cached.image)?;
    if let Some(id) = look(images, engine, &ids).await? {
        return Ok(id);
    }
    let turn = images.turn(ids.tag());
    let _mine = turn.lock().await;
    if let Some(id) = look(images, engine, &ids).await? {
        return Ok(id);
    }
    let (image, mut cached) = (cached.image.id, cached.clone());
    let mut pulls = 1;
    let reference = loop {
        match pull(registry, engine, &cached).await? {
            Ok(reference) => break reference,
            Err(Trouble::Changed(message)) if pulls < PULLS => {
                tracing::warn!(%image, "pulled once more: {message}");
                pulls += 1;
                cached = registry.cache().ensure(&cached.image).await?;
            }
            Err(trouble) => return Err(trouble.of(image)),
        }
    };
    let id = look(images, engine, &ids).await?.ok_or_else(|| DriverError::ImageBroken {
        image,
        message: format!("Docker pulled it, yet has no image {} or {}", ids.0[0], ids.0[1]),
    })?;
    settle(engine, &id, ids.tag(), &reference).await?;
    images.flush(engine).await;
    Ok(id)
}

async fn look(images: &Images, engine: &Engine, ids: &Ids) -> Result<Option<String>, DriverError> {
    for id in &ids.0 {
        if images.is_present(engine, id).await? {
            return Ok(Some(id.clone()));
        }
    }
    Ok(None)
}

/// One pull. Answers the reference that Docker has the image under, or what was wrong with its bytes on the way.
async fn pull(
    registry: &Arc<Registry>,
    engine: &Engine,
    cached: &CachedImage,
) -> Result<Result<String, Trouble>, DriverError> {
    let image = cached.image.id;
    let offer = match registry.offer(cached).await {
        Ok(offer) => offer,
        Err(trouble) => return Ok(Err(trouble)),
    };
    let repository = format!("{}/{REPOSITORY}", registry.address());
    let pulled = tokio::select! {
        pulled = run(registry, engine, image, &repository, offer.reference()) => pulled,
        // Docker would try again for a minute, and then know less.
        trouble = offer.trouble() => return Ok(Err(trouble)),
    };
    match (pulled, offer.had_trouble()) {
        (Ok(()), _) => Ok(Ok(format!("{repository}@{}", offer.reference()))),
        (Err(_), Some(trouble)) => Ok(Err(trouble)),
        (Err(error), None) => Err(broken_or(error, image)),
    }
}

async fn run(
    registry: &Registry,
    engine: &Engine,
    image: ImageId,
    repository: &str,
    digest: &str,
) -> Result<(), DriverError> {
    let doing = format!("pull image {image}");
    let docker = engine.client(&doing)?;
    let credentials = DockerCredentials {
        username: Some(USER.to_owned()),
        password: Some(registry.password().to_owned()),
        serveraddress: Some(registry.address().to_string()),
        ..DockerCredentials::default()
    };
    let options = CreateImageOptionsBuilder::default().from_image(repository).tag(digest).build();
    let mut answers = std::pin::pin!(docker.create_image(Some(options), None, Some(credentials)));
    // However long it takes, as long as it goes on: Docker tells of every piece that it has taken.
    let limit = engine.limits.load;
    loop {
        match tokio::time::timeout(limit, answers.next()).await {
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(error))) => return Err(refusal(&doing, error)),
            Ok(None) => return Ok(()),
            Err(_) => return Err(DriverError::EngineTimeout { engine: ENGINE, doing, limit }),
        }
    }
}

/// What Docker says of an image whose bytes it does not take. A full disk is no fault of the image, nor is a Docker that
/// does not get through to the registry.
fn broken_or(error: DriverError, image: ImageId) -> DriverError {
    const MARKS: [&str; 5] =
        ["verification failed", "failed to register layer", "unsupported", "mismatch", "do not match"];
    match error {
        DriverError::EngineRefused { message, .. }
            if !message.contains("no space left") && MARKS.iter().any(|mark| message.contains(mark)) =>
        {
            DriverError::ImageBroken { image, message }
        }
        other => other,
    }
}

/// The image is kept under a name that tells whose it is, and no longer under the port of this run of the agent.
pub async fn settle(engine: &Engine, id: &str, tag: &str, reference: &str) -> Result<(), DriverError> {
    keep(engine, id, tag).await?;
    let doing = format!("forget where image {id} came from");
    let options = RemoveImageOptionsBuilder::default().build();
    let removed = engine.find(&doing, engine.limits.call, |docker| async move {
        docker.remove_image(reference, Some(options), None).await
    });
    removed.await.map(drop)
}

/// Names an image that came by this agent, so that it is known as ours: only such are ever removed.
pub async fn keep(engine: &Engine, id: &str, tag: &str) -> Result<(), DriverError> {
    let doing = format!("name image {id}");
    let options = TagImageOptionsBuilder::default().repo(STORED).tag(tag).build();
    engine
        .call(&doing, engine.limits.call, |docker| async move { docker.tag_image(id, Some(options)).await })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_says_of_an_image() {
        let table = [
            ("filesystem layer verification failed for digest sha256:1", "image_broken"),
            ("failed to register layer: archive/tar: invalid tar header", "image_broken"),
            ("failed to register layer: write /x: no space left on device", "engine_refused"),
            ("Get \"http://127.0.0.1:5/v2/\": dial tcp: connection refused", "engine_refused"),
        ];
        for (message, code) in table {
            let (doing, message) = ("pull image".to_owned(), message.to_owned());
            let error = DriverError::EngineRefused { engine: ENGINE, doing, message };
            let text = error.to_string();
            assert_eq!(broken_or(error, ImageId::new()).code(), code, "{text}");
        }
    }
}
