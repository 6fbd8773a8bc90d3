//! Loop activation: a loop device as a window (offset, size limit) over the physical volume.
//!
//! State lives in the kernel alone and is found again in /sys/block/loop*/loop. That table is global to the
//! machine, so a window is ours only if its backing device is our physical volume and its offset our LV's.
//! Windows clear themselves with their last user (autoclear): a mount, a guest, or a file kept open here.
//! Everything here blocks for a moment; callers use `spawn_blocking`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::ioctl;

/// One loop device in use, as sysfs shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    pub device: PathBuf,
    pub backing: PathBuf,
    pub offset: u64,
    pub size: u64,
}

/// Which bytes of which physical volume an LV is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub pv: PathBuf,
    pub offset: u64,
    pub size: u64,
    /// Past the physical volume's page cache: other hosts write there too.
    pub direct: bool,
}

impl Place {
    fn is(&self, window: &Window) -> bool {
        window.offset == self.offset && same_device(&window.backing, &self.pv)
    }
}

/// Every loop device in use on the machine.
pub fn windows() -> io::Result<Vec<Window>> {
    windows_below(Path::new("/sys/block"))
}

fn windows_below(sys: &Path) -> io::Result<Vec<Window>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(sys)? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().starts_with(b"loop") {
            continue;
        }
        let read = |attribute: &str| std::fs::read_to_string(sys.join(&name).join("loop").join(attribute));
        // A device that is not in use, or ceases to be while we look, has no such files.
        let (Ok(backing), Ok(offset), Ok(size)) = (read("backing_file"), read("offset"), read("sizelimit"))
        else {
            continue;
        };
        if let (Ok(offset), Ok(size)) = (offset.trim().parse(), size.trim().parse()) {
            let backing = PathBuf::from(backing.trim_end_matches('\n'));
            found.push(Window { device: Path::new("/dev").join(&name), backing, offset, size });
        }
    }
    Ok(found)
}

fn same_device(a: &Path, b: &Path) -> bool {
    let number = |path: &Path| {
        std::fs::metadata(path).ok().filter(|meta| meta.file_type().is_block_device()).map(|meta| meta.rdev())
    };
    match (number(a), number(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// The window of an LV among `windows`.
pub fn find<'a>(windows: &'a [Window], place: &Place) -> Option<&'a Window> {
    windows.iter().find(|window| place.is(window))
}

/// An open window stays while the file is open, whoever else comes and goes.
#[derive(Debug)]
pub struct Open {
    pub device: PathBuf,
    pub file: File,
    /// It had been there before, so somebody else may be using it.
    pub found: bool,
}

/// Finds or makes the window of an LV and gives it the LV's size.
pub fn open(place: &Place) -> io::Result<Open> {
    match open_existing(place)? {
        Some(open) => Ok(open),
        None => make(place),
    }
}

/// Finds the window of an LV and gives it the LV's size.
pub fn open_existing(place: &Place) -> io::Result<Option<Open>> {
    let all = windows()?;
    let Some(window) = find(&all, place) else { return Ok(None) };
    let file = read_write(&window.device)?;
    // While we were opening it, it may have been cleared and reused; now it cannot any more.
    let Some(now) = windows()?.into_iter().find(|now| now.device == window.device && place.is(now)) else {
        return Ok(None);
    };
    if now.size != place.size {
        resize(&file, place)?;
    }
    Ok(Some(Open { device: now.device, file, found: true }))
}

fn make(place: &Place) -> io::Result<Open> {
    let control = read_write(Path::new("/dev/loop-control"))?;
    let backing = read_write(&place.pv)?;
    // Everybody on the machine takes from the same pool, so the free one may be gone by now.
    for _ in 0..64 {
        let number = ioctl::loop_free(&control)?;
        let device = PathBuf::from(format!("/dev/loop{number}"));
        let file = match read_write(&device) {
            Err(error)
                if [Some(Errno::ENXIO as i32), Some(Errno::EBUSY as i32)].contains(&error.raw_os_error()) =>
            {
                continue;
            }
            other => other?,
        };
        match ioctl::loop_configure(&file, &backing, place.offset, place.size, place.direct) {
            Ok(()) if place.direct && !is_direct(&device)? => {
                return Err(io::Error::other("the kernel makes no direct window over the physical volume"));
            }
            Ok(()) => return Ok(Open { device, file, found: false }),
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => continue,
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "every free loop device was taken by somebody else"))
}

/// The kernel falls back to its page cache without a word.
fn is_direct(device: &Path) -> io::Result<bool> {
    let name = device.file_name().unwrap_or_default();
    Ok(std::fs::read_to_string(Path::new("/sys/block").join(name).join("loop/dio"))?.trim() == "1")
}

fn resize(file: &File, place: &Place) -> io::Result<()> {
    // EAGAIN: pages were dirtied while the kernel flushed them; it asks to be asked again.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match ioctl::loop_resize(file, place.offset, place.size) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

/// Ends the window of an LV; returns its device when somebody still holds it after `patience`.
pub fn close(place: &Place, patience: Duration) -> io::Result<Option<PathBuf>> {
    let deadline = Instant::now() + patience;
    loop {
        let all = windows()?;
        let Some(window) = find(&all, place) else { return Ok(None) };
        // One that was made without autoclear needs to be told; with other users this changes nothing.
        if let Ok(file) = read_write(&window.device)
            && find(&windows()?, place).is_some_and(|now| now.device == window.device)
        {
            // ENXIO: gone meanwhile. Whatever else it is, the next round sees the window or not.
            let _ = ioctl::loop_clear(&file);
        }
        if Instant::now() >= deadline {
            return Ok(find(&windows()?, place).map(|window| window.device.clone()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read_write(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_read_from_sysfs_and_matched_by_backing_and_offset() {
        let sys = tempfile::tempdir().expect("temporary directory");
        for (name, backing, offset, size) in
            [("loop0", "/srv/pv.img", "0", "0"), ("loop7", "/nonexistent/pv", "1048576", "4194304")]
        {
            let dir = sys.path().join(name).join("loop");
            std::fs::create_dir_all(&dir).expect("mkdir");
            for (file, text) in [("backing_file", backing), ("offset", offset), ("sizelimit", size)] {
                std::fs::write(dir.join(file), format!("{text}\n")).expect("write");
            }
        }
        std::fs::create_dir_all(sys.path().join("loop3")).expect("mkdir");
        std::fs::create_dir_all(sys.path().join("vda")).expect("mkdir");
        let windows = windows_below(sys.path()).expect("reads");
        assert_eq!(windows.len(), 2, "{windows:?}");
        let place = |pv: &str, offset| Place { pv: pv.into(), offset, size: 9, direct: false };
        let found = find(&windows, &place("/nonexistent/pv", 1048576)).expect("found");
        assert_eq!((found.device.as_path(), found.size), (Path::new("/dev/loop7"), 4194304));
        assert_eq!(find(&windows, &place("/nonexistent/pv", 0)), None);
        assert_eq!(find(&windows, &place("/nonexistent/other", 1048576)), None);
    }
}
