//! A blob on its way from an upstream: one writes it, any number read behind him out of the same file. The last byte is
//! given only once the digest of the whole was found right; else the readers' streams break.

use super::upstream::Bytestream;
use crate::model::Digest;
use crate::ops::{BlobStream, OpsError};
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::HashMap;
use std::future::Future;
use std::io::SeekFrom;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::watch;

/// Read at a time, in bytes.
const CHUNK: usize = 256 << 10;
/// What is written reaches the file a moment after it was counted: so long a reader waits before it looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// By repository and digest: another repository's asker has to be let in by the upstream himself.
type Key = (String, Digest);

#[derive(Default)]
pub struct Flights(Arc<Mutex<HashMap<Key, Arc<Flight>>>>);

impl Flights {
    /// The flight that is under way, or a new one, which `fly` flies.
    pub fn join<F: Future<Output = ()> + Send + 'static>(
        &self,
        key: Key,
        fly: impl FnOnce(Arc<Flight>) -> F,
    ) -> Arc<Flight> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key) {
            return flight.clone();
        }
        let flight = Arc::new(Flight { state: watch::Sender::new(State::default()) });
        flights.insert(key.clone(), flight.clone());
        let (all, flown) = (self.0.clone(), fly(flight.clone()));
        let ended = flight.clone();
        tokio::spawn(async move {
            flown.await;
            all.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            // Whoever flew without an end has crashed.
            ended.crash(OpsError::Unavailable("the fetch ended without an outcome".into()));
        });
        flight
    }
}

#[derive(Clone, Default)]
struct State {
    /// Size of the whole, and the file that it is written to.
    begun: Option<(u64, Arc<File>)>,
    /// Bytes that were handed to the file.
    written: u64,
    ended: Option<Result<(), OpsError>>,
}

pub struct Flight {
    state: watch::Sender<State>,
}

/// The file that a flight writes, opened for one reader.
pub struct Opened {
    pub size: u64,
    file: File,
}

impl Flight {
    /// The upstream has answered; `file` is where its bytes go.
    pub fn begin(&self, size: u64, file: File) {
        self.state.send_modify(|state| state.begun = Some((size, Arc::new(file))));
    }

    /// Counts what was taken: when the next part is asked for, the one before has been handed over.
    pub fn counted(&self, bytes: Bytestream) -> BlobStream {
        let state = self.state.clone();
        let mut handed = 0;
        bytes
            .inspect(move |part| {
                state.send_modify(|state| state.written = handed);
                handed += part.as_ref().map_or(0, |part| part.len() as u64);
            })
            .boxed()
    }

    /// All is there, and is what it should be.
    pub fn land(&self) {
        self.end(Ok(()));
    }

    pub fn crash(&self, error: OpsError) {
        self.end(Err(error));
    }

    fn end(&self, outcome: Result<(), OpsError>) {
        self.state.send_if_modified(|state| {
            let first = state.ended.is_none();
            if first {
                state.ended = Some(outcome);
            }
            first
        });
    }

    /// Waits until the upstream has answered. Bounded by the upstream's own time.
    pub async fn begun(&self) -> Result<Opened, OpsError> {
        let mut seen = self.state.subscribe();
        let (size, file) = {
            let state = seen.wait_for(|state| state.begun.is_some() || state.ended.is_some()).await;
            let state = state.map_err(|_| lost())?;
            match (&state.begun, &state.ended) {
                (Some(begun), _) => begun.clone(),
                (None, Some(Err(error))) => return Err(error.clone()),
                (None, _) => return Err(lost()),
            }
        };
        // A file of its own, with a place of its own to read at: duplicates of a descriptor share theirs.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&*file));
        let file =
            File::open(path).await.map_err(|e| OpsError::Unavailable(format!("read a fetched blob: {e}")))?;
        Ok(Opened { size, file })
    }

    /// The bytes, as they come.
    pub fn read(self: &Arc<Self>, opened: Opened) -> Bytestream {
        let reader = Reader { flight: self.clone(), seen: self.state.subscribe(), at: 0, opened };
        futures_util::stream::unfold(Some(reader), |reader| async move {
            let mut reader = reader?;
            match reader.next().await {
                Ok(Some(part)) => Some((Ok(part), Some(reader))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }
}

fn lost() -> OpsError {
    OpsError::Unavailable("the fetch from the upstream was given up".into())
}

struct Reader {
    /// Keeps the file.
    flight: Arc<Flight>,
    seen: watch::Receiver<State>,
    at: u64,
    opened: Opened,
}

impl Reader {
    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        let size = self.opened.size;
        loop {
            let (at, limit) = (self.at, {
                let state = self.seen.borrow_and_update();
                match &state.ended {
                    Some(Ok(())) => size,
                    Some(Err(error)) => return Err(std::io::Error::other(error.to_string())),
                    None => state.written.min(size.saturating_sub(1)),
                }
            });
            if at == size && self.flight.state.borrow().ended.is_some() {
                return Ok(None);
            }
            if at >= limit {
                self.seen.changed().await.map_err(std::io::Error::other)?;
                continue;
            }
            let most = usize::try_from(limit - at).unwrap_or(CHUNK).min(CHUNK);
            let mut part = vec![0; most];
            self.opened.file.seek(SeekFrom::Start(at)).await?;
            let got = self.opened.file.read(&mut part).await?;
            if got == 0 {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            part.truncate(got);
            self.at += got as u64;
            return Ok(Some(part.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::TryStreamExt;
    use tokio::io::AsyncWriteExt;

    fn flights() -> (tempfile::TempDir, Flights) {
        (tempfile::tempdir().unwrap(), Flights::default())
    }

    #[tokio::test]
    async fn many_read_what_one_writes_and_the_last_byte_waits() {
        let (dir, flights) = flights();
        let path = dir.path().join("data");
        let (go, wait) = watch::channel(false);
        let flown = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let join = || {
            let (path, mut wait, flown) = (path.clone(), wait.clone(), flown.clone());
            flights.join(("mirror/u/r".into(), Digest([1; 32])), |flight| async move {
                flown.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let mut file = File::create(&path).await.unwrap();
                flight.begin(10, File::open(&path).await.unwrap());
                let parts = ["hello", "world"].map(|p| Ok(Bytes::from_static(p.as_bytes())));
                let mut parts = flight.counted(futures_util::stream::iter(parts).boxed());
                while let Some(part) = parts.next().await {
                    file.write_all(&part.unwrap()).await.unwrap();
                    file.flush().await.unwrap();
                }
                wait.wait_for(|go| *go).await.unwrap();
                flight.land();
            })
        };
        let readers: Vec<_> = (0..8).map(|_| join()).collect();
        let mut streams = Vec::new();
        for flight in &readers {
            let opened = flight.begun().await.unwrap();
            assert_eq!(opened.size, 10);
            streams.push(flight.read(opened));
        }
        let first = streams[0].next().await.unwrap().unwrap();
        assert_eq!(&first[..], &b"hello"[..], "what is written is given before the end");
        go.send(true).unwrap();
        for stream in streams.into_iter().skip(1) {
            let parts: Vec<Bytes> = stream.try_collect().await.unwrap();
            assert_eq!(parts.concat(), b"helloworld");
        }
        assert_eq!(flown.load(std::sync::atomic::Ordering::SeqCst), 1, "one fetch");
    }

    #[tokio::test]
    async fn wrong_bytes_break_the_stream() {
        let (dir, flights) = flights();
        let path = dir.path().join("data");
        let flight = flights.join(("r".into(), Digest([1; 32])), |flight| async move {
            tokio::fs::write(&path, "hello").await.unwrap();
            flight.begin(5, File::open(&path).await.unwrap());
            flight.crash(OpsError::Unavailable("another digest".into()));
        });
        let opened = flight.begun().await.unwrap();
        let read: Result<Vec<Bytes>, _> = flight.read(opened).try_collect().await;
        assert!(read.unwrap_err().to_string().contains("another digest"));
        let flight = flights.join(("s".into(), Digest([1; 32])), |flight| async move {
            flight.crash(OpsError::Unavailable("no line".into()));
        });
        assert!(flight.begun().await.is_err());
    }
}
