//! One pass over the bytes of a volume or a disk, from host to host. The receiving end reads what it has and says the digest
//! of each block, in order; the sending end reads the same block here and sends it where the digests differ. So neither
//! keeps anything: what two hosts have on their disks is all the state there is, and a pass that was cut short is made again
//! for the price of reading.
//!
//! Where the sending end knows what has changed since a pass that ended well (`changes`), and the receiving end remembers
//! that pass and nothing later, neither reads the rest: the changed blocks go over, and are read back.
//!
//! In the last pass, over bytes that hold still, that comparison is the proof: a block that was not sent had its digest read
//! off the other host's disk and found the same; one that was sent is read back there, past the page cache, after all is
//! durable. Refuses to decide when a pass is the last.

use super::changes::Blocks;
use super::medium::{CHUNK, Medium, Scratch};
use amphi_api::VolumeId;
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use uuid::Uuid;

/// What is compared and sent as one, in bytes. A digest for each is 0.05 % of the bytes on the wire; a database's scattered
/// write of 4 KiB costs 16 times its size, and would cost 256 times with a MiB.
pub const BLOCK: usize = 64 << 10;
/// The digest of a block: SHA-256, which the processors of today compute at more than a disk's speed.
type Name = [u8; 32];
/// Chunks between the disk and the wire.
const AHEAD: usize = 4;
/// No byte for so long ends a pass.
const STALL: Duration = Duration::from_secs(30);
/// Making all durable and reading back what was sent.
const SETTLE: Duration = Duration::from_secs(300);
/// The longest answer, in bytes.
const ANSWER_MAX: usize = 4096;

/// What goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Volume(VolumeId),
    /// The root disk that is made of the body's image.
    Root,
}

/// What the sending end says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    pub part: Part,
    pub size: u64,
    pub last: bool,
    /// The bytes are a file system of ours.
    pub xfs: bool,
    /// What this pass is called when it has ended well: all that it sent is read back, and a later one may build on it.
    #[serde(default)]
    pub mark: Option<Uuid>,
    /// All but what is sent is as it was after that pass, if the receiving end knows it.
    #[serde(default)]
    pub after: Option<Uuid>,
}

/// How far a pass has got, in bytes.
#[derive(Debug, Default)]
pub struct Progress {
    pub all: AtomicU64,
    pub read: AtomicU64,
    pub sent: AtomicU64,
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// What is on the other host's disk is not what was sent.
    #[error("{0}")]
    Differ(String),
    #[error("{0:#}")]
    Broken(#[from] anyhow::Error),
}

/// The answer at the end: how many blocks were written, or why the bytes do not count.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Verdict {
    Whole(u64),
    Differ(String),
    Failed(String),
}

/// Ends a pass.
const END: u64 = u64::MAX;

fn name_of(block: &[u8]) -> Name {
    // Most of many volumes is zeros, and to see that is quicker than their digest.
    static ZEROS: LazyLock<Name> = LazyLock::new(|| Sha256::digest(vec![0; BLOCK]).into());
    if block.len() == BLOCK && is_zero(block) { *ZEROS } else { Sha256::digest(block).into() }
}

fn is_zero(block: &[u8]) -> bool {
    block.first().is_none_or(|first| *first == 0 && block[1..] == block[..block.len() - 1])
}

fn blocks(size: u64) -> u64 {
    size.div_ceil(BLOCK as u64)
}

/// A piece of a medium with the digests of its blocks.
struct Chunk {
    /// Its first block.
    first: u64,
    bytes: Vec<u8>,
    names: Vec<Name>,
}

/// Whole chunks, or the runs of these blocks, none longer than a chunk: where each begins and ends, in bytes.
fn runs(size: u64, only: Option<Blocks>) -> Box<dyn Iterator<Item = (u64, u64)> + Send> {
    let block = BLOCK as u64;
    let Some(only) = only else {
        let chunk = CHUNK as u64;
        return Box::new((0..size.div_ceil(chunk)).map(move |n| (n * chunk, size.min((n + 1) * chunk))));
    };
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for begin in only.iter().map(|index| index * block).filter(|begin| *begin < size) {
        let end = size.min(begin + block);
        match runs.last_mut() {
            Some((first, last)) if *last == begin && end - *first <= CHUNK as u64 => *last = end,
            _ => runs.push((begin, end)),
        }
    }
    Box::new(runs.into_iter())
}

/// Reads a medium, or some blocks of it, from its first byte to its last, as quickly as the chunks are taken.
fn read_all(medium: Arc<Medium>, size: u64, only: Option<Blocks>) -> mpsc::Receiver<std::io::Result<Chunk>> {
    let (chunks, taken) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut scratch = Scratch::new();
        for (begin, end) in runs(size, only) {
            let read = medium.read(&mut scratch, begin, (end - begin) as usize).map(|bytes| Chunk {
                first: begin / BLOCK as u64,
                names: bytes.chunks(BLOCK).map(name_of).collect(),
                bytes: bytes.to_vec(),
            });
            let failed = read.is_err();
            // Nobody takes them any more: the pass has ended.
            if chunks.blocking_send(read).is_err() || failed {
                return;
            }
        }
    });
    taken
}

/// Sends what differs of the medium's first `size` bytes; or these blocks, if the other end builds on an earlier pass.
pub async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    medium: Arc<Medium>,
    size: u64,
    changed: Option<Blocks>,
    progress: &Progress,
) -> Result<(), PassError> {
    let compared = changed.is_none();
    let mut chunks = read_all(medium, size, changed);
    let mut theirs = vec![0; (CHUNK / BLOCK) * size_of::<Name>()];
    while let Some(chunk) = chunks.recv().await {
        let chunk = chunk.context("cannot read here")?;
        let theirs = &mut theirs[..chunk.names.len() * size_of::<Name>()];
        if compared {
            stalls(stream.read_exact(theirs)).await.context("the other host's digests")?;
        }
        let theirs = theirs.chunks(size_of::<Name>());
        let blocks = chunk.bytes.chunks(BLOCK).zip(&chunk.names).zip(theirs);
        for (index, ((block, name), theirs)) in (chunk.first..).zip(blocks) {
            if !compared || name.as_slice() != theirs {
                let bytes: &[u8] = if is_zero(block) { &[] } else { block };
                let sent = frame(stream, index, name, bytes);
                stalls(sent).await.context("sending")?;
                progress.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
        }
        progress.read.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
    }
    stalls(async {
        frame(stream, END, &[0; 32], &[]).await?;
        stream.flush().await
    })
    .await
    .context("sending the end")?;
    let verdict = timeout(SETTLE, verdict(stream)).await.context("no word from the other host")??;
    match verdict {
        Verdict::Whole(_) => Ok(()),
        Verdict::Differ(why) => Err(PassError::Differ(why)),
        Verdict::Failed(why) => Err(PassError::Broken(anyhow::anyhow!("the other host says: {why}"))),
    }
}

async fn frame<S: AsyncWrite + Unpin>(
    stream: &mut S,
    index: u64,
    name: &Name,
    bytes: &[u8],
) -> std::io::Result<()> {
    let mut head = [0; 44];
    head[..8].copy_from_slice(&index.to_le_bytes());
    head[8..12].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    head[12..].copy_from_slice(name);
    stream.write_all(&head).await?;
    stream.write_all(bytes).await
}

async fn stalls<T>(work: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    timeout(STALL, work).await.map_err(|_| std::io::ErrorKind::TimedOut)?
}

async fn verdict<S: AsyncRead + Unpin>(stream: &mut S) -> anyhow::Result<Verdict> {
    let length = stream.read_u32_le().await? as usize;
    ensure!(length <= ANSWER_MAX, "the other host's answer is too long");
    let mut line = vec![0; length];
    stream.read_exact(&mut line).await?;
    Ok(serde_json::from_slice(&line)?)
}

/// A block to write.
struct Write {
    index: u64,
    name: Name,
    /// Empty: zeros.
    bytes: Vec<u8>,
}

/// Takes one pass into the medium and answers, unless it is not wanted any more: when `gone` returns. `compared`: all that is
/// here is told first. `adopt` is called once the bytes are whole, before that is said. Returns when nothing writes to the medium any more.
pub async fn take<S: AsyncRead + AsyncWrite + Unpin + Send>(
    stream: &mut S,
    medium: Arc<Medium>,
    pass: &Pass,
    compared: bool,
    gone: impl Future<Output = ()>,
    adopt: impl AsyncFnOnce() -> Result<(), String>,
) -> anyhow::Result<()> {
    let (writes, taken) = mpsc::channel(AHEAD * CHUNK / BLOCK);
    let (target, what) = (medium.clone(), pass.clone());
    let writer = tokio::task::spawn_blocking(move || write_all(&target, &what, taken));
    let taken = tokio::select! {
        taken = take_blocks(stream, medium, pass, compared, writes) => taken,
        () = gone => Err(anyhow::anyhow!("it is not expected any more")),
    };
    // Whatever has happened on the wire: the medium is let go when the writer has ended.
    let written = writer.await.context("the writer has ended")?;
    let verdict = match (taken, written) {
        (Err(error), _) => return Err(error),
        (Ok(()), Ok(Verdict::Whole(blocks))) => match adopt().await {
            Ok(()) => Verdict::Whole(blocks),
            Err(why) => Verdict::Failed(why),
        },
        (Ok(()), Ok(verdict)) => verdict,
        (Ok(()), Err(error)) => Verdict::Failed(format!("cannot write here: {error}")),
    };
    let mut line = serde_json::to_vec(&verdict)?;
    line.truncate(ANSWER_MAX);
    let answered = async {
        stream.write_u32_le(line.len() as u32).await?;
        stream.write_all(&line).await?;
        stream.flush().await
    };
    Ok(stalls(answered).await?)
}

async fn take_blocks<S: AsyncRead + AsyncWrite + Unpin + Send>(
    stream: &mut S,
    medium: Arc<Medium>,
    pass: &Pass,
    compared: bool,
    writes: mpsc::Sender<Write>,
) -> anyhow::Result<()> {
    let (mut from, mut to) = tokio::io::split(stream);
    let mut chunks = compared.then(|| read_all(medium, pass.size, None));
    // The reader is ahead of the writer at every block: that one is sent only in answer to its digest.
    let digests = async {
        while let Some(chunk) = async { chunks.as_mut()?.recv().await }.await {
            let chunk = chunk.context("cannot read here")?;
            stalls(async {
                to.write_all(chunk.names.as_flattened()).await?;
                to.flush().await
            })
            .await
            .context("sending digests")?;
        }
        anyhow::Ok(())
    };
    let frames = async {
        loop {
            let mut head = [0; 44];
            // For as long as nothing differs nothing comes.
            from.read_exact(&mut head).await.context("waiting for blocks")?;
            let (index, rest) = head.split_at(8);
            let (length, name) = rest.split_at(4);
            let index = u64::from_le_bytes(index.try_into()?);
            let length = u32::from_le_bytes(length.try_into()?) as usize;
            if index == END {
                // Dropping `writes` after the loop ends the writer in order: only a pass that came to its end counts.
                return writes
                    .send(Write { index: END, name: [0; 32], bytes: Vec::new() })
                    .await
                    .or(anyhow::Ok(()));
            }
            let room = block_len(index, pass.size);
            if index >= blocks(pass.size) || (length != 0 && length != room) {
                bail!("block {index} of {length} bytes is none of these {} bytes", pass.size);
            }
            let mut bytes = vec![0; length];
            stalls(from.read_exact(&mut bytes)).await.context("waiting for a block")?;
            let write = Write { index, name: name.try_into()?, bytes };
            if writes.send(write).await.is_err() {
                // The writer has failed and says why.
                return anyhow::Ok(());
            }
        }
    };
    if !compared {
        return frames.await;
    }
    tokio::pin!(digests, frames);
    tokio::select! {
        done = &mut digests => done?,
        done = &mut frames => return done,
    }
    timeout(SETTLE, frames).await.context("waiting for the last blocks")?
}

fn block_len(index: u64, size: u64) -> usize {
    let begin = index.saturating_mul(BLOCK as u64);
    (BLOCK as u64).min(size.saturating_sub(begin)) as usize
}

fn write_all(medium: &Medium, pass: &Pass, mut taken: mpsc::Receiver<Write>) -> std::io::Result<Verdict> {
    let mut scratch = Scratch::new();
    let mut written: Vec<(u64, Name)> = Vec::new();
    let mut ended = false;
    while let Some(write) = taken.blocking_recv() {
        if write.index == END {
            ended = true;
            break;
        }
        let length = block_len(write.index, pass.size);
        medium.write(&mut scratch, write.index * BLOCK as u64, length, &write.bytes)?;
        written.push((write.index, write.name));
    }
    medium.sync()?;
    if !ended {
        return Ok(Verdict::Failed("the pass was cut short".into()));
    }
    // Before, bytes may be torn: read while they were written. But a later pass may build on what is here.
    if pass.last || pass.mark.is_some() {
        for (index, name) in &written {
            let bytes = medium.read(&mut scratch, index * BLOCK as u64, block_len(*index, pass.size))?;
            if name_of(bytes) != *name {
                let why = format!("block {index} of {BLOCK} bytes is another on its disk than was sent");
                return Ok(Verdict::Differ(why));
            }
        }
    }
    Ok(Verdict::Whole(written.len() as u64))
}

#[cfg(test)]
#[path = "bytes_tests.rs"]
mod tests;
