//! The few ioctls that storage needs and no crate wraps: loop windows, freeze and thaw.
//!
//! Each wrapper takes a borrowed open file, so the descriptor is valid for the call, and passes either
//! no pointer or one to a fully initialised `repr(C)` value of the layout in linux/loop.h that outlives
//! the call. That is all the kernel asks for, which makes the `unsafe` blocks sound.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

// linux/loop.h and linux/fs.h
const LOOP_CLR_FD: u64 = 0x4C01;
const LOOP_SET_STATUS64: u64 = 0x4C04;
const LOOP_SET_CAPACITY: u64 = 0x4C07;
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LOOP_CTL_GET_FREE: u64 = 0x4C82;
const FIFREEZE: u64 = 0xC004_5877;
const FITHAW: u64 = 0xC004_5878;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
// xfs_fs.h: _IOR('X', 125, uint32_t), and "don't flush the log, nothing at all".
const XFS_IOC_GOINGDOWN: u64 = 0x8004_587d;
const XFS_FSOP_GOING_FLAGS_NOLOGFLUSH: u32 = 2;

#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl LoopInfo64 {
    fn window(offset: u64, size: u64, flags: u32) -> Self {
        LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset,
            sizelimit: size,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_AUTOCLEAR | flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

fn plain(file: &File, request: u64, argument: libc::c_ulong) -> io::Result<i32> {
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn pointer<T>(file: &File, request: u64, value: &T) -> io::Result<()> {
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), request as _, std::ptr::from_ref(value)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The number of an unused loop device; it may be taken by somebody else before it is configured.
pub fn loop_free(control: &File) -> io::Result<u32> {
    plain(control, LOOP_CTL_GET_FREE, 0).map(|number| number as u32)
}

/// Makes `device` a window of `size` bytes at `offset` over `backing`, which vanishes with its last user. `direct`: past the
/// backing device's page cache.
pub fn loop_configure(device: &File, backing: &File, offset: u64, size: u64, direct: bool) -> io::Result<()> {
    let flags = if direct { LO_FLAGS_DIRECT_IO } else { 0 };
    let config = LoopConfig {
        fd: backing.as_raw_fd() as u32,
        block_size: 0,
        info: LoopInfo64::window(offset, size, flags),
        reserved: [0; 8],
    };
    pointer(device, LOOP_CONFIGURE, &config)
}

/// Gives an existing window a new size, seen at once by whoever has it open.
pub fn loop_resize(device: &File, offset: u64, size: u64) -> io::Result<()> {
    pointer(device, LOOP_SET_STATUS64, &LoopInfo64::window(offset, size, 0))?;
    plain(device, LOOP_SET_CAPACITY, 0).map(drop)
}

/// Ends the window with its last user.
pub fn loop_clear(device: &File) -> io::Result<()> {
    plain(device, LOOP_CLR_FD, 0).map(drop)
}

/// Blocks writes to the file system that `directory` is on and makes what is on disk consistent.
pub fn freeze(directory: &File) -> io::Result<()> {
    plain(directory, FIFREEZE, 0).map(drop)
}

/// Undoes `freeze`; EINVAL when nothing was frozen.
pub fn thaw(directory: &File) -> io::Result<()> {
    plain(directory, FITHAW, 0).map(drop)
}

/// Stops an XFS at once: nothing in memory is written any more, and every later call fails.
pub fn shut_down(directory: &File) -> io::Result<()> {
    pointer(directory, XFS_IOC_GOINGDOWN, &XFS_FSOP_GOING_FLAGS_NOLOGFLUSH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_the_kernel_s_sizes() {
        assert_eq!(std::mem::size_of::<LoopInfo64>(), 232);
        assert_eq!(std::mem::size_of::<LoopConfig>(), 304);
    }
}
