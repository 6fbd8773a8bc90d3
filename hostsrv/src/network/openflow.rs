//! The few words of OpenFlow 1.3 that it takes to let a port's frames through for so many seconds, and to hand frames in as if
//! they came by a port (the Open Networking Foundation's switch specification 1.3.5; Nicira's extensions from nicira-ext.h of
//! Open vSwitch). Owns its flows, which it knows by their cookie. Refuses to know any other, and to say what the frames are
//! then to do: they go on through the bridge's own flows.

use std::io;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const VERSION: u8 = 4;
const HELLO: u8 = 0;
const ERROR: u8 = 1;
const ECHO_REQUEST: u8 = 2;
const ECHO_REPLY: u8 = 3;
const PACKET_OUT: u8 = 13;
const FLOW_MOD: u8 = 14;
const BARRIER_REQUEST: u8 = 20;
const BARRIER_REPLY: u8 = 21;
/// `OFPFC_ADD` and `OFPFC_DELETE`.
const ADD: u8 = 0;
const DELETE: u8 = 3;
/// `OFPP_ANY`, `OFPG_ANY`, `OFP_NO_BUFFER`.
const ANY: u32 = u32::MAX;
/// `OFPP_TABLE`: through the flow tables, from the first on.
const TABLE: u32 = 0xffff_fff9;
/// Longest message that is taken from the switch, in bytes.
const MESSAGE_MAX: usize = 1 << 12;
/// OXM header of `in_port`, and NXM header of register 15: class, field, length.
const IN_PORT: u32 = 0x8000_0004;
const REGISTER: u32 = 0x0001_0000 | 15 << 9 | 4;
/// Nicira's vendor id; its actions "load a field" and "look the frame up again".
const NICIRA: u32 = 0x2320;
const REG_LOAD: u16 = 7;
const RESUBMIT_TABLE: u16 = 14;
/// `OFPP_IN_PORT` of OpenFlow 1.0, which Nicira's actions use: the port it came in by.
const SAME_PORT: u16 = 0xfff8;

/// "amphi", and which of the two: the flow that lets through, and the one beneath it that drops.
const COOKIE: u64 = 0x61_6d70_6869 << 8;
const PASS: u64 = COOKIE | 1;
const STOP: u64 = COOKIE | 2;
/// Above whatever else a bridge to a physical network may have.
const PRIORITY: u16 = 0xfff0;

/// A change of the flows of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// What comes from this port goes on through the bridge's own flows, for so many seconds from now; then the switch
    /// forgets it, up to a second late (ofproto-dpif expires flows once a second).
    Pass { port: u32, seconds: u16 },
    /// What comes from this port and is not let through is dropped.
    Stop { port: u32 },
    /// Nothing more is let through.
    Close,
    /// None of these flows is left.
    Clear,
}

/// A connection to a bridge's management socket.
pub struct Session {
    stream: UnixStream,
    last: u32,
}

impl Session {
    /// `socket`: the bridge's, `NAME.mgmt` in ovs-vswitchd's run directory.
    pub async fn open(socket: &Path) -> io::Result<Session> {
        let mut session = Session { stream: UnixStream::connect(socket).await?, last: 0 };
        session.send(HELLO, &[]).await?;
        Ok(session)
    }

    /// Returns when all of the changes are in force; what the switch refuses is an error. A caller that gives up in the
    /// middle has to open another session.
    pub async fn carry_out(&mut self, changes: &[Change]) -> io::Result<()> {
        self.all(FLOW_MOD, changes.iter().map(|change| flow_mod(*change))).await
    }

    /// Sends frames through the switch's tables as if they came in by this port of it. The caller bounds the time.
    pub async fn hand_in(&mut self, port: u32, frames: &[Vec<u8>]) -> io::Result<()> {
        self.all(PACKET_OUT, frames.iter().map(|frame| packet_out(port, frame))).await
    }

    /// Messages of one kind. Answered when all of them are done, after any complaint.
    async fn all(&mut self, kind: u8, bodies: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
        for body in bodies {
            self.send(kind, &body).await?;
        }
        let barrier = self.send(BARRIER_REQUEST, &[]).await?;
        loop {
            let mut head = [0; 8];
            self.stream.read_exact(&mut head).await?;
            let [_, kind, a, b, x @ ..] = head;
            let length = usize::from(u16::from_be_bytes([a, b]));
            if !(head.len()..=MESSAGE_MAX).contains(&length) {
                return Err(io::Error::other(format!("the switch sent a message of {length} bytes")));
            }
            let mut body = vec![0; length - head.len()];
            self.stream.read_exact(&mut body).await?;
            match kind {
                ECHO_REQUEST => self.write(ECHO_REPLY, u32::from_be_bytes(x), &body).await?,
                BARRIER_REPLY if u32::from_be_bytes(x) == barrier => return Ok(()),
                ERROR => {
                    let number =
                        |at: usize| body.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
                    return Err(io::Error::other(format!(
                        "OpenFlow error {}, code {}",
                        number(0),
                        number(2)
                    )));
                }
                _ => {}
            }
        }
    }

    async fn send(&mut self, kind: u8, body: &[u8]) -> io::Result<u32> {
        self.last = self.last.wrapping_add(1);
        self.write(kind, self.last, body).await?;
        Ok(self.last)
    }

    async fn write(&mut self, kind: u8, xid: u32, body: &[u8]) -> io::Result<()> {
        let length = u16::try_from(8 + body.len()).map_err(io::Error::other)?;
        let mut message = vec![VERSION, kind];
        message.extend(length.to_be_bytes());
        message.extend(xid.to_be_bytes());
        message.extend(body);
        self.stream.write_all(&message).await
    }
}

fn packet_out(port: u32, frame: &[u8]) -> Vec<u8> {
    // One action: output (type 0, 16 bytes) to the tables.
    let mut action = [0_u8; 16];
    action[2..4].copy_from_slice(&16_u16.to_be_bytes());
    action[4..8].copy_from_slice(&TABLE.to_be_bytes());
    let mut body = [ANY.to_be_bytes(), port.to_be_bytes()].concat();
    body.extend(16_u16.to_be_bytes());
    body.extend([0; 6]);
    body.extend(action);
    body.extend(frame);
    body
}

/// The message's body.
fn flow_mod(change: Change) -> Vec<u8> {
    let (cookie, mask, command, seconds, priority) = match change {
        Change::Pass { seconds, .. } => (PASS, 0, ADD, seconds, PRIORITY + 1),
        Change::Stop { .. } => (STOP, 0, ADD, 0, PRIORITY),
        Change::Close => (PASS, u64::MAX, DELETE, 0, 0),
        Change::Clear => (COOKIE, !0xff, DELETE, 0, 0),
    };
    let mut out = Vec::with_capacity(128);
    out.extend(cookie.to_be_bytes());
    out.extend(mask.to_be_bytes());
    out.extend([0, command]);
    out.extend([0, 0]);
    out.extend(seconds.to_be_bytes());
    out.extend(priority.to_be_bytes());
    for any in [ANY, ANY, ANY] {
        out.extend(any.to_be_bytes());
    }
    out.extend([0; 4]);
    // A frame that was let through is looked up again with the register set, and so is not met by these flows any more.
    let fields = match change {
        Change::Pass { port, .. } | Change::Stop { port } => vec![(IN_PORT, port), (REGISTER, 0)],
        Change::Close | Change::Clear => Vec::new(),
    };
    let length = 4 + 8 * fields.len() as u16;
    out.extend(1u16.to_be_bytes());
    out.extend(length.to_be_bytes());
    for (header, value) in fields {
        out.extend(header.to_be_bytes());
        out.extend(value.to_be_bytes());
    }
    out.resize(out.len().next_multiple_of(8), 0);
    if let Change::Pass { .. } = change {
        // OFPIT_APPLY_ACTIONS, with 24 and 16 bytes of actions.
        out.extend([0, 4, 0, 48, 0, 0, 0, 0]);
        let vendor = |out: &mut Vec<u8>, length: u16, subtype: u16| {
            out.extend(0xffff_u16.to_be_bytes());
            out.extend(length.to_be_bytes());
            out.extend(NICIRA.to_be_bytes());
            out.extend(subtype.to_be_bytes());
        };
        vendor(&mut out, 24, REG_LOAD);
        // From bit 0 on, 32 bits of it (as their number less one).
        out.extend(31_u16.to_be_bytes());
        out.extend(REGISTER.to_be_bytes());
        out.extend(1_u64.to_be_bytes());
        vendor(&mut out, 16, RESUBMIT_TABLE);
        out.extend(SAME_PORT.to_be_bytes());
        out.extend([0; 4]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::announce::{self, FRAME_MIN};
    use super::*;

    /// As `ovs-ofctl ofp-print` reads them, in a test on a real switch (`hostsrv/tests/switch_wiring.rs`); here their shape.
    #[test]
    fn messages_have_the_lengths_that_they_name() {
        for (change, length) in [
            (Change::Pass { port: 7, seconds: 2 }, 40 + 24 + 48),
            (Change::Stop { port: 7 }, 40 + 24),
            (Change::Close, 40 + 8),
            (Change::Clear, 40 + 8),
        ] {
            let body = flow_mod(change);
            assert_eq!(body.len(), length, "{change:?}");
        }
        let pass = flow_mod(Change::Pass { port: 7, seconds: 2 });
        assert_eq!(pass[20..24], [0, 2, 0xff, 0xf1], "hard_timeout and priority");
        assert_eq!(pass[44..52], [0x80, 0, 0, 4, 0, 0, 0, 7]);
    }

    fn message(kind: u8, id: [u8; 4], body: &[u8]) -> Vec<u8> {
        [&[VERSION, kind][..], &(8 + body.len() as u16).to_be_bytes(), &id, body].concat()
    }

    #[tokio::test]
    async fn the_switch_gets_whole_messages_and_its_refusal_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("br-int.mgmt");
        for (answer, fine) in [(BARRIER_REPLY, true), (ERROR, false)] {
            let _ = std::fs::remove_file(&socket);
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            let switch = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(&message(HELLO, [0, 0, 0, 9], &[0, 1, 0, 8, 0, 0, 0, 0x7e])).await.unwrap();
                let (mut kinds, mut id) = (Vec::new(), [0; 4]);
                while kinds.last() != Some(&BARRIER_REQUEST) {
                    let mut head = [0; 8];
                    stream.read_exact(&mut head).await.unwrap();
                    let mut body = vec![0; usize::from(u16::from_be_bytes([head[2], head[3]])) - 8];
                    stream.read_exact(&mut body).await.unwrap();
                    kinds.push(head[1]);
                    id.copy_from_slice(&head[4..]);
                    if head[1] == PACKET_OUT {
                        let expected =
                            format!("ffffffff00000007001000000000000000000010fffffff9{}", "00".repeat(8));
                        assert_eq!(hex::encode(&body[..32]), expected);
                        assert_eq!(body.len(), 32 + FRAME_MIN);
                    }
                }
                stream.write_all(&message(answer, id, &[0, 1, 0, 2])).await.unwrap();
                kinds
            });
            let frames = announce::frames([0xfa, 0x16, 0x3e, 1, 2, 3], &["10.0.0.5".parse().unwrap()]);
            let mut session = Session::open(&socket).await.unwrap();
            let sent = session.hand_in(7, &frames).await;
            assert_eq!(sent.is_ok(), fine, "{sent:?}");
            assert_eq!(switch.await.unwrap(), [HELLO, PACKET_OUT, BARRIER_REQUEST]);
        }
    }
}
