//! Files of a guest, as tar archives. One file is read as it is, by the agent's own means; folders are packed, and archives
//! unpacked, by the guest's tar over files in the guest, which takes room there for as long as it lasts. Refuses archives that
//! lead out (see [`crate::instance::tar_gate`]).

use super::exec::{self, Command, Running};
use super::file::{GuestFile, PIECE};
use super::{Agent, said};
use crate::instance::DriverError;
use crate::instance::streams::{Bare, Opened, Piece};
use crate::instance::tar_gate::{self, Intake};
use amphi_api::looking::{CopySpec, CopyWay, FileFound};
use amphi_api::streams::{STDERR, STDOUT};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{once, unfold};

/// What is at a path: a folder (or a link to one), a file with its size, mode (in hexadecimal), owner, group and time, something
/// else, nothing.
const LOOK: &str = r#"if [ -d "$1" ]; then echo folder
elif [ -f "$1" ] && [ ! -L "$1" ]; then stat -c 'file %s %f %u %g %Y' "$1"
elif [ -e "$1" ] || [ -L "$1" ]; then echo other
else echo nothing; fi"#;
/// tar's blocks: the last one is filled up, and two of zeros end the archive.
const BLOCK: usize = 512;
/// Kept of what the guest's tar says, in bytes.
const COMPLAINT: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    Folder,
    File(File),
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    size: u64,
    mode: u32,
    owner: u64,
    group: u64,
    changed: u64,
}

pub async fn open(agent: &Agent, spec: &CopySpec) -> Result<Opened, DriverError> {
    let path = match spec.path.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    let looked = agent.script(LOOK, &[path]).await?;
    let text = said(&looked.out);
    let found = found(&text).ok_or_else(|| {
        agent.refused(format!("what is at {path} is not known: {text} {}", said(&looked.err)))
    })?;
    match (spec.way, found) {
        (CopyWay::Look, found) => {
            let told = found.map(|found| match found {
                Found::Folder => FileFound { directory: true, size: 0 },
                Found::File(file) => FileFound { directory: false, size: file.size },
                Found::Other => FileFound { directory: false, size: 0 },
            });
            let line = serde_json::to_string(&told).map_err(|error| agent.refused(error.to_string()))? + "\n";
            let output = once(async { Ok(Piece { channel: STDOUT, bytes: Bytes::from(line) }) }).boxed();
            Ok(Opened { input: None, output, inside: Box::new(Bare) })
        }
        (CopyWay::Out, None) => Err(agent.refused("there is no such file")),
        (CopyWay::Out, Some(Found::File(file))) => one(agent, path, file).await,
        (CopyWay::Out, Some(Found::Folder | Found::Other)) => many(agent, path).await,
        (CopyWay::In, Some(Found::Folder)) => into(agent, path).await,
        (CopyWay::In, Some(_)) => Err(agent.refused("it is no directory")),
        (CopyWay::In, None) => Err(agent.refused("there is no such directory")),
    }
}

/// None: what was said means nothing.
fn found(text: &str) -> Option<Option<Found>> {
    Some(Some(match text.split(' ').collect::<Vec<_>>().as_slice() {
        ["folder"] => Found::Folder,
        ["other"] => Found::Other,
        ["nothing"] => return Some(None),
        ["file", size, mode, owner, group, changed] => Found::File(File {
            size: size.parse().ok()?,
            mode: u32::from_str_radix(mode, 16).ok()? & 0o7777,
            owner: owner.parse().ok()?,
            group: group.parse().ok()?,
            // One of before 1970 is taken for one of then.
            changed: changed.parse::<i64>().ok()?.try_into().unwrap_or(0),
        }),
        _ => return None,
    }))
}

/// Where it lies, and its name there; the root is in itself.
fn parts(path: &str) -> (&str, &str) {
    match path.rsplit_once('/') {
        Some((_, "")) | None => ("/", "."),
        Some(("", name)) => ("/", name),
        Some((parent, name)) => (parent, name),
    }
}

/// What stands before a file's bytes in an archive.
fn head(name: &str, file: &File) -> std::io::Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(file.size);
    header.set_mode(file.mode);
    header.set_uid(file.owner);
    header.set_gid(file.group);
    header.set_mtime(file.changed);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, name, std::io::empty())?;
    Ok(archive.get_ref().clone())
}

/// What stands after it.
fn tail(size: u64) -> Vec<u8> {
    let filled = (size % BLOCK as u64) as usize;
    vec![0; (BLOCK - filled) % BLOCK + 2 * BLOCK]
}

/// A file that is being read out.
struct Reading {
    agent: Agent,
    file: Option<GuestFile>,
    size: u64,
}

async fn one(agent: &Agent, path: &str, found: File) -> Result<Opened, DriverError> {
    let head = head(parts(path).1, &found).map_err(|error| agent.refused(error.to_string()))?;
    let file = GuestFile::open(agent, path, "rb").await?;
    let first = once(async { Ok(Piece { channel: STDOUT, bytes: Bytes::from(head) }) });
    let reading = Reading { agent: agent.clone(), file: Some(file), size: found.size };
    let rest = unfold(reading, Reading::next);
    Ok(Opened { input: None, output: first.chain(rest).boxed(), inside: Box::new(Bare) })
}

impl Reading {
    async fn next(mut self) -> Option<(Result<Piece, DriverError>, Self)> {
        let piece = self.piece().await.transpose()?;
        Some((piece.map(|bytes| Piece { channel: STDOUT, bytes: bytes.into() }), self))
    }

    async fn piece(&mut self) -> Result<Option<Vec<u8>>, DriverError> {
        let Some(file) = &mut self.file else { return Ok(None) };
        let left = self.size - file.at;
        if left > 0 {
            let bytes = file.read(&self.agent, usize::try_from(left).unwrap_or(PIECE)).await?;
            if bytes.is_empty() {
                return Err(self.agent.refused("the file became shorter while it was read"));
            }
            return Ok(Some(bytes));
        }
        if let Some(file) = self.file.take() {
            file.close(&self.agent).await;
        }
        Ok(Some(tail(self.size)))
    }
}

/// A reader that leaves in the middle; the guest's agent has few files open.
impl Drop for Reading {
    fn drop(&mut self) {
        if let (Some(file), Ok(runtime)) = (self.file.take(), tokio::runtime::Handle::try_current()) {
            let agent = self.agent.clone();
            runtime.spawn(async move { file.close(&agent).await });
        }
    }
}

/// tar with its words, in a guest.
async fn tar(
    agent: &Agent,
    words: &[&str],
    input: Option<tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>>,
) -> Result<Running, DriverError> {
    let words = ["tar"].iter().chain(words).map(|word| (*word).to_owned()).collect();
    // What fits on the guest's disk.
    let command = Command { words, directory: "/".to_owned(), input, most: u64::MAX };
    exec::start(agent, command).await
}

/// What a guest's tar writes, and after it how it ended, where that was not well.
fn watched(
    agent: &Agent,
    running: Running,
) -> futures_util::stream::BoxStream<'static, Result<Piece, DriverError>> {
    let state = (agent.clone(), running, Vec::new(), false);
    let next = async |(agent, mut running, mut complaint, over): (Agent, Running, Vec<u8>, bool)| {
        if over {
            return None;
        }
        loop {
            let piece = match running.output.recv().await {
                Some(Ok(Piece { channel: STDERR, bytes })) => {
                    let room = COMPLAINT - complaint.len();
                    complaint.extend_from_slice(&bytes[..bytes.len().min(room)]);
                    continue;
                }
                Some(piece) => piece,
                None if running.code.get() == Some(&0) => return None,
                None => Err(agent.refused(format!("tar: {}", said(&complaint)))),
            };
            let over = piece.is_err();
            return Some((piece, (agent, running, complaint, over)));
        }
    };
    unfold(state, next).boxed()
}

async fn many(agent: &Agent, path: &str) -> Result<Opened, DriverError> {
    let (parent, name) = parts(path);
    // No name is taken for an option.
    let name = if name.starts_with('-') { format!("./{name}") } else { name.to_owned() };
    let running = tar(agent, &["-C", parent, "-cf", "-", &name], None).await?;
    Ok(Opened { input: None, output: watched(agent, running), inside: Box::new(Bare) })
}

async fn into(agent: &Agent, path: &str) -> Result<Opened, DriverError> {
    // What the gate refuses breaks the input off, and is told as that.
    let Intake { input, checked, .. } = tar_gate::intake();
    let running = tar(agent, &["-C", path, "-xf", "-"], Some(checked)).await?;
    let output = watched(agent, running).filter(|piece| std::future::ready(piece.is_err())).boxed();
    Ok(Opened { input: Some(Box::pin(input)), output, inside: Box::new(Bare) })
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, LIMIT};
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[test]
    fn what_a_guest_says_of_a_path() {
        let file = File { size: 5, mode: 0o4640, owner: 1, group: 2, changed: 0 };
        for (text, wanted) in [
            ("folder", Some(Some(Found::Folder))),
            ("nothing", Some(None)),
            ("other", Some(Some(Found::Other))),
            ("file 5 89a0 1 2 -7", Some(Some(Found::File(file)))),
            ("file 5", None),
            ("sh: not found", None),
            ("", None),
        ] {
            assert_eq!(found(text), wanted, "{text}");
        }
        for (path, wanted) in [("/", ("/", ".")), ("/etc", ("/", "etc")), ("/a/b c", ("/a", "b c"))] {
            assert_eq!(parts(path), wanted);
        }
    }

    async fn all(mut opened: Opened) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let read = async {
            while let Some(piece) = opened.output.next().await {
                bytes.extend_from_slice(&piece.map_err(|error| error.to_string())?.bytes);
            }
            Ok(bytes)
        };
        tokio::time::timeout(LIMIT, read).await.unwrap()
    }

    fn spec(path: &std::path::Path, way: CopyWay) -> CopySpec {
        CopySpec { member: None, path: path.to_str().unwrap().to_owned(), way }
    }

    async fn put(agent: &Agent, to: &std::path::Path, bytes: &[u8], whole: bool) -> Result<Vec<u8>, String> {
        let opened = agent.copy(&spec(to, CopyWay::In)).await.map_err(|error| error.to_string())?;
        let Opened { input, output, inside } = opened;
        let mut input = input.unwrap();
        let feed = async move {
            // Whoever refuses it does not read it all.
            let _ = input.write_all(bytes).await;
            if whole {
                let _ = input.shutdown().await;
            }
        };
        tokio::join!(feed, all(Opened { input: None, output, inside })).1
    }

    #[tokio::test]
    async fn files_go_out_and_in_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (agent, fake) = Fake::agent();
        let from = dir.path().join("from");
        std::fs::create_dir_all(from.join("sub")).unwrap();
        let bytes: Vec<u8> =
            (0..1_000_001_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        std::fs::write(from.join("sub/bytes"), &bytes).unwrap();
        std::os::unix::fs::symlink("sub/bytes", from.join("link")).unwrap();
        // An answer that is lost after the file was read on.
        fake.lose("guest-file-read", 2);
        let archive =
            all(agent.copy(&spec(&from.join("sub/bytes"), CopyWay::Out)).await.unwrap()).await.unwrap();
        assert_eq!(archive.len() % BLOCK, 0);
        let mut entries = tar::Archive::new(&archive[..]);
        let mut entry = entries.entries().unwrap().next().unwrap().unwrap();
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut read).unwrap();
        assert!(read == bytes && entry.path().unwrap().to_str() == Some("bytes"), "{} bytes", read.len());
        assert_eq!(fake.lost(), 1);

        let folder = all(agent.copy(&spec(&from, CopyWay::Out)).await.unwrap()).await.unwrap();
        let to = dir.path().join("to");
        std::fs::create_dir(&to).unwrap();
        fake.lose("guest-file-write", 3);
        assert_eq!(put(&agent, &to, &folder, true).await, Ok(Vec::new()));
        assert_eq!(fake.lost(), 2);
        assert_eq!(std::fs::read(to.join("from/sub/bytes")).unwrap(), bytes);
        assert_eq!(std::fs::read_link(to.join("from/link")).unwrap().to_str(), Some("sub/bytes"));

        let looked = all(agent.copy(&spec(&from.join("sub/bytes"), CopyWay::Look)).await.unwrap()).await;
        assert_eq!(looked.unwrap(), b"{\"directory\":false,\"size\":1000001}\n");
        let none = all(agent.copy(&spec(&dir.path().join("none"), CopyWay::Look)).await.unwrap()).await;
        assert_eq!(none.unwrap(), b"null\n");

        // What is cut off, what leads out, and what is not there.
        assert!(put(&agent, &to, &folder[..folder.len() / 2], false).await.is_err(), "half an archive");
        let mut evil = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.as_old_mut().name[..7].copy_from_slice(b"../evil");
        header.set_cksum();
        evil.append(&header, std::io::empty()).unwrap();
        let told = put(&agent, &to, &evil.into_inner().unwrap(), true).await.unwrap_err();
        assert!(told.contains("leads out") && !dir.path().join("evil").exists(), "{told}");
        for (path, way) in [("none", CopyWay::Out), ("none", CopyWay::In), ("from/sub/bytes", CopyWay::In)] {
            assert!(agent.copy(&spec(&dir.path().join(path), way)).await.is_err(), "{path} {way:?}");
        }
        fake.nothing_stays().await;
    }
}
