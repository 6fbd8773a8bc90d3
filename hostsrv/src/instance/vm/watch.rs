//! What a VM wrote on its console, as it is written: the file is looked at again and again, over its changes of name and
//! the body's change of epoch. Refuses times: the file has none.

use super::files::newest_console;
use crate::instance::DriverError;
use crate::instance::folders::blocking;
use crate::instance::streams::{Bare, Opened, Piece};
use amphi_api::InstanceId;
use amphi_api::streams::{LogsSpec, STDOUT};
use bytes::Bytes;
use futures_util::StreamExt;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the file is looked at when it has nothing new.
const LOOK: Duration = Duration::from_millis(250);
/// Read at once, in bytes.
const PIECE: u64 = 32 << 10;

/// Where a reader is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    path: PathBuf,
    inode: u64,
    at: u64,
}

enum Look {
    Bytes(Bytes),
    Nothing,
    /// There is no such file any more.
    Gone,
}

/// `begin`: what is told first, read before.
pub fn open(
    state_dir: &Path,
    instance: InstanceId,
    spec: &LogsSpec,
    begin: String,
    at: Option<Mark>,
) -> Opened {
    let first = futures_util::stream::once(async move {
        Ok(Piece { channel: STDOUT, bytes: Bytes::from(begin.into_bytes()) })
    });
    let place = at.map(|Mark(place)| place).unwrap_or_default();
    let state_dir = state_dir.to_owned();
    let rest = futures_util::stream::unfold(place, move |mut place| {
        let state_dir = state_dir.clone();
        async move {
            loop {
                let (dir, from) = (state_dir.clone(), place);
                let looked: Result<(Look, Place), DriverError> =
                    blocking("follow the console log", move || look(&dir, instance, from)).await;
                match looked {
                    Err(error) => return Some((Err(error), Place::default())),
                    Ok((Look::Gone, _)) => return None,
                    Ok((Look::Bytes(bytes), next)) => {
                        return Some((Ok(Piece { channel: STDOUT, bytes }), next));
                    }
                    Ok((Look::Nothing, next)) => place = next,
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    });
    let output = if spec.follow { first.chain(rest).boxed() } else { first.boxed() };
    Opened { input: None, output, inside: Box::new(Bare) }
}

/// The end of the console's file as it is now.
pub struct Mark(Place);

pub async fn mark(state_dir: &Path, instance: InstanceId) -> Result<Option<Mark>, DriverError> {
    let state_dir = state_dir.to_owned();
    blocking("look at the console log", move || {
        let Some(path) = newest_console(&state_dir, instance)? else { return Ok(None) };
        let seen = std::fs::metadata(&path)?;
        Ok(Some(Mark(Place { path, inode: seen.ino(), at: seen.len() })))
    })
    .await
}

fn look(state_dir: &Path, instance: InstanceId, place: Place) -> io::Result<(Look, Place)> {
    let Some(path) = newest_console(state_dir, instance)? else { return Ok((Look::Gone, place)) };
    let mut file = match std::fs::File::open(&path) {
        // Between two of virtlogd's files.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Look::Nothing, place)),
        file => file?,
    };
    let seen = file.metadata()?;
    let same = place.path == path && place.inode == seen.ino() && place.at <= seen.len();
    let at = if same { place.at } else { 0 };
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(PIECE).read_to_end(&mut bytes)?;
    let next = Place { path, inode: seen.ino(), at: at + bytes.len() as u64 };
    Ok((if bytes.is_empty() { Look::Nothing } else { Look::Bytes(bytes.into()) }, next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::folders;
    use amphi_api::instance::BodyKind;

    #[tokio::test]
    async fn it_is_followed_over_new_files_and_epochs() {
        let state = tempfile::tempdir().unwrap();
        let instance = InstanceId::new();
        let log = |epoch| {
            let folder = folders::of_body(state.path(), instance, BodyKind::Vm, epoch);
            std::fs::create_dir_all(&folder).unwrap();
            folder.join("console.log")
        };
        std::fs::write(log(1), "one\n").unwrap();
        let spec = LogsSpec { follow: true, ..LogsSpec::default() };
        let at = mark(state.path(), instance).await.unwrap();
        let mut opened = open(state.path(), instance, &spec, "one\n".into(), at);
        let next = async |opened: &mut Opened| {
            let next = tokio::time::timeout(Duration::from_secs(10), opened.output.next());
            next.await.unwrap().map(|piece| String::from_utf8(piece.unwrap().bytes.to_vec()).unwrap())
        };
        assert_eq!(next(&mut opened).await.as_deref(), Some("one\n"));
        std::fs::write(log(1), "one\ntwo\n").unwrap();
        assert_eq!(next(&mut opened).await.as_deref(), Some("two\n"));
        std::fs::rename(log(1), log(1).with_extension("log.0")).unwrap();
        std::fs::write(log(1), "three\n").unwrap();
        assert_eq!(next(&mut opened).await.as_deref(), Some("three\n"));
        std::fs::write(log(2), "four\n").unwrap();
        assert_eq!(next(&mut opened).await.as_deref(), Some("four\n"));
        for epoch in [1, 2] {
            std::fs::remove_dir_all(log(epoch).parent().unwrap()).unwrap();
        }
        assert_eq!(next(&mut opened).await, None);
    }
}
