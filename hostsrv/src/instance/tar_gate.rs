//! Stands between a client's tar archive and whoever unpacks it: bytes go on unchanged, but no entry whose name leads out of
//! where it is unpacked, no hard link that does, and no device. Keeps nothing but the heads that it looks at.

use super::streams::{Fed, Input, input};
use bytes::Bytes;
use std::cell::RefCell;
use std::io::{self, Read};
use std::path::{Component, Path};
use std::rc::Rc;
use tar::EntryType;
use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Input that waits to be looked at, in bytes, and archive that waits to be unpacked, in pieces of as many.
const AHEAD: usize = 64 << 10;
const PIECES: usize = 2;

/// Read at once, in bytes.
const PIECE: usize = 64 << 10;
/// Longest head of an entry (its long names and attributes) that is held back to be looked at, in bytes.
const HEAD_MAX: usize = 1 << 20;

/// Why an archive ended early when whoever unpacks it has left.
pub const LEFT: &str = "nobody takes it any more";

/// Reads an archive to its end and hands its bytes on, each entry once it was looked at. `on` answers whether anybody takes
/// them. The message says what is wrong.
pub fn pass(input: impl Read, on: impl FnMut(Bytes) -> bool) -> Result<(), String> {
    let held = Rc::new(RefCell::new(Held { bytes: Vec::new(), over: false }));
    let on = RefCell::new(on);
    let mut archive = tar::Archive::new(Tee { input, held: held.clone() });
    let go_on = || {
        let bytes = std::mem::take(&mut held.borrow_mut().bytes);
        if bytes.is_empty() || (on.borrow_mut())(bytes.into()) { Ok(()) } else { Err(LEFT.to_owned()) }
    };
    let read = |error: io::Error| format!("it is no whole tar archive: {error}");
    let mut buffer = vec![0; PIECE];
    for entry in archive.entries().map_err(read)? {
        let mut entry = entry.map_err(read)?;
        look(&entry)?;
        loop {
            go_on()?;
            if entry.read(&mut buffer).map_err(read)? == 0 {
                break;
            }
        }
    }
    go_on()?;
    // What comes after the archive's end is padding.
    let mut rest = archive.into_inner().input;
    while rest.read(&mut buffer).map_err(read)? > 0 {}
    Ok(())
}

/// A client's archive on its way in.
pub struct Intake {
    pub input: Input,
    /// What may go on; an error where the archive is refused, and then no more.
    pub checked: mpsc::Receiver<io::Result<Bytes>>,
    /// What became of it: why it was refused, or [`LEFT`].
    pub gate: JoinHandle<Result<(), String>>,
}

/// Sets a gate up, on a thread of its own. An archive counts as whole when its end was said.
pub fn intake() -> Intake {
    let (input, fed) = input(AHEAD);
    let (to, checked) = mpsc::channel::<io::Result<Bytes>>(PIECES);
    let mut archive = Archive { fed, handle: Handle::current() };
    let gate = tokio::task::spawn_blocking(move || {
        let passed = pass(&mut archive, |bytes| to.blocking_send(Ok(bytes)).is_ok());
        let passed = match passed {
            Ok(()) if !archive.fed.is_whole() => Err("the archive was cut off".to_owned()),
            passed => passed,
        };
        if let Err(why) = &passed {
            let _ = to.blocking_send(Err(io::Error::other(why.clone())));
        }
        passed
    });
    Intake { input, checked, gate }
}

/// The same bytes for a thread that waits for them.
struct Archive {
    fed: Fed,
    handle: Handle,
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.handle.block_on(self.fed.pipe.read(buffer))
    }
}

fn look(entry: &tar::Entry<'_, impl Read>) -> Result<(), String> {
    let path = entry.path().map_err(|error| format!("a name in it: {error}"))?;
    let told = path.display();
    if !stays(&path) {
        return Err(format!("'{told}' in it leads out of where it is unpacked"));
    }
    match entry.header().entry_type() {
        EntryType::Link => {
            let to = entry.link_name().map_err(|error| format!("'{told}' in it: {error}"))?;
            match to {
                Some(to) if stays(&to) => Ok(()),
                _ => Err(format!("'{told}' in it links to what is not in it")),
            }
        }
        EntryType::Char | EntryType::Block => Err(format!("'{told}' in it is a device")),
        _ => Ok(()),
    }
}

/// Whether a name lies below where it begins.
pub fn stays(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Read and not yet handed on.
struct Held {
    bytes: Vec<u8>,
    over: bool,
}

struct Tee<R> {
    input: R,
    held: Rc<RefCell<Held>>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut held = self.held.borrow_mut();
        if held.over || held.bytes.len() > HEAD_MAX {
            held.over = true;
            return Err(io::Error::other("the head of an entry is too long"));
        }
        let length = self.input.read(buffer)?;
        held.bytes.extend_from_slice(&buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::{Builder, Header};

    fn header(kind: EntryType, name: &[u8], link: &str, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o640);
        // By hand: the library does not write such names.
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        header
    }

    fn through(archive: &[u8]) -> (Result<(), String>, Vec<u8>) {
        let mut out = Vec::new();
        let outcome = pass(archive, |bytes| {
            out.extend_from_slice(&bytes);
            true
        });
        (outcome, out)
    }

    #[test]
    fn what_is_decent_goes_on_unchanged() {
        let mut tar = Builder::new(Vec::new());
        let long = format!("d/{}", "n".repeat(300));
        let big = vec![7; 3 << 20];
        tar.append(&header(EntryType::Directory, b"d/", "", 0), io::empty()).unwrap();
        tar.append_data(&mut header(EntryType::Regular, b"", "", big.len() as u64), &long, &big[..]).unwrap();
        tar.append(&header(EntryType::Symlink, b"d/s", "/etc/passwd", 0), io::empty()).unwrap();
        tar.append(&header(EntryType::Link, b"d/h", "d/s", 0), io::empty()).unwrap();
        let bytes = tar.into_inner().unwrap();
        let (outcome, out) = through(&bytes);
        assert_eq!(outcome, Ok(()));
        assert!(bytes.starts_with(&out) && bytes[out.len()..].iter().all(|b| *b == 0), "{}", out.len());
        let again = through(&[&bytes[..], &[0; 10_240]].concat());
        assert_eq!((again.0, again.1), (Ok(()), out), "padding");
    }

    #[test]
    fn what_leads_out_is_refused_before_its_bytes_go_on() {
        for (kind, name, link, says) in [
            (EntryType::Regular, "../x", "", "leads out"),
            (EntryType::Regular, "a/../../x", "", "leads out"),
            (EntryType::Regular, "/etc/x", "", "leads out"),
            (EntryType::Directory, "..", "", "leads out"),
            (EntryType::Link, "x", "../../etc/passwd", "links to"),
            (EntryType::Link, "x", "/etc/passwd", "links to"),
            (EntryType::Char, "x", "", "device"),
            (EntryType::Block, "x", "", "device"),
        ] {
            let mut tar = Builder::new(Vec::new());
            tar.append(&header(EntryType::Regular, b"good", "", 4), &b"good"[..]).unwrap();
            tar.append(&header(kind, name.as_bytes(), link, 0), io::empty()).unwrap();
            let (outcome, out) = through(&tar.into_inner().unwrap());
            let said = outcome.unwrap_err();
            assert!(said.contains(says), "{name}: {said}");
            assert!(out.len() <= 1024 && out.starts_with(b"good"), "{name}: {} bytes went on", out.len());
        }
    }

    #[test]
    fn what_is_cut_is_told() {
        let mut tar = Builder::new(Vec::new());
        tar.append(&header(EntryType::Regular, b"x", "", 4000), &[1; 4000][..]).unwrap();
        let bytes = tar.into_inner().unwrap();
        assert!(through(&bytes[..2000]).0.is_err());
        assert!(through(&b"no archive".repeat(200)).0.is_err());
        assert_eq!(through(&[]).0, Ok(()), "nothing is an archive of nothing");
        assert_eq!(pass(&bytes[..], |_| false), Err(LEFT.to_owned()));
    }
}
