//! Owns the machine's end: its power button, and what is done before it is off.

use crate::members::Members;
use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use std::fs::{self, File};
use std::io::Read;
use std::sync::Arc;

/// `EV_KEY` and `KEY_POWER` of linux/input-event-codes.h.
const KEY: u16 = 1;
const POWER: u16 = 116;

/// Listens to every button.
pub fn listen(pressed: impl Fn() + Clone + Send + 'static) {
    for entry in fs::read_dir("/dev/input").into_iter().flatten().flatten() {
        let Ok(mut device) = File::open(entry.path()) else { continue };
        let pressed = pressed.clone();
        std::thread::spawn(move || {
            // struct input_event of a 64-bit machine: two 64-bit times, type, code, value.
            let mut event = [0; 24];
            while device.read_exact(&mut event).is_ok() {
                if is_press(&event) {
                    crate::say("power button");
                    pressed();
                }
            }
        });
    }
}

fn is_press(event: &[u8; 24]) -> bool {
    let word = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    word(16) == KEY && word(18) == POWER && event[20..24] == 1_i32.to_ne_bytes()
}

/// Ends all members, leaves the volumes clean and switches off.
pub fn off(members: &Arc<Members>) {
    off_with(|| {
        members.stop_all();
        nix::unistd::sync();
        let further = members.guest.further.iter().map(|(name, _)| format!("/further/{name}"));
        for path in further.chain(["/volume".to_owned()]) {
            // What a process still holds was synced above.
            let _held = umount2(path.as_str(), MntFlags::empty());
        }
    });
}

/// Does what is left to do, and switches off.
pub fn off_with(before: impl FnOnce()) {
    before();
    nix::unistd::sync();
    crate::say("down");
    // It comes back only where the kernel refuses.
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    crate::say(&format!("the machine does not switch off: {error}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_press_is_told_from_a_release() {
        let mut event = [0; 24];
        event[16..18].copy_from_slice(&KEY.to_ne_bytes());
        event[18..20].copy_from_slice(&POWER.to_ne_bytes());
        assert!(!is_press(&event));
        event[20..24].copy_from_slice(&1_i32.to_ne_bytes());
        assert!(is_press(&event));
        event[18..20].copy_from_slice(&30_u16.to_ne_bytes());
        assert!(!is_press(&event));
    }
}
