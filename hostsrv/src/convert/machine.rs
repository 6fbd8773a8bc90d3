//! Runs the machine that reads what nobody trusts: QEMU with the guest kit, as a user who may do nothing, its files given to
//! it open. Owns its arguments, its lines and its end: it ends with whoever waits for it, and with the agent. Refuses to
//! believe it: lines are bounded, and it is ended when it stands still.

use super::{ConvertError, Guest};
use amphi_api::host::Acceleration;
use amphi_guest::conversion::{LINE_MAX, RESULT_SERIAL, SOURCE_SERIAL, Told, WORD};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{User, dup2_raw};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, RawFd};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::Command;

const QEMU: &str = "qemu-system-x86_64";
/// Without a line for so long it is taken for stuck; it tells every second while it reads.
const STALL: Duration = Duration::from_secs(600);
/// For all of it.
pub const LIMIT: Duration = Duration::from_secs(4 * 3600);
/// Users that QEMU may run as, the first one there is; else nobody's number.
const USERS: [&str; 3] = ["libvirt-qemu", "qemu", "nobody"];
const NOBODY: u32 = 65_534;
/// Its standard output and its standard error, under other numbers: above all that the agent has open.
const LINE: RawFd = 1000;
const CONSOLE: RawFd = 1001;
const MEMORY_MIB: u32 = 512;
/// Of the console, for whoever looks for the reason.
const SAID: usize = 2000;

/// What it works on, opened for it.
pub struct Disks {
    /// Read only.
    pub source: File,
    pub source_format: &'static str,
    /// qcow2, of the source's size: what journals write goes there, and nowhere else. None: nothing writes.
    pub layer: Option<File>,
    pub result: File,
}

fn arguments(guest: &Guest, disks: &Disks, to: &str, source_fds: &[i32]) -> Vec<String> {
    let acceleration = match guest.acceleration {
        Acceleration::Kvm => "kvm",
        Acceleration::Tcg => "tcg",
    };
    let mut all: Vec<String> = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-cpu",
        "max",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]
    .map(str::to_owned)
    .into();
    let mut put = |words: [String; 2]| all.extend(words);
    let word = |text: &str| text.to_owned();
    put([word("-machine"), format!("pc,accel={acceleration}")]);
    put([word("-m"), MEMORY_MIB.to_string()]);
    put([word("-kernel"), guest.kernel.display().to_string()]);
    put([word("-initrd"), guest.initramfs.display().to_string()]);
    put([word("-append"), format!("quiet panic=-1 console=ttyS0 {WORD}={to}")]);
    for (set, fd) in source_fds.iter().enumerate() {
        put([word("-add-fd"), format!("fd={fd},set={}", set + 1)]);
    }
    // No name in a disk's header is followed: its backing file is said, and said to be none. A source of another program's
    // making is opened by its format alone.
    let source = format!(
        r#"{{"driver":"{}","read-only":true{},"file":{{"driver":"file","filename":"/dev/fdset/1","read-only":true,"locking":"off"}}"#,
        disks.source_format,
        if disks.source_format == "qcow2" { r#","backing":null"# } else { "" },
    );
    let node = match disks.layer {
        Some(_) => format!(
            r#"{{"driver":"qcow2","node-name":"source","file":{{"driver":"file","filename":"/dev/fdset/3","locking":"off"}},"backing":{source}}}}}"#
        ),
        None => format!(r#"{source},"node-name":"source"}}"#),
    };
    put([word("-blockdev"), node]);
    put([
        word("-blockdev"),
        r#"{"driver":"raw","node-name":"result","discard":"unmap","file":{"driver":"file","filename":"/dev/fdset/2","locking":"off"}}"#.to_owned(),
    ]);
    // What goes wrong is told to the guest; a full disk would hold it still for ever.
    put([
        word("-device"),
        format!("virtio-blk-pci,drive=source,serial={SOURCE_SERIAL},werror=report,rerror=report"),
    ]);
    put([
        word("-device"),
        format!("virtio-blk-pci,drive=result,serial={RESULT_SERIAL},werror=report,rerror=report"),
    ]);
    put([word("-device"), word("virtio-serial-pci")]);
    // Files, not `stdio`: that takes the end of its input for the end of the line, and the guest would wait for ever.
    for (name, fd) in [("line", LINE), ("console", CONSOLE)] {
        put([word("-add-fd"), format!("fd={fd},set={fd}")]);
        put([word("-chardev"), format!("file,id={name},path=/dev/fdset/{fd},append=on")]);
    }
    put([word("-device"), format!("virtserialport,chardev=line,name={}", amphi_guest::PORT)]);
    put([word("-serial"), word("chardev:console")]);
    all
}

/// Runs it to its end. `told` hears its progress; its last word is the answer.
#[allow(unsafe_code)]
pub async fn run(
    guest: &Guest,
    disks: &Disks,
    to: &str,
    told: impl Fn(u64, u64) + Send,
) -> Result<Told, ConvertError> {
    let files = [Some(&disks.source), Some(&disks.result), disks.layer.as_ref()];
    let fds: Vec<i32> = files.iter().flatten().map(|file| file.as_fd().as_raw_fd()).collect();
    let user = USERS.iter().find_map(|name| User::from_name(name).ok().flatten());
    let (uid, gid) = user.map_or((NOBODY, NOBODY), |user| (user.uid.as_raw(), user.gid.as_raw()));
    let mut command = Command::new(QEMU);
    command
        .args(arguments(guest, disks, to, &fds))
        .uid(uid)
        .gid(gid)
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // SAFETY: between fork and exec only system calls are made: flags and copies of descriptors that are open until after the
    // fork, to numbers that nothing in the child relies on; and the signal that comes when the agent ends, which is set after
    // the change of user, since that would take it back.
    unsafe {
        command.pre_exec(move || {
            for fd in &fds {
                fcntl(BorrowedFd::borrow_raw(*fd), FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            // QEMU takes no standard stream by its number.
            for (from, to) in [(1, LINE), (2, CONSOLE)] {
                let _left_open = dup2_raw(BorrowedFd::borrow_raw(from), to)?.into_raw_fd();
            }
            Ok(set_pdeathsig(Signal::SIGKILL)?)
        });
    }
    let failed = |doing: &'static str| move |source| ConvertError::Io { doing, source };
    let mut child = command.spawn().map_err(failed("run qemu-system-x86_64"))?;
    let (out, errors) = (child.stdout.take(), child.stderr.take());
    let (Some(out), Some(errors)) = (out, errors) else {
        return Err(ConvertError::Machine("it has no pipes".into()));
    };
    let read = async {
        let lines = async {
            let last = listen(BufReader::new(out), told).await;
            if last.is_err() {
                // One that has ended already is as good.
                let _ended = child.start_kill();
            }
            last
        };
        let (last, said) = tokio::join!(lines, tail(errors));
        let status = child.wait().await.map_err(failed("wait for qemu-system-x86_64"))?;
        verdict(last, status, &said)
    };
    match tokio::time::timeout(LIMIT, read).await {
        Ok(last) => last,
        Err(_) => Err(ConvertError::Machine(format!("it took longer than {} s", LIMIT.as_secs()))),
    }
}

fn verdict(last: Result<Option<Told>, String>, status: ExitStatus, said: &str) -> Result<Told, ConvertError> {
    match last {
        Ok(Some(last)) => Ok(last),
        Ok(None) => Err(ConvertError::Machine(format!("it ended ({status}) without its last word: {said}"))),
        Err(why) => Err(ConvertError::Machine(format!("{why}: {said}"))),
    }
}

/// Its lines, until it closes them; answers the last one that is no progress. What it says wrongly ends it: nobody reads on.
async fn listen(
    mut lines: impl AsyncBufReadExt + Unpin,
    told: impl Fn(u64, u64),
) -> Result<Option<Told>, String> {
    let mut last = None;
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut lines).take(LINE_MAX as u64 + 1);
        match tokio::time::timeout(STALL, bounded.read_until(b'\n', &mut line)).await {
            Err(_) => return Err(format!("it told nothing for {} s", STALL.as_secs())),
            Ok(Err(error)) => return Err(error.to_string()),
            Ok(Ok(0)) => return Ok(last),
            Ok(Ok(_)) if line.len() > LINE_MAX => return Err("it told a line without end".into()),
            Ok(Ok(_)) => match serde_json::from_slice(&line) {
                Ok(Told::Progress { entries, bytes }) => told(entries, bytes),
                Ok(other) => last = last.or(Some(other)),
                Err(error) => return Err(format!("it told what is no line of ours: {error}")),
            },
        }
    }
}

/// The end of what comes, in words. Reads on whatever comes.
async fn tail(mut from: impl AsyncRead + Unpin) -> String {
    let (mut kept, mut piece) = (Vec::new(), vec![0; 4096]);
    while let Ok(got @ 1..) = from.read(&mut piece).await {
        kept.extend_from_slice(&piece[..got]);
        if kept.len() > SAID {
            kept.drain(..kept.len() - SAID);
        }
    }
    String::from_utf8_lossy(&kept)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn lines_are_bounded_and_the_first_last_word_counts() {
        let heard = Mutex::new(Vec::new());
        let text = concat!(
            r#"{"say":"progress","entries":1,"bytes":2}"#,
            "\n",
            r#"{"say":"refused","message":"no"}"#,
            "\n",
            r#"{"say":"filled","entries":1,"bytes":2}"#,
            "\n",
        );
        let last =
            listen(text.as_bytes(), |entries, bytes| heard.lock().unwrap().push((entries, bytes))).await;
        assert_eq!(last, Ok(Some(Told::Refused { message: "no".into() })));
        assert_eq!(*heard.lock().unwrap(), [(1, 2)]);
        assert_eq!(listen(&b""[..], |_, _| {}).await, Ok(None));
        assert!(listen(&b"hello\n"[..], |_, _| {}).await.unwrap_err().contains("no line"));
        let endless = vec![b' '; LINE_MAX + 10];
        assert!(listen(endless.as_slice(), |_, _| {}).await.unwrap_err().contains("without end"));
    }

    #[test]
    fn no_name_in_a_disk_is_followed() {
        let file = || File::open("/dev/null").unwrap();
        let guest = Guest {
            kernel: "/kit/kernel".into(),
            initramfs: "/kit/convert-initramfs".into(),
            boot: "/kit/boot.img".into(),
            mbr: "/kit/mbr.bin".into(),
            acceleration: Acceleration::Tcg,
        };
        let disks = Disks { source: file(), source_format: "qcow2", layer: Some(file()), result: file() };
        let text = arguments(&guest, &disks, "container", &[5, 6, 7]).join(" ");
        assert!(
            text.contains(r#""backing":null,"file":{"driver":"file","filename":"/dev/fdset/1""#),
            "{text}"
        );
        assert!(text.contains("-add-fd fd=7,set=3") && text.contains("amphi.convert=container"), "{text}");
        for word in ["-netdev", "-nic", "if="] {
            assert!(!text.contains(word), "{word}");
        }
        let disks = Disks { source: file(), source_format: "raw", layer: None, result: file() };
        let text = arguments(&guest, &disks, "disk", &[5, 6]).join(" ");
        assert!(
            !text.contains("backing") && text.contains(r#""locking":"off"},"node-name":"source"}"#),
            "{text}"
        );
    }
}
