//! The user's terminal while a stream has it: raw, its size told, and as it was before in the end, however that comes.
//! Owns the keys that end a stream from here.

use crate::failure::Failure;
use amphi_api::streams::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{IsTerminal, stdin, stdout};

/// Ctrl-].
const LEAVE: u8 = 0x1d;

/// A terminal that is raw for as long as this lives.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// None where standard input is no terminal.
    pub fn enter() -> Result<Option<Self>, Failure> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let failed = |error: rustix::io::Errno| Failure::new(1, format!("the terminal: {error}"));
        let before = tcgetattr(stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

/// Of the terminal that output goes to; none: it goes elsewhere.
pub fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
}

/// What keys end the stream from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// None: what is typed is no person's.
    Never,
    /// Ctrl-] at once.
    Key,
    /// `~.` at the begin of a line, as ssh has it; `~~` is one `~`. Every key else is the program's.
    Tilde,
}

/// Looks at what is typed for the keys that end the stream.
#[derive(Debug)]
pub struct Typed {
    escape: Escape,
    /// Nothing was typed on this line yet.
    fresh: bool,
    /// A `~` is held back.
    held: bool,
}

impl Typed {
    pub fn new(escape: Escape) -> Self {
        Self { escape, fresh: true, held: false }
    }

    /// What goes on, and whether that is all.
    pub fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut on = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            match self.escape {
                Escape::Never => {}
                Escape::Key => {
                    if byte == LEAVE {
                        return (on, true);
                    }
                }
                Escape::Tilde => {
                    if std::mem::take(&mut self.held) {
                        match byte {
                            b'.' => return (on, true),
                            b'~' => {}
                            _ => on.push(b'~'),
                        }
                    } else if self.fresh && byte == b'~' {
                        self.held = true;
                        continue;
                    }
                    self.fresh = matches!(byte, b'\r' | b'\n');
                }
            }
            on.push(byte);
        }
        (on, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_end_a_stream() {
        for (escape, typed, on, end) in [
            (Escape::Never, "~.\x1d", "~.\x1d", false),
            (Escape::Key, "ab\x1dcd", "ab", true),
            (Escape::Key, "~.", "~.", false),
            (Escape::Tilde, "~.", "", true),
            (Escape::Tilde, "ls\r~.", "ls\r", true),
            (Escape::Tilde, "a~.", "a~.", false),
            (Escape::Tilde, "~~.\r", "~.\r", false),
            (Escape::Tilde, "~x~.", "~x~.", false),
            (Escape::Tilde, "\x1d", "\x1d", false),
        ] {
            assert_eq!(Typed::new(escape).take(typed.as_bytes()), (on.as_bytes().to_vec(), end), "{typed:?}");
            // The same in pieces of one byte.
            let (mut one, mut all, mut ended) = (Typed::new(escape), Vec::new(), false);
            for byte in typed.bytes() {
                if !ended {
                    let (bytes, last) = one.take(&[byte]);
                    all.extend(bytes);
                    ended = last;
                }
            }
            assert_eq!((all, ended), (on.as_bytes().to_vec(), end), "{typed:?} by bytes");
        }
    }
}
