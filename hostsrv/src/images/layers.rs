//! Owns where a container image's configuration and layers are in the host's cache: blobs of their own, or inside of an
//! archive as `docker save` or an OCI layout has it. Refuses to unpack: layers come back as tars that can be read.

use crate::instance::CachedImage;
use amphi_api::image::{BlobRole, Compression};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};

/// Largest manifest or configuration that is read, in bytes.
const DOCUMENT_MAX: u64 = 8 << 20;
/// Largest layer without its compression, in bytes: what is larger is taken for a bomb.
const LAYER_MAX: u64 = 64 << 30;

/// What a member starts from.
pub struct Container {
    /// The image's configuration as it is stored.
    pub config: Vec<u8>,
    /// The lowest first; tars without compression.
    pub layers: Vec<Window>,
}

/// A part of a file, read as if it were one.
pub struct Window {
    file: BufReader<File>,
    begin: u64,
    size: u64,
    at: u64,
}

impl Window {
    fn new(mut file: File, begin: u64, size: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(begin))?;
        Ok(Self { file: BufReader::with_capacity(64 << 10, file), begin, size, at: 0 })
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = (self.size - self.at.min(self.size)).min(buffer.len() as u64) as usize;
        let read = self.file.read(&mut buffer[..most])?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset),
        };
        let to = to.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // Within what was read ahead where that can be.
        let now = self.begin + self.at;
        self.file.seek_relative((self.begin + to) as i64 - now as i64)?;
        self.at = to;
        Ok(to)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    layers: Vec<String>,
}

/// `scratch` is where layers without their compression may lie; they have no names there.
pub fn open(cached: &CachedImage, scratch: &Path) -> Result<Container, String> {
    let blob = |role: BlobRole| cached.blobs.get(&role);
    let told = |error: io::Error| error.to_string();
    if let (Some(config), false) = (blob(BlobRole::Config), cached.image.layers.is_empty()) {
        let folder = config.parent().ok_or("its configuration lies nowhere")?;
        let mut layers = Vec::new();
        for layer in &cached.image.layers {
            let file =
                File::open(folder.join(&layer.sha256)).map_err(|e| format!("layer {}: {e}", layer.sha256))?;
            layers.push(match layer.compression {
                Compression::None => Window::new(file, 0, layer.size).map_err(told)?,
                Compression::Gzip => inflate(file, "gzip", scratch)?,
                Compression::Zstd => inflate(file, "zstd", scratch)?,
            });
        }
        return Ok(Container { config: document(&mut File::open(config).map_err(told)?)?, layers });
    }
    let path = blob(BlobRole::Archive).ok_or("it has neither layers nor an archive")?;
    of_archive(path, scratch)
}

fn of_archive(path: &Path, scratch: &Path) -> Result<Container, String> {
    let told = |error: io::Error| error.to_string();
    let whole = File::open(path).map_err(told)?;
    let mut places = BTreeMap::new();
    let mut archive = tar::Archive::new(BufReader::new(whole.try_clone().map_err(told)?));
    for entry in archive.entries_with_seek().map_err(told)? {
        let entry = entry.map_err(|error| format!("it is no whole tar archive: {error}"))?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let link = entry.link_name_bytes().map(|target| String::from_utf8_lossy(&target).into_owned());
        places.insert(name, (entry.raw_file_position(), entry.size(), link));
    }
    let find = |name: &str| {
        let (at, size, link) = places.get(name).ok_or_else(|| format!("{name} is missing in it"))?;
        // Older `docker save` writes a layer that two images share as a link to the other's: ../<id>/layer.tar.
        let target = link.as_deref().map(|target| target.trim_start_matches("../"));
        match target.and_then(|target| places.get(target)) {
            Some((at, size, None)) => Ok((*at, *size)),
            Some(_) => Err(format!("{name} is behind more than one link")),
            None if target.is_some() => Err(format!("{name} is a link to what is missing in it")),
            None => Ok((*at, *size)),
        }
    };
    let open = |name: &str| {
        let (at, size) = find(name)?;
        // Handles of one file would share its place: each has its own.
        Window::new(File::open(path).map_err(told)?, at, size).map_err(told)
    };
    let manifest: Vec<Saved> = serde_json::from_slice(&document(&mut open("manifest.json")?)?)
        .map_err(|error| format!("manifest.json: {error}"))?;
    let first = manifest.first().ok_or("manifest.json lists no image")?;
    let config = document(&mut open(&first.config)?)?;
    let mut layers = Vec::new();
    for name in &first.layers {
        let mut layer = open(name)?;
        let mut head = [0; 4];
        let read = layer.read(&mut head).map_err(told)?;
        layer.seek(SeekFrom::Start(0)).map_err(told)?;
        let program = match &head[..read] {
            [0x1f, 0x8b, ..] => Some("gzip"),
            [0x28, 0xb5, 0x2f, 0xfd] => Some("zstd"),
            _ => None,
        };
        layers.push(match program {
            Some(program) => inflate(layer, program, scratch)?,
            None => layer,
        });
    }
    Ok(Container { config, layers })
}

fn document(source: &mut impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    source.take(DOCUMENT_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > DOCUMENT_MAX {
        return Err(format!("a manifest or configuration of more than {DOCUMENT_MAX} bytes"));
    }
    Ok(bytes)
}

/// A layer without its compression, in a file without a name.
fn inflate(mut packed: impl Read + Send, program: &str, scratch: &Path) -> Result<Window, String> {
    let told = |error: io::Error| format!("{program}: {error}");
    std::fs::create_dir_all(scratch).map_err(told)?;
    let mut plain = tempfile::tempfile_in(scratch).map_err(told)?;
    let mut child = Command::new(program)
        .args(["-d", "-c", "-q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(told)?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let size = std::thread::scope(|scope| {
        // What it does not take, because it has ended, is no fault of the bytes: its exit code tells.
        scope.spawn(|| stdin.map(|mut stdin| io::copy(&mut packed, &mut stdin)));
        let copied = stdout.map_or(Ok(0), |stdout| io::copy(&mut stdout.take(LAYER_MAX + 1), &mut plain));
        if !matches!(copied, Ok(0..=LAYER_MAX)) {
            // Else it would wait for somebody to read the rest.
            let _ended = child.kill();
        }
        copied
    });
    let status = child.wait().map_err(told)?;
    let size = size.map_err(told)?;
    if size > LAYER_MAX {
        return Err(format!("a layer of more than {} GiB without its compression", LAYER_MAX >> 30));
    }
    if !status.success() {
        return Err(format!("a layer that {program} does not take: it is damaged"));
    }
    Window::new(plain, 0, size).map_err(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_a_file_of_its_own() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"beforeINSIDEafter").unwrap();
        let mut window = Window::new(file, 6, 6).unwrap();
        let mut text = String::new();
        window.read_to_string(&mut text).unwrap();
        assert_eq!(text, "INSIDE");
        assert_eq!(window.seek(SeekFrom::End(0)).unwrap(), 6);
        assert_eq!(window.seek(SeekFrom::Start(4)).unwrap(), 4);
        text.clear();
        window.read_to_string(&mut text).unwrap();
        assert_eq!(text, "DE");
        assert!(window.seek(SeekFrom::Current(-99)).is_err());
    }
}
