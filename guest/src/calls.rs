//! Owns the system calls that have no safe name: each block says why it is sound.
#![allow(unsafe_code)]

use nix::libc;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `PR_CAPBSET_DROP` for a capability's number.
pub fn drop_from_bounding_set(capability: u8) -> io::Result<()> {
    // SAFETY: takes numbers alone; EINVAL is the answer to a number that this kernel does not have.
    let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A signal by number, real-time ones included. `pid` as kill(2) takes it: a negative one is a process group.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers alone.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a terminal the calling session's own.
pub fn take_terminal(terminal: impl AsFd) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as it is borrowed; the argument is a number.
    let done = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub fn resize_terminal(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads a winsize from the pointer, which outlives the call.
    let done = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// struct xfs_fsop_geom_v1 and struct xfs_growfs_data of linux/fs/xfs/libxfs/xfs_fs.h.
#[repr(C)]
#[derive(Default)]
struct XfsGeometry {
    blocksize: u32,
    rtextsize: u32,
    agblocks: u32,
    agcount: u32,
    logblocks: u32,
    sectsize: u32,
    inodesize: u32,
    imaxpct: u32,
    datablocks: u64,
    rtblocks: u64,
    rtextents: u64,
    logstart: u64,
    uuid: [u8; 16],
    sunit: u32,
    swidth: u32,
    version: i32,
    flags: u32,
    logsectsize: u32,
    rtsectsize: u32,
    dirblocksize: u32,
}

#[repr(C)]
struct XfsGrow {
    newblocks: u64,
    imaxpct: u32,
}

/// `_IOR('X', 100, struct xfs_fsop_geom_v1)` and `_IOW('X', 110, struct xfs_growfs_data)`.
const XFS_GEOMETRY: libc::c_ulong = ioctl_number(2, 100, size_of::<XfsGeometry>());
const XFS_GROW: libc::c_ulong = ioctl_number(1, 110, size_of::<XfsGrow>());

const fn ioctl_number(direction: u64, number: u64, size: usize) -> libc::c_ulong {
    (direction << 30) | ((size as u64) << 16) | (0x58 << 8) | number
}

/// Grows a mounted XFS to `bytes`, through any file in it.
pub fn grow_xfs(file: impl AsFd, bytes: u64) -> io::Result<()> {
    let mut geometry = XfsGeometry::default();
    // SAFETY: the kernel writes one structure of this layout, whose size is in the number, to a pointer that outlives it.
    if unsafe { libc::ioctl(file.as_fd().as_raw_fd(), XFS_GEOMETRY, &raw mut geometry) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let newblocks = bytes / u64::from(geometry.blocksize.max(1));
    if newblocks <= geometry.datablocks {
        return Ok(());
    }
    let grow = XfsGrow { newblocks, imaxpct: geometry.imaxpct };
    // SAFETY: the kernel reads one structure of this layout from a pointer that outlives the call.
    if unsafe { libc::ioctl(file.as_fd().as_raw_fd(), XFS_GROW, &raw const grow) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Names of extended attributes are separated by NULs; more than this the kernel does not tell.
const XATTRS_MAX: usize = 64 << 10;

/// All extended attributes of a file, or of a link itself.
pub fn xattrs(path: &std::path::Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut names = vec![0_u8; XATTRS_MAX];
    // SAFETY: the path is NUL-terminated and outlives the call; the kernel writes at most so many bytes as are there.
    let got = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let got = match usize::try_from(got) {
        Ok(got) => got,
        Err(_) => {
            let error = io::Error::last_os_error();
            // A file system without any.
            return if error.raw_os_error() == Some(libc::EOPNOTSUPP) { Ok(Vec::new()) } else { Err(error) };
        }
    };
    let mut all = Vec::new();
    for name in names[..got].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let key = std::ffi::CString::new(name)?;
        let mut value = vec![0_u8; XATTRS_MAX];
        // SAFETY: both texts are NUL-terminated and outlive the call; the kernel writes at most so many bytes as are there.
        let got =
            unsafe { libc::lgetxattr(path.as_ptr(), key.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        value.truncate(usize::try_from(got).map_err(|_| io::Error::last_os_error())?);
        all.push((name.to_vec(), value));
    }
    Ok(all)
}

/// Sets one, of a file or of a link itself.
pub fn set_xattr(path: &std::path::Path, name: &[u8], value: &[u8]) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let name = std::ffi::CString::new(name)?;
    // SAFETY: both texts are NUL-terminated; the kernel reads so many bytes as are there; all outlive the call.
    let done =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// struct dm_ioctl of linux/dm-ioctl.h, and behind it what a call brings along.
const DM_HEADER: usize = 312;
const DM_DATA: usize = 64 << 10;

/// One call of device-mapper. `data` goes behind the header; answers the header's device number.
pub fn device_mapper(
    control: impl AsFd,
    command: u64,
    name: &str,
    flags: u32,
    targets: u32,
    data: &[u8],
) -> io::Result<u64> {
    if data.len() > DM_DATA || name.len() > 120 {
        return Err(io::Error::other("too much for device-mapper"));
    }
    // As 64-bit words: the kernel's structures are aligned so.
    let mut words = vec![0_u64; (DM_HEADER + DM_DATA) / 8];
    {
        let mut put = |at: usize, bytes: &[u8]| {
            for (n, byte) in bytes.iter().enumerate() {
                let at = at + n;
                words[at / 8] |= u64::from(*byte) << (at % 8 * 8);
            }
        };
        for (at, number) in [
            (0, 4_u32),
            (12, (DM_HEADER + DM_DATA) as u32),
            (16, DM_HEADER as u32),
            (20, targets),
            (28, flags),
        ] {
            put(at, &number.to_le_bytes());
        }
        put(48, name.as_bytes());
        put(DM_HEADER, data);
    }
    // _IOWR(0xfd, command, struct dm_ioctl)
    let number = (3 << 30) | ((DM_HEADER as u64) << 16) | (0xfd << 8) | command;
    // SAFETY: the kernel reads and writes so many bytes as the header's data_size says, which are there and outlive the call.
    if unsafe { libc::ioctl(control.as_fd().as_raw_fd(), number, words.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(words[5])
}

/// Fills it with the kernel's random bytes.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: the kernel writes at most so many bytes as are there; up to 256 come whole.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(got) == Ok(bytes.len()) { Ok(()) } else { Err(io::Error::last_os_error()) }
}
