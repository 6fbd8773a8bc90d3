//! Makes a container image's archive, as `docker save` writes it, of one tar and of what its report says that it starts with.
//! Pure but for the streams that it is given. Refuses what no configuration may say.

use amphi_api::conversion::ConversionInit;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io::{self, Read, Seek, SeekFrom, Write};

const LAYER: &str = "layer/layer.tar";
const CONFIG: &str = "config.json";
const PIECE: usize = 1 << 20;
/// Words of what an image starts with, and bytes of each.
const WORDS_MAX: usize = 16;
const WORD_MAX: usize = 4096;

/// Writes the archive; `tar` ends at its end.
pub fn write(mut tar: impl Read, init: &ConversionInit, out: &mut (impl Write + Seek)) -> io::Result<()> {
    let config = |diff_id: &str| config(init, diff_id);
    // The layer's header says how long it is, which is known behind it.
    let begin = out.stream_position()?;
    out.write_all(&[0; 512])?;
    let mut layer = GzEncoder::new(Counted { out: &mut *out, bytes: 0 }, Compression::fast());
    let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        let got = match tar.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            got => got?,
        };
        if got == 0 {
            break;
        }
        hash.update(&piece[..got]);
        layer.write_all(&piece[..got])?;
    }
    let size = layer.finish()?.bytes;
    pad(out, size)?;
    let end = out.stream_position()?;
    out.seek(SeekFrom::Start(begin))?;
    out.write_all(header(LAYER, size)?.as_bytes())?;
    out.seek(SeekFrom::Start(end))?;
    let config = config(&format!("sha256:{}", hex::encode(hash.finalize())))?;
    file(out, CONFIG, &config)?;
    let manifest = serde_json::to_vec(&json!([{"Config": CONFIG, "RepoTags": null, "Layers": [LAYER]}]))?;
    file(out, "manifest.json", &manifest)?;
    out.write_all(&[0; 1024])
}

fn config(init: &ConversionInit, diff_id: &str) -> io::Result<Vec<u8>> {
    let fits = |word: &String| word.len() <= WORD_MAX && !word.contains('\0');
    let signal = init.stop_signal.as_str();
    let known = signal.strip_prefix("SIG").is_some_and(|name| {
        name.len() <= 12 && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'+')
    });
    if init.argv.is_empty() || init.argv.len() > WORDS_MAX || !init.argv.iter().all(fits) || !known {
        return Err(io::Error::other("the guest names an init that cannot be"));
    }
    Ok(serde_json::to_vec(&json!({
        "architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "container=docker"],
            "Cmd": init.argv, "WorkingDir": "/", "StopSignal": signal,
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "amphi image convert"}],
    }))?)
}

fn header(name: &str, size: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(header)
}

fn file(out: &mut impl Write, name: &str, bytes: &[u8]) -> io::Result<()> {
    out.write_all(header(name, bytes.len() as u64)?.as_bytes())?;
    out.write_all(bytes)?;
    pad(out, bytes.len() as u64)
}

fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let over = (size % 512) as usize;
    if over == 0 { Ok(()) } else { out.write_all(&[0; 512][over..]) }
}

struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let wrote = self.out.write(bytes)?;
        self.bytes += wrote as u64;
        Ok(wrote)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(argv: &[&str], signal: &str) -> ConversionInit {
        ConversionInit {
            kind: "other".into(),
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            stop_signal: signal.into(),
        }
    }

    #[test]
    fn an_archive_of_one_layer() {
        let layer = vec![7_u8; 100_001];
        let mut out = io::Cursor::new(Vec::new());
        write(layer.as_slice(), &init(&["/sbin/init"], "SIGRTMIN+3"), &mut out).unwrap();
        let bytes = out.into_inner();
        let mut files = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(name, content);
        }
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(files[LAYER].as_slice()).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, layer);
        let config: serde_json::Value = serde_json::from_slice(&files[CONFIG]).unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", hex::encode(Sha256::digest(&layer)))
        );
        assert_eq!(config["config"]["StopSignal"], "SIGRTMIN+3");
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["Layers"][0], LAYER);
    }

    #[test]
    fn inits_that_cannot_be() {
        let long = "x".repeat(WORD_MAX + 1);
        for (argv, signal) in [
            (&[][..], "SIGPWR"),
            (&["a\0b"], "SIGPWR"),
            (&[long.as_str()], "SIGPWR"),
            (&["x"; WORDS_MAX + 1], "SIGPWR"),
            (&["/init"], "9"),
            (&["/init"], "SIG\"}"),
        ] {
            let mut out = io::Cursor::new(Vec::new());
            assert!(write(&b""[..], &init(argv, signal), &mut out).is_err(), "{argv:?} {signal}");
        }
    }
}
