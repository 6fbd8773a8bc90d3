//! Owns what this program is when the first process starts it again: the one that holds a member's namespaces and waits
//! (`member`), the member itself until it becomes its program (`enter`), and the same two for a command in a member
//! (`exec`, `within`). Each is a process with one thread, which is what namespaces ask for.

use crate::boot::told;
use crate::processes::SELF;
use crate::{calls, cgroup, own_disk, rootfs, user};
use amphi_guest::config::{Guest, Member};
use amphi_guest::words::Exec;
use nix::fcntl::{AtFlags, OFlag, open, renameat};
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{Gid, Uid, setgid, setgroups, setsid, setuid};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// The description, for those that are started again.
pub const DESCRIPTION: &str = "/run/guest.json";
/// Exit codes as Docker has them: it could not be started at all; not run; not found.
const FAILED: u8 = 125;
const NOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Between two looks at whether a role has become its program, which takes milliseconds.
const LOOK: Duration = Duration::from_millis(1);

/// A command in a member.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    pub member: String,
    /// The member's first process.
    pub pid: i32,
    pub exec: Exec,
}

pub fn pid_of_member(name: &str) -> String {
    format!("/run/members/{name}.pid")
}

pub fn order_path(id: &str) -> String {
    format!("/run/execs/{id}.json")
}

pub fn pid_of_exec(id: &str) -> String {
    format!("/run/execs/{id}.pid")
}

/// Carries out what the words say; the exit code is the program's.
pub fn run(role: &str, name: &str) -> ExitCode {
    let ended = match role {
        "member" => hold(name),
        "enter" => failed(become_member(name)),
        "exec" => hold_exec(name),
        "within" => failed(become_command(name)),
        "service" => failed(own_disk::become_service().map_err(|error| (FAILED, error)).and_then(exec)),
        _ => Err(io::Error::other("no such role")),
    };
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("amphi-guest: {error}");
            ExitCode::from(FAILED)
        }
    }
}

fn failed(result: Result<Infallible, (u8, io::Error)>) -> io::Result<u8> {
    match result {
        Ok(never) => match never {},
        Err((code, error)) => {
            eprintln!("amphi-guest: {error}");
            Ok(code)
        }
    }
}

fn described(name: &str) -> io::Result<(Guest, Member)> {
    let guest: Guest = serde_json::from_slice(&fs::read(DESCRIPTION)?)?;
    let member = guest.members.iter().find(|member| member.name == name).cloned();
    member.map(|member| (guest, member)).ok_or_else(|| io::Error::other(format!("no member {name}")))
}

/// Starts the next role, writes down its process once it has become its program, and waits for its end.
fn wait_for(role: &str, name: &str, pid_file: &str) -> io::Result<u8> {
    // A member changes the root of its holder, too: what is looked at and written afterwards is held open.
    let held = |path: &str| open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let (folder, file) = pid_file.rsplit_once('/').unwrap_or((".", pid_file));
    let (processes, folder) = (held("/proc")?, held(folder)?);
    let part = format!("{file}.part");
    let mut written = fs::File::create(format!("{pid_file}.part"))?;
    let own = fs::metadata(SELF)?;
    let mut child = Command::new(SELF).args([role, name]).spawn()?;
    // Before that it is not where it will be: a command that follows it into its namespaces would find the machine's root.
    let program = format!("{}/exe", child.id());
    let is_ours = || {
        let seen = fstatat(&processes, program.as_str(), AtFlags::empty());
        seen.is_ok_and(|seen| (seen.st_dev, seen.st_ino) == (own.dev(), own.ino()))
    };
    while child.try_wait()?.is_none() && is_ours() {
        std::thread::sleep(LOOK);
    }
    write!(written, "{}", child.id())?;
    renameat(&folder, part.as_str(), &folder, file)?;
    let status = child.wait()?;
    let signal = status.signal().map_or(FAILED, |signal| 128_u8.saturating_add(signal as u8));
    Ok(status.code().map_or(signal, |code| code as u8))
}

fn hold(name: &str) -> io::Result<u8> {
    told("namespaces", unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID).map_err(io::Error::from))?;
    // What is mounted in the guest later still comes; nothing goes back.
    crate::boot::mount("", "/", "", MsFlags::MS_REC | MsFlags::MS_SLAVE, "")?;
    wait_for("enter", name, &pid_of_member(name))
}

fn become_member(name: &str) -> Result<Infallible, (u8, io::Error)> {
    let prepare = || {
        let (guest, member) = described(name)?;
        cgroup::join(name)?;
        unshare(CloneFlags::CLONE_NEWCGROUP)?;
        rootfs::enter(&guest, &member)?;
        let command = become_user(
            &member,
            &member.user,
            &member.directory,
            &member.argv,
            &member.env,
            &guest.hostname,
        )?;
        Ok(command)
    };
    exec(prepare().map_err(|error| (FAILED, error))?)
}

fn hold_exec(id: &str) -> io::Result<u8> {
    let order: Order = serde_json::from_slice(&fs::read(order_path(id))?)?;
    let namespace = told("the member does not run", fs::File::open(format!("/proc/{}/ns/pid", order.pid)))?;
    setns(namespace, CloneFlags::CLONE_NEWPID)?;
    wait_for("within", id, &pid_of_exec(id))
}

fn become_command(id: &str) -> Result<Infallible, (u8, io::Error)> {
    let prepare = || {
        let order: Order = serde_json::from_slice(&fs::read(order_path(id))?)?;
        let (guest, member) = described(&order.member)?;
        cgroup::join(&order.member)?;
        setsid()?;
        if order.exec.terminal.is_some() {
            calls::take_terminal(io::stdin())?;
        }
        for (kind, flag) in [("cgroup", CloneFlags::CLONE_NEWCGROUP), ("mnt", CloneFlags::CLONE_NEWNS)] {
            let namespace =
                told("the member does not run", fs::File::open(format!("/proc/{}/ns/{kind}", order.pid)))?;
            setns(namespace, flag)?;
        }
        let exec = &order.exec;
        let mut env = member.env.clone();
        if exec.terminal.is_some() {
            env.push("TERM=xterm".to_owned());
        }
        env.extend(exec.env.iter().cloned());
        let user = exec.user.as_deref().unwrap_or(&member.user);
        let directory = exec.directory.as_deref().unwrap_or(&member.directory);
        become_user(&member, user, directory, &exec.argv, &env, &guest.hostname)
    };
    exec(prepare().map_err(|error| (FAILED, error))?)
}

fn exec(mut command: Command) -> Result<Infallible, (u8, io::Error)> {
    let program = command.get_program().to_string_lossy().into_owned();
    let error = command.exec();
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUN };
    Err((code, io::Error::new(error.kind(), format!("{program}: {error}"))))
}

/// Limits, capabilities, user and directory, in the member's root. The command is what is left to run.
pub fn become_user(
    member: &Member,
    user: &str,
    directory: &str,
    argv: &[String],
    env: &[String],
    hostname: &str,
) -> io::Result<Command> {
    let (program, arguments) =
        argv.split_first().ok_or_else(|| io::Error::other("there is nothing to run"))?;
    for (name, (soft, hard)) in &member.ulimits {
        let limit = |value: i64| u64::try_from(value).unwrap_or(RLIM_INFINITY);
        if let Some(resource) = resource(name) {
            told(name, setrlimit(resource, limit(*soft), limit(*hard)).map_err(io::Error::from))?;
        }
    }
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let who = user::who(user, &text("/etc/passwd"), &text("/etc/group")).map_err(io::Error::other)?;
    let directory = if directory.is_empty() { "/" } else { directory };
    told(directory, fs::create_dir_all(directory))?;
    told(directory, std::env::set_current_dir(directory))?;
    for capability in 0..64 {
        if member.capabilities.contains(&capability) {
            continue;
        }
        match calls::drop_from_bounding_set(capability) {
            // This kernel knows no higher ones.
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => break,
            other => told("capabilities", other)?,
        }
    }
    let groups: Vec<Gid> = who.groups.iter().chain([&who.gid]).map(|gid| Gid::from_raw(*gid)).collect();
    told("groups", setgroups(&groups).map_err(io::Error::from))?;
    told("group", setgid(Gid::from_raw(who.gid)).map_err(io::Error::from))?;
    told("user", setuid(Uid::from_raw(who.uid)).map_err(io::Error::from))?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOSTNAME", hostname).env("HOME", &who.home);
    for pair in env {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        command.env(key, value);
    }
    Ok(command)
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "core" => Resource::RLIMIT_CORE,
        "cpu" => Resource::RLIMIT_CPU,
        "data" => Resource::RLIMIT_DATA,
        "fsize" => Resource::RLIMIT_FSIZE,
        "locks" => Resource::RLIMIT_LOCKS,
        "memlock" => Resource::RLIMIT_MEMLOCK,
        "msgqueue" => Resource::RLIMIT_MSGQUEUE,
        "nice" => Resource::RLIMIT_NICE,
        "nofile" => Resource::RLIMIT_NOFILE,
        "nproc" => Resource::RLIMIT_NPROC,
        "rss" => Resource::RLIMIT_RSS,
        "rtprio" => Resource::RLIMIT_RTPRIO,
        "rttime" => Resource::RLIMIT_RTTIME,
        "sigpending" => Resource::RLIMIT_SIGPENDING,
        "stack" => Resource::RLIMIT_STACK,
        _ => return None,
    })
}
