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
