//! An archive's large files sent by their digests: what the controller has already is not sent again, and the archive is put
//! together over there. Knows tar alone; what the files mean is the controller's business. Refuses nothing: an archive that
//! cannot be sent so is sent whole.

use crate::failure::Failure;
use crate::progress::upload;
use amphi_api::ImageId;
use amphi_api::client::{Client, ClientError, Section};
use amphi_api::image::BlobRole;
use amphi_api::recipe::{LITERAL_MAX, Recipe};
use ring::digest::{Context, SHA256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Files from this size on are blobs, in bytes: what is less costs more to ask for than to send.
const FROM: u64 = 64 << 10;
/// Of what is sent beside them, in bytes: far below what is taken.
const REST: u64 = LITERAL_MAX / 2;
/// Most files of an archive that is looked at.
const FILES_MAX: usize = 2048;

/// A file in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    at: u64,
    size: u64,
}

/// Sends the archive so if that spares a byte; whether it has. What is known is decided by the controller.
pub async fn send(client: &Client, id: ImageId, path: &Path) -> Result<bool, Failure> {
    let (own, unreadable) = (path.to_owned(), path.display().to_string());
    let read = tokio::task::spawn_blocking(move || digests(&own)).await;
    let read = read.unwrap_or_else(|e| Err(io::Error::other(e)));
    let files = read.map_err(|e| Failure::new(2, format!("{unreadable}: cannot be read: {e}")))?;
    if files.is_empty() {
        return Ok(false);
    }
    let digests: Vec<String> = files.iter().map(|(_, digest)| digest.clone()).collect();
    let mut there: HashMap<String, u64> = HashMap::new();
    match client.known_blobs(&digests).await {
        Ok(known) => there.extend(known.into_iter().map(|blob| (blob.sha256, blob.size))),
        // An older controller.
        Err(ClientError::Api { status: 404 | 405, .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    if !files.iter().any(|(place, digest)| there.get(digest) == Some(&place.size)) {
        return Ok(false);
    }
    for (place, digest) in &files {
        if there.contains_key(digest) {
            continue;
        }
        let progress = upload(&format!("layer {}", &digest[..12]), place.size);
        let section = Section { at: place.at, length: place.size };
        client.upload_lone_blob(digest, path, section, progress).await?;
        there.insert(digest.clone(), place.size);
    }
    let own = path.to_owned();
    let recipe = tokio::task::spawn_blocking(move || recipe(&own, &files)).await;
    let recipe = recipe.unwrap_or_else(|e| Err(io::Error::other(e)));
    let recipe = recipe.map_err(|e| Failure::new(2, format!("{unreadable}: cannot be read: {e}")))?;
    client.put_recipe(id, BlobRole::Archive, &recipe).await?;
    Ok(true)
}

/// The archive's large files with their digests; none where it is no plain tar, or has too much beside them.
fn digests(path: &Path) -> io::Result<Vec<(Place, String)>> {
    let Some(places) = places(path)? else { return Ok(Vec::new()) };
    let mut file = File::open(path)?;
    let mut all = Vec::new();
    for place in places {
        file.seek(SeekFrom::Start(place.at))?;
        let (mut left, mut digest, mut piece) = (place.size, Context::new(&SHA256), vec![0; 256 << 10]);
        while left > 0 {
            let most = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match file.read(&mut piece[..most])? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                got => {
                    digest.update(&piece[..got]);
                    left -= got as u64;
                }
            }
        }
        let digest = digest.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
        all.push((place, digest));
    }
    Ok(all)
}

fn places(path: &Path) -> io::Result<Option<Vec<Place>>> {
    let file = File::open(path)?;
    let whole = file.metadata()?.len();
    let mut archive = tar::Archive::new(file);
    let mut places: Vec<Place> = Vec::new();
    for (n, entry) in archive.entries_with_seek()?.enumerate() {
        // What is no tar is refused by the controller, which says why.
        let Ok(entry) = entry else { return Ok(None) };
        let place = Place { at: entry.raw_file_position(), size: entry.size() };
        if n >= FILES_MAX || place.at.checked_add(place.size).is_none_or(|end| end > whole) {
            return Ok(None);
        }
        if entry.header().entry_type() == tar::EntryType::Regular && place.size >= FROM {
            places.push(place);
        }
    }
    let large: u64 = places.iter().map(|place| place.size).sum();
    Ok((whole - large <= REST).then_some(places))
}

fn recipe(path: &PathBuf, files: &[(Place, String)]) -> io::Result<Recipe> {
    let mut file = File::open(path)?;
    let whole = file.metadata()?.len();
    let (mut recipe, mut at) = (Recipe::default(), 0);
    let mut literal = |recipe: &mut Recipe, from: u64, to: u64| {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(from))?;
        (&mut file).take(to.saturating_sub(from)).read_to_end(&mut bytes)?;
        recipe.literal(&bytes);
        io::Result::Ok(())
    };
    for (place, digest) in files {
        literal(&mut recipe, at, place.at)?;
        recipe.blob(digest, place.size);
        at = place.at + place.size;
    }
    literal(&mut recipe, at, whole)?;
    Ok(recipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::recipe::Piece;

    fn archive(files: &[(&str, Vec<u8>)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut tar = tar::Builder::new(file.reopen().unwrap());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, name, &bytes[..]).unwrap();
        }
        tar.finish().unwrap();
        file
    }

    #[test]
    fn an_archive_in_its_parts_is_the_same_archive() {
        let long = format!("{}/layer.tar", "a".repeat(150));
        let files = [
            ("one/layer.tar", vec![1; 70_000]),
            ("manifest.json", vec![b'{'; 200]),
            (&*long, vec![2; 65_536]),
        ];
        let file = archive(&files);
        let parts = digests(file.path()).unwrap();
        assert_eq!(parts.len(), 2);
        let bytes = std::fs::read(file.path()).unwrap();
        let recipe = recipe(&file.path().to_owned(), &parts).unwrap();
        let mut again: Vec<u8> = Vec::new();
        for piece in &recipe.pieces {
            match piece {
                Piece::Bytes(literal) => again.extend(literal),
                Piece::Blob { sha256, size } => {
                    let (place, _) = parts.iter().find(|(_, digest)| digest == sha256).unwrap();
                    assert_eq!(place.size, *size);
                    again.extend(&bytes[place.at as usize..(place.at + size) as usize]);
                }
            }
        }
        assert!(again == bytes, "{} bytes of {}", again.len(), bytes.len());
        assert!(recipe.literals() < 8192);
    }

    #[test]
    fn what_cannot_be_sent_in_parts_is_sent_whole() {
        let none = |bytes: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), bytes).unwrap();
            assert_eq!(digests(file.path()).unwrap(), []);
        };
        none(b"");
        none(b"no tar at all");
        let whole = std::fs::read(archive(&[("layer.tar", vec![1; 100_000])]).path()).unwrap();
        none(&whole[..50_000]);
        let small: Vec<_> = (0..200).map(|_| ("f", vec![3; 60_000])).collect();
        none(&std::fs::read(archive(&small).path()).unwrap());
    }
}
