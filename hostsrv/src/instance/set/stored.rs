//! The bound of Docker's own store of images: of those that came by this agent, told by their name, the longest unused go
//! when there are too many. Docker itself refuses where a container is made of one. Refuses to touch any other name, so
//! that an image which somebody else has named too stays.

use super::engine::Engine;
use super::images::{Images, STORED};
use super::pull;
use crate::images::evict::{Entry, choose};
use crate::images::registry::REPOSITORY;
use crate::instance::DriverError;
use bollard::models::ImageSummary;
use bollard::query_parameters::{ListImagesOptionsBuilder, RemoveImageOptionsBuilder};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

/// What of Docker's images is ours.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ours {
    /// By the digest of the configuration, which is in the name; with the size in bytes, as Docker counts it: layers that
    /// several images share count for each.
    stored: Vec<(String, u64)>,
    /// The id, the tag that it should have and has not, and the name of a pull: that pull's agent has died before it could
    /// settle this.
    unsettled: Vec<(String, Option<String>, String)>,
}

fn ours(listed: &[ImageSummary]) -> Ours {
    let mut ours = Ours::default();
    for image in listed {
        let tag = image.repo_tags.iter().find_map(|name| name.strip_prefix(STORED)?.strip_prefix(':'));
        if let Some(tag) = tag {
            ours.stored.push((tag.to_owned(), u64::try_from(image.size).unwrap_or(0)));
        }
        for name in image.repo_digests.iter().filter(|name| is_pull(name)) {
            let missing = tag.is_none().then(|| image.id.trim_start_matches("sha256:").to_owned());
            ours.unsettled.push((image.id.clone(), missing, name.clone()));
        }
    }
    ours
}

/// `127.0.0.1:PORT/amphi@sha256:…`
fn is_pull(name: &str) -> bool {
    let Some((place, digest)) = name.split_once('@') else { return false };
    let Some((address, repository)) = place.split_once('/') else { return false };
    let loopback = address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    loopback && repository == REPOSITORY && digest.starts_with("sha256:")
}

async fn list(engine: &Engine) -> Result<Vec<ImageSummary>, DriverError> {
    let options = ListImagesOptionsBuilder::default().digests(true).build();
    let listed = engine.call("list images", engine.limits.call, |docker| async move {
        docker.list_images(Some(options)).await
    });
    listed.await
}

/// Digests of the configurations of our images.
pub async fn names(engine: &Engine) -> Result<BTreeSet<String>, DriverError> {
    Ok(ours(&list(engine).await?).stored.into_iter().map(|(tag, _)| tag).collect())
}

/// Removes images until at most `max_bytes` are left or all that is left is in use; answers their names. `in_use`:
/// digests of configurations. `used`: when one was last asked for.
pub async fn sweep(
    images: &Images,
    engine: &Engine,
    in_use: &BTreeSet<String>,
    used: impl Fn(&str) -> Option<SystemTime>,
    max_bytes: u64,
) -> Result<Vec<String>, DriverError> {
    let ours = ours(&list(engine).await?);
    let mut in_use = in_use.clone();
    // Those whose turn it is are being pulled.
    in_use.extend(ours.stored.iter().map(|(tag, _)| tag.clone()).filter(|tag| images.has_turn(tag)));
    for (id, missing, name) in &ours.unsettled {
        if images.has_turns() {
            break;
        }
        let tag = missing.as_deref();
        let settled = match tag {
            Some(tag) => pull::settle(engine, id, tag, name).await,
            None => remove(engine, name).await.map(drop),
        };
        if let Err(error) = settled {
            tracing::debug!(image = id, %error, "keeps the name of its pull");
        }
    }
    let entries = ours.stored.into_iter().map(|(name, size)| Entry {
        used: used(&name).unwrap_or(SystemTime::UNIX_EPOCH + Duration::from_secs(1)),
        name,
        size,
        spare: false,
    });
    let mut removed = Vec::new();
    for entry in choose(entries.collect(), &in_use, max_bytes) {
        let name = format!("{STORED}:{}", entry.name);
        match remove(engine, &name).await {
            Ok(true) => removed.push(name),
            Ok(false) => {}
            Err(DriverError::EngineRefused { message, .. }) => {
                tracing::debug!(name, message, "stays: something is made of it");
            }
            Err(error) => return Err(error),
        }
    }
    if !removed.is_empty() {
        images.forget();
    }
    Ok(removed)
}

/// Without force: the last name of an image that a container is made of stays.
async fn remove(engine: &Engine, name: &str) -> Result<bool, DriverError> {
    let options = RemoveImageOptionsBuilder::default().build();
    let doing = format!("remove image {name}");
    let removed = engine.find(&doing, engine.limits.call, |docker| async move {
        docker.remove_image(name, Some(options), None).await
    });
    Ok(removed.await?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_came_by_this_agent_is_ours() {
        let image = |id: &str, tags: &[&str], digests: &[&str]| ImageSummary {
            id: format!("sha256:{id}"),
            repo_tags: tags.iter().map(|t| (*t).to_owned()).collect(),
            repo_digests: digests.iter().map(|d| (*d).to_owned()).collect(),
            size: 7,
            ..ImageSummary::default()
        };
        let pulled = "127.0.0.1:4000/amphi@sha256:m";
        let found = ours(&[
            image("a", &["nginx:latest"], &["nginx@sha256:x", "127.0.0.1:4000/other@sha256:x"]),
            image("b", &["<none>:<none>"], &["<none>@<none>", "10.0.0.1:4000/amphi@sha256:x"]),
            image("c", &["nginx:1", "amphi-image:c"], &[]),
            image("d", &["amphi-image:d"], &[pulled]),
            image("e", &[], &[pulled]),
            image("f", &["amphi-anchor:1", "amphi-images:x"], &[]),
        ]);
        assert_eq!(found.stored, [("c".to_owned(), 7), ("d".to_owned(), 7)]);
        let unsettled =
            |id: &str, tag: Option<&str>| (format!("sha256:{id}"), tag.map(str::to_owned), pulled.to_owned());
        assert_eq!(found.unsettled, [unsettled("d", None), unsettled("e", Some("e"))]);
    }
}
