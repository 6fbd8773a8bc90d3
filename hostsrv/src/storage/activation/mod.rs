//! Turns an LV into a block device: device-mapper where the kernel has it, else a loop window.

pub mod dm;
pub mod ioctl;
pub mod loop_device;
