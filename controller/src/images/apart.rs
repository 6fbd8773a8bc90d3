//! Takes a container image's archive apart while it streams in: each layer becomes a file of its own, what lies between stays
//! as a recipe. Takes what `docker save` writes (old and new) and an OCI layout in a tar, with one image for the hosts'
//! platform in it. Refuses an archive that is compressed as a whole: gzip cannot be written again byte for byte.

mod documents;

use super::BlobStore;
use super::error::{BlobError, io};
use super::layer;
use super::oci::{Wrong, config, manifest};
use super::pour::Pour;
use super::spool::{Digests, Spool, Spooled};
use super::tar::{Kind, NoTar, Step, Walk, shorten};
use crate::digest::{Digest, LayerFacts};
use amphi_api::image::{Compression, Layer};
use amphi_api::recipe::{LITERAL_MAX, Recipe};
use bytes::Bytes;
use documents::{Files, Meaning, Target};
use futures_util::{Stream, StreamExt};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;

/// Files from this size on go to the disk, in bytes; smaller ones stay in memory …
const HELD_FROM: u64 = 64 << 10;
/// … as long as they are no more than this together.
const HELD_MAX: u64 = 8 << 20;

/// An archive in its parts.
pub struct Apart {
    /// Of the whole archive.
    pub digest: Digest,
    pub md5: Option<String>,
    pub size: u64,
    pub recipe: Recipe,
    pub manifest: Bytes,
    pub config: Bytes,
    /// The lowest first.
    pub layers: Vec<Layer>,
    /// Each distinct layer's file and what it is.
    pub files: Vec<(Spooled, LayerFacts)>,
}

/// A file of the archive.
enum Content {
    Held(Vec<u8>),
    Spooled(Spooled),
}

struct Part {
    digest: Digest,
    size: u64,
    content: Content,
}

/// The archive's bytes in order.
enum Piece {
    Literal(Vec<u8>),
    File(usize),
}

fn broken(error: NoTar) -> BlobError {
    BlobError::Broken(format!("the archive cannot be taken: {error}"))
}

fn wrong(wrong: Wrong) -> BlobError {
    BlobError::Broken(format!("the archive's image cannot be taken: {wrong}"))
}

/// Takes it apart. With `expected`, bytes of another digest are refused. Nothing of it stays when it is refused.
pub async fn take_apart<E: std::fmt::Display>(
    store: &BlobStore,
    bytes: impl Stream<Item = Result<Bytes, E>>,
    expected: Option<&str>,
) -> Result<Apart, BlobError> {
    // Digests only: what is in the archive goes into files of its own.
    let (mut whole, mut size) = (Pour::new(None, Some(Digests::with_md5()), None), 0);
    let mut taker = Taker::new(store);
    let mut refused = None;
    let mut bytes = pin!(bytes);
    while let Some(part) = bytes.next().await {
        let part = part.map_err(|e| BlobError::Interrupted { received: size, reason: e.to_string() })?;
        size += part.len() as u64;
        whole.take(part.clone()).await.map_err(io("digest an upload"))?;
        if size > store.limit() {
            return Err(BlobError::TooLarge { limit: store.limit() });
        }
        if let Err(error) = taker.take(&part).await {
            // Of what is no archive, the rest is not read; but where bytes of a certain digest are expected, that they are
            // others is the truer word.
            if expected.is_none() || !matches!(error, BlobError::Broken(_)) {
                return Err(error);
            }
            refused = Some(error);
            break;
        }
    }
    while refused.is_some() {
        let Some(part) = bytes.next().await else { break };
        let part = part.map_err(|e| BlobError::Interrupted { received: size, reason: e.to_string() })?;
        size += part.len() as u64;
        whole.take(part).await.map_err(io("digest an upload"))?;
    }
    let whole = whole.end().await.map_err(io("digest an upload"))?;
    let lost = || std::io::Error::other("its digests were lost");
    let (digest, md5) = whole.ok_or_else(lost).map_err(io("digest an upload"))?.finish();
    if let Some(expected) = expected.filter(|e| *e != digest.to_string()) {
        return Err(BlobError::WrongDigest { expected: expected.to_owned(), found: digest.to_string() });
    }
    match refused {
        Some(error) => Err(error),
        None => taker.finish(digest, md5, size).await,
    }
}

struct Taker<'a> {
    store: &'a BlobStore,
    walk: Walk,
    begun: bool,
    pieces: Vec<Piece>,
    literal: u64,
    held: u64,
    parts: Vec<Part>,
    files: Files,
    /// The file whose bytes come now.
    open: Option<Open>,
}

#[allow(clippy::large_enum_variant)] // Few of them are held at a time.
enum Open {
    Held(Vec<u8>),
    Spool(Spool),
}

impl<'a> Taker<'a> {
    fn new(store: &'a BlobStore) -> Self {
        Self {
            store,
            walk: Walk::default(),
            begun: false,
            pieces: Vec::new(),
            literal: 0,
            held: 0,
            parts: Vec::new(),
            files: Files::default(),
            open: None,
        }
    }

    async fn take(&mut self, part: &Bytes) -> Result<(), BlobError> {
        let mut bytes: &[u8] = part;
        if !self.begun && !bytes.is_empty() {
            self.begun = true;
            if !matches!(layer::compression(bytes), Ok(Compression::None)) {
                let text = "the archive is compressed as a whole: decompress it (gunzip, unzstd) and send the tar; its \
                            layers may be compressed";
                return Err(BlobError::Broken(text.into()));
            }
        }
        while let Some(step) = self.walk.feed(&mut bytes).map_err(broken)? {
            match step {
                Step::Frame(frame) => self.literal(frame)?,
                Step::Entry(entry, header) => {
                    self.literal(header)?;
                    let target = match entry.kind {
                        Kind::File => {
                            let held = entry.size < HELD_FROM && self.held + entry.size <= HELD_MAX;
                            self.open = Some(if held {
                                self.held += entry.size;
                                Open::Held(Vec::new())
                            } else {
                                Open::Spool(self.store.spool(Digests::default()).await?)
                            });
                            Target::File(self.parts.len())
                        }
                        Kind::Symlink(to) => Target::Beside(to),
                        Kind::HardLink(to) => Target::At(to),
                        Kind::Other => continue,
                    };
                    if !self.files.add(&entry.name, target) {
                        let name = shorten(&entry.name);
                        return Err(BlobError::Broken(format!("the archive has the entry {name} twice")));
                    }
                }
                Step::Data(data) => match &mut self.open {
                    Some(Open::Held(held)) => held.extend_from_slice(data),
                    Some(Open::Spool(spool)) => spool.write(part.slice_ref(data)).await?,
                    None => {}
                },
                Step::End => {
                    let part = match self.open.take() {
                        Some(Open::Held(held)) => Part {
                            digest: Digest(Sha256::digest(&held).into()),
                            size: held.len() as u64,
                            content: Content::Held(held),
                        },
                        Some(Open::Spool(spool)) => {
                            let spooled = spool.finish().await?;
                            Part {
                                digest: spooled.digest,
                                size: spooled.size,
                                content: Content::Spooled(spooled),
                            }
                        }
                        None => continue,
                    };
                    self.pieces.push(Piece::File(self.parts.len()));
                    self.parts.push(part);
                }
            }
        }
        Ok(())
    }

    fn literal(&mut self, bytes: Vec<u8>) -> Result<(), BlobError> {
        self.literal += bytes.len() as u64;
        if self.literal > LITERAL_MAX {
            let text = format!("the archive has more than {LITERAL_MAX} bytes that are no layer's");
            return Err(BlobError::Broken(text));
        }
        match self.pieces.last_mut() {
            Some(Piece::Literal(before)) => before.extend(bytes),
            _ => self.pieces.push(Piece::Literal(bytes)),
        }
        Ok(())
    }

    async fn finish(self, digest: Digest, md5: Option<String>, size: u64) -> Result<Apart, BlobError> {
        self.walk.end().map_err(broken)?;
        let Meaning { config: config_bytes, manifest, layers: named } =
            documents::read(&self.files, &self.parts).await?;
        let read = config::parse(&config_bytes).map_err(wrong)?;
        if read.diff_ids.len() != named.len() {
            let (told, there) = (read.diff_ids.len(), named.len());
            let text = format!("the archive's image has {there} layers; its configuration tells of {told}");
            return Err(BlobError::Broken(text));
        }
        let mut facts: HashMap<usize, LayerFacts> = HashMap::new();
        let mut layers = Vec::new();
        for (n, (at, diff_id)) in named.iter().zip(&read.diff_ids).enumerate() {
            let part = &self.parts[*at];
            let known = match facts.get(at) {
                Some(known) => *known,
                None => {
                    let measured = match &part.content {
                        Content::Held(bytes) => layer::measure_bytes(bytes, part.digest)?,
                        Content::Spooled(file) => layer::measure(file.path().to_owned(), part.digest).await?,
                    };
                    facts.insert(*at, measured);
                    measured
                }
            };
            if known.diff_id != *diff_id {
                let text = format!(
                    "layer {n} of the archive's image unpacks to a tar of digest {}; its configuration says {diff_id}",
                    known.diff_id
                );
                return Err(BlobError::Broken(text));
            }
            layers.push(Layer {
                sha256: part.digest.to_string(),
                size: part.size,
                compression: known.compression,
                diff_id: diff_id.to_string(),
            });
        }
        let config_at = (Digest(Sha256::digest(&config_bytes).into()), config_bytes.len() as u64);
        let manifest = manifest.unwrap_or_else(|| manifest::write(config_at, &layers).into());
        let (recipe, files) = self.split(&facts).await?;
        Ok(Apart { digest, md5, size, recipe, manifest, config: config_bytes, layers, files })
    }

    /// The recipe, and the layers' files, each once.
    async fn split(
        self,
        facts: &HashMap<usize, LayerFacts>,
    ) -> Result<(Recipe, Vec<(Spooled, LayerFacts)>), BlobError> {
        let mut recipe = Recipe::default();
        let mut files = BTreeMap::new();
        let mut parts: Vec<Option<Part>> = self.parts.into_iter().map(Some).collect();
        for piece in self.pieces {
            let at = match piece {
                Piece::Literal(bytes) => {
                    recipe.literal(&bytes);
                    continue;
                }
                Piece::File(at) => at,
            };
            let Some(part) = parts[at].take() else { continue };
            if let Some(facts) = facts.get(&at) {
                recipe.blob(part.digest, part.size);
                // Two files of the same bytes are one blob.
                if let std::collections::btree_map::Entry::Vacant(place) = files.entry(part.digest) {
                    let file = match part.content {
                        Content::Spooled(file) => file,
                        Content::Held(bytes) => {
                            let mut spool = self.store.spool(Digests::default()).await?;
                            spool.write(bytes.into()).await?;
                            spool.finish().await?
                        }
                    };
                    place.insert((file, *facts));
                }
                continue;
            }
            if recipe.literals() + part.size > LITERAL_MAX {
                let text = format!(
                    "the archive has more than {LITERAL_MAX} bytes that its image does not name: save one image, for \
                     linux/amd64 only"
                );
                return Err(BlobError::Broken(text));
            }
            match part.content {
                Content::Held(bytes) => recipe.literal(&bytes),
                Content::Spooled(file) => recipe.literal(&file.bytes().await?),
            }
        }
        Ok((recipe, files.into_values().collect()))
    }
}

impl Part {
    /// All of its bytes; refused if they are more than a document may have.
    async fn document(&self, name: &str, most: u64) -> Result<Bytes, BlobError> {
        if self.size > most {
            let text =
                format!("the archive's {} has {} bytes; at most {most} are taken", shorten(name), self.size);
            return Err(BlobError::Broken(text));
        }
        match &self.content {
            Content::Held(bytes) => Ok(Bytes::copy_from_slice(bytes)),
            Content::Spooled(file) => file.bytes().await,
        }
    }
}
