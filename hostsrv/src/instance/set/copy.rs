//! Files of members, as tar archives over Docker's archive calls: they see what the member sees, its volumes and binds
//! included, whether it runs or not; but not its tmpfs. Refuses the anchor, and archives that lead out (see
//! [`crate::instance::tar_gate`]).

use super::ENGINE;
use super::engine::refusal;
use super::observed::Part;
use super::shared::Shared;
use crate::instance::DriverError;
use crate::instance::streams::{Bare, Inside, Opened, Piece};
use crate::instance::tar_gate::{self, Intake, LEFT};
use amphi_api::looking::{CopySpec, CopyWay, FileFound};
use amphi_api::streams::STDOUT;
use async_trait::async_trait;
use bollard::query_parameters::{
    ContainerArchiveInfoOptionsBuilder, DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{once, unfold};
use std::sync::Arc;
use tokio::task::AbortHandle;

/// Go's bits of a file's mode, as Docker tells it (`io/fs`, `ModeDir`, `ModeSymlink`).
const DIRECTORY: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;

pub async fn open(shared: &Arc<Shared>, part: &Part, spec: &CopySpec) -> Result<Opened, DriverError> {
    let doing = format!("copy {} of container {}", spec.path, part.id);
    let refused = |message: &str| DriverError::EngineRefused {
        engine: ENGINE,
        doing: doing.clone(),
        message: message.into(),
    };
    if part.is_anchor() {
        return Err(refused("nobody looks into a set's anchor"));
    }
    let found = find(shared, part, &spec.path).await?;
    match spec.way {
        CopyWay::Look => {
            let line = serde_json::to_string(&found).map_err(|error| refused(&error.to_string()))? + "\n";
            let output = once(async { Ok(Piece { channel: STDOUT, bytes: Bytes::from(line) }) }).boxed();
            Ok(Opened { input: None, output, inside: Box::new(Bare) })
        }
        CopyWay::Out if found.is_none() => Err(refused("there is no such file")),
        CopyWay::Out => out(shared, part, &spec.path, doing),
        CopyWay::In => match found {
            Some(FileFound { directory: true, .. }) => into(shared, part, &spec.path, doing),
            Some(_) => Err(refused("it is no directory")),
            None => Err(refused("there is no such directory")),
        },
    }
}

/// What is at the path, links followed; none: nothing.
async fn find(shared: &Shared, part: &Part, path: &str) -> Result<Option<FileFound>, DriverError> {
    let engine = &shared.engine;
    let mut path = path.to_owned();
    // Docker answers a link with where it leads, within the member.
    for _ in 0..2 {
        let doing = format!("look at {path} of container {}", part.id);
        let options = ContainerArchiveInfoOptionsBuilder::default().path(&path).build();
        let seen = engine
            .find(&doing, engine.limits.call, |docker| async move {
                docker.get_container_archive_info(&part.id, Some(options)).await
            })
            .await?;
        let Some(seen) = seen else { return Ok(None) };
        if seen.file_mode & SYMLINK == 0 || !seen.link_target.starts_with('/') {
            let size = u64::try_from(seen.size).unwrap_or(0);
            return Ok(Some(FileFound { directory: seen.file_mode & DIRECTORY != 0, size }));
        }
        path = seen.link_target;
    }
    Ok(Some(FileFound { directory: false, size: 0 }))
}

fn out(shared: &Arc<Shared>, part: &Part, path: &str, doing: String) -> Result<Opened, DriverError> {
    let client = shared.engine.client(&doing)?;
    let options = DownloadFromContainerOptionsBuilder::default().path(path).build();
    let pieces = client.download_from_container(&part.id, Some(options));
    let output = pieces.map(move |piece| match piece {
        Ok(bytes) => Ok(Piece { channel: STDOUT, bytes }),
        Err(error) => Err(refusal(&doing, error)),
    });
    Ok(Opened { input: None, output: output.boxed(), inside: Box::new(Bare) })
}

fn into(shared: &Arc<Shared>, part: &Part, path: &str, doing: String) -> Result<Opened, DriverError> {
    let client = shared.engine.client(&doing)?;
    // Docker sees a request that breaks off, and no end of an archive, where the gate refuses.
    let Intake { input, checked, gate } = tar_gate::intake();
    let body = unfold(checked, |mut checked| async { Some((checked.recv().await?, checked)) });
    let options =
        UploadToContainerOptionsBuilder::default().path(path).no_overwrite_dir_non_dir("true").build();
    let id = part.id.clone();
    // Takes as long as the client takes: whoever waits for it can leave.
    let unpacked = tokio::spawn(async move {
        client.upload_to_container(&id, Some(options), bollard::body_try_stream(body)).await
    });
    let stop = unpacked.abort_handle();
    let output = once(async move {
        let unpacked = unpacked.await;
        let refused = |message: String| {
            Some(Err(DriverError::EngineRefused { engine: ENGINE, doing: doing.clone(), message }))
        };
        match (gate.await, unpacked) {
            // It had all that it wanted.
            (Ok(Err(why)), Ok(Ok(()))) if why == LEFT => None,
            // Docker gave up first: it knows why.
            (Ok(Err(why)), Ok(Err(error))) if why == LEFT => Some(Err(refusal(&doing, error))),
            (Ok(Err(why)), _) => refused(why),
            (Ok(Ok(())), Ok(Ok(()))) => None,
            (_, Ok(Err(error))) => Some(Err(refusal(&doing, error))),
            (_, Err(error)) => refused(error.to_string()),
            (Err(error), _) => refused(error.to_string()),
        }
    });
    let output = output.filter_map(|failed| async { failed }).boxed();
    Ok(Opened { input: Some(Box::pin(input)), output, inside: Box::new(Unpacking(stop)) })
}

/// What is being unpacked.
struct Unpacking(AbortHandle);

#[async_trait]
impl Inside for Unpacking {
    async fn end(&self) {
        self.0.abort();
    }
}
