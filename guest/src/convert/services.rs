//! The services that systemd would start, and a shell script that starts them without it: a container has no control groups
//! and mounts for systemd. Owns what of a unit is understood; what needs a machine is named and not started.

use super::within::{names, resolve, text};
use amphi_guest::conversion::{self, Service};
use std::collections::BTreeMap;
use std::path::Path;

/// Where units are, the first one counts.
const UNITS: [&str; 3] = ["etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];
/// Targets whose services a machine starts.
const TARGETS: [&str; 5] =
    ["sysinit.target", "basic.target", "multi-user.target", "graphical.target", "default.target"];
const SERVICES_MAX: usize = 200;

/// Nothing to speak of.
pub const OF_BOOT: &str = "a part of the machine's own boot";

/// Names by their beginnings, and why they are left out.
const OF_MACHINES: [(&[&str], &str); 6] = [
    (
        &[
            "systemd-",
            "getty",
            "serial-getty",
            "console-",
            "keyboard-",
            "udev",
            "kmod",
            "dbus",
            "e2scrub",
            "fstrim",
            "plymouth",
            "rc-local",
        ],
        OF_BOOT,
    ),
    (
        &[
            "networking",
            "NetworkManager",
            "network",
            "wicked",
            "dhcpcd",
            "ifup",
            "connman",
            "wpa_supplicant",
            "cloud-",
            "resolvconf",
        ],
        "sets the network up, which is there already",
    ),
    (
        &[
            "lvm",
            "dm-event",
            "mdadm",
            "mdmonitor",
            "multipath",
            "iscsi",
            "open-iscsi",
            "zfs",
            "blk-availability",
            "rpcbind",
            "nfs-",
        ],
        "serves disks, which a container has none of",
    ),
    (
        &[
            "chron",
            "ntp",
            "openntpd",
            "irqbalance",
            "smart",
            "acpi",
            "thermald",
            "tuned",
            "rngd",
            "haveged",
            "lm-sensors",
        ],
        "serves the machine's clock or hardware, which are the host's",
    ),
    (
        &[
            "apparmor",
            "auditd",
            "nftables",
            "ufw",
            "firewalld",
            "iptables",
            "netfilter",
            "fail2ban",
            "selinux",
        ],
        "changes the kernel's rules, which are the host's",
    ),
    (
        &[
            "docker",
            "containerd",
            "libvirt",
            "qemu-guest",
            "open-vm",
            "vbox",
            "vmtoolsd",
            "snapd",
            "lxd",
            "kubelet",
            "crio",
        ],
        "runs machines or containers, or serves those that run this one",
    ),
];

/// A unit as far as it is understood.
#[derive(Debug, Default, PartialEq)]
pub struct Unit {
    pub name: String,
    /// Why it is not started.
    pub left: Option<String>,
    values: BTreeMap<String, Vec<String>>,
}

impl Unit {
    fn all(&self, key: &str) -> &[String] {
        self.values.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    fn last(&self, key: &str) -> &str {
        self.all(key).last().map(String::as_str).unwrap_or_default()
    }
}

/// The enabled services, by name.
pub fn of(root: &Path) -> Vec<Unit> {
    let mut wanted: Vec<String> = TARGETS
        .iter()
        .flat_map(|target| UNITS.iter().map(move |folder| format!("{folder}/{target}.wants")))
        .flat_map(|folder| names(root, &folder))
        .filter(|name| name.ends_with(".service"))
        .collect();
    wanted.sort();
    wanted.dedup();
    wanted.truncate(SERVICES_MAX);
    wanted.iter().map(|name| unit(root, name)).collect()
}

/// What the report says of them.
pub fn told(units: &[Unit]) -> Vec<Service> {
    let of = |unit: &Unit| Service {
        name: conversion::text(&unit.name),
        started: unit.left.is_none(),
        why: unit.left.clone().unwrap_or_default(),
    };
    units.iter().map(of).collect()
}

fn unit(root: &Path, file: &str) -> Unit {
    let name = file.trim_end_matches(".service").to_owned();
    let machines = OF_MACHINES.iter().find(|(starts, _)| starts.iter().any(|start| name.starts_with(start)));
    if let Some((_, why)) = machines {
        return Unit { name, left: Some((*why).to_owned()), ..Unit::default() };
    }
    let (template, instance) = match name.split_once('@') {
        Some((template, instance)) => (format!("{template}@.service"), instance.to_owned()),
        None => (file.to_owned(), String::new()),
    };
    let at = |name: &str| UNITS.iter().map(move |folder| format!("{folder}/{name}")).collect::<Vec<_>>();
    let places = [at(file), at(&template)].concat();
    let Some(place) = places.iter().find(|path| resolve(root, path).is_some_and(|found| found.is_file()))
    else {
        return Unit { name, left: Some("its unit is missing or masked".into()), ..Unit::default() };
    };
    let mut values = BTreeMap::new();
    parse(&text(root, place), &mut values);
    for folder in UNITS.iter().rev().map(|folder| format!("{folder}/{file}.d")) {
        for extra in names(root, &folder).iter().filter(|name| name.ends_with(".conf")) {
            parse(&text(root, &format!("{folder}/{extra}")), &mut values);
        }
    }
    for value in values.values_mut().flatten() {
        *value = specifiers(value, &name, &instance);
    }
    let mut unit = Unit { name, left: None, values };
    unit.left = unfit(&unit);
    unit
}

fn unfit(unit: &Unit) -> Option<String> {
    if unit.all("ExecStart").is_empty() {
        return Some("it starts no program".into());
    }
    if !unit.all("ConditionVirtualization").is_empty()
        && unit.last("ConditionVirtualization").contains("!container")
    {
        return Some("it says itself that it is not for containers".into());
    }
    let shell = |line: &String| words(line).is_none();
    if ["ExecStartPre", "ExecStart"].iter().any(|key| unit.all(key).iter().any(shell)) {
        return Some("its command line is not understood".into());
    }
    None
}

/// `[Service]` and `[Unit]`: keys with all their values; an empty one forgets those before.
fn parse(text: &str, values: &mut BTreeMap<String, Vec<String>>) {
    let joined = text.replace("\\\n", " ");
    for line in joined.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';', '['])) {
        let Some((key, value)) = line.split_once('=') else { continue };
        let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
        let list: &mut Vec<String> = values.entry(key).or_default();
        if value.is_empty() {
            list.clear();
        } else if list.len() < 100 {
            list.push(value);
        }
    }
}

fn specifiers(text: &str, name: &str, instance: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '%') {
            (c, false) => out.push(c),
            _ => match chars.next() {
                Some('i' | 'I') => out.push_str(instance),
                Some('n') => out.push_str(&format!("{name}.service")),
                Some('N' | 'p') => out.push_str(name.split('@').next().unwrap_or(name)),
                Some('t') => out.push_str("/run"),
                Some('S') => out.push_str("/var/lib"),
                Some('%') | None => out.push('%'),
                Some(other) => out.extend(['%', other]),
            },
        }
    }
    out
}

/// One word of a command line, as the shell is to see it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A command line of systemd's, split as it does it (systemd.service(5), "Command lines"). None: it is not understood.
fn split(line: &str) -> Option<Vec<String>> {
    let (mut words, mut chars) = (Vec::new(), line.chars().peekable());
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Some(words);
        }
        let mut word = String::new();
        let mut quote = None;
        loop {
            match (chars.next(), quote) {
                (None, Some(_)) => return None,
                (None, None) => break,
                (Some(c), None) if c.is_whitespace() => break,
                (Some(c @ ('"' | '\'')), None) => quote = Some(c),
                (Some(c), Some(q)) if c == q => quote = None,
                (Some('\\'), _) => match chars.next()? {
                    'n' => word.push('\n'),
                    't' => word.push('\t'),
                    's' => word.push(' '),
                    c => word.push(c),
                },
                (Some(c), _) => word.push(c),
            }
        }
        if word.contains('\0') {
            return None;
        }
        words.push(word);
    }
}

/// The same, each word quoted for the shell. A line of several commands is not understood, nor one whose program has no path.
pub fn words(line: &str) -> Option<Vec<String>> {
    let words = split(line.trim_start_matches(['-', '@', ':', '+', '!', '|']))?;
    let fits = words.first().is_some_and(|program| program.starts_with('/'))
        && !words.iter().any(|word| word == ";");
    fits.then(|| words.iter().map(|word| expanded(word)).collect())
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `$NAME` alone becomes words, `${NAME}` stays within one; all else is quoted.
fn expanded(word: &str) -> String {
    if let Some(name) = word.strip_prefix('$').filter(|name| is_name(name)) {
        return format!("${name}");
    }
    let mut out = String::new();
    let mut rest = word;
    while let Some(at) = rest.find("${") {
        let Some((name, after)) = rest[at + 2..].split_once('}').filter(|(name, _)| is_name(name)) else {
            break;
        };
        if at > 0 {
            out.push_str(&quoted(&rest[..at]));
        }
        out.push_str(&format!("\"${{{name}}}\""));
        rest = after;
    }
    if !rest.is_empty() || out.is_empty() {
        out.push_str(&quoted(rest));
    }
    out
}

/// The init of the image.
pub fn script(units: &[Unit]) -> String {
    let mut out = String::from(
        "#!/bin/sh\n\
         # Starts the services that this machine's systemd started, as the first process of a container; written when its disk\n\
         # became an image. Yours to change. SIGPWR ends it in order.\n\
         export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=docker\n\
         mkdir -p /run/lock /tmp\n\
         chmod 1777 /tmp /run/lock\n\
         command -v systemd-tmpfiles >/dev/null && systemd-tmpfiles --create --remove --exclude-prefix=/dev 2>/dev/null\n\
         say() { echo \"amphi-init: $*\" >&2; }\n\
         as() {\n  \
           user=$1 group=$2\n  \
           shift 2\n  \
           if command -v setpriv >/dev/null; then exec setpriv --reuid=\"$user\" --regid=\"$group\" --init-groups -- \"$@\"; fi\n  \
           exec su -s /bin/sh \"$user\" -c 'exec \"$@\"' -- sh \"$@\"\n\
         }\n\
         keep() {\n  \
           # A service that ends is started again, as long as nobody ends all.\n  \
           while :; do\n    \
             \"$@\"\n    \
             say \"$2 ended with $?\"\n    \
             sleep 2\n  \
           done\n\
         }\n\
         down() {\n  \
           trap '' PWR TERM INT\n  \
           say down\n  \
           kill -TERM -1\n  \
           # All but this process, and the kernel's view of it in /proc.\n  \
           for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do\n    \
             others=0\n    \
             for p in /proc/[0-9]*; do\n      \
               case ${p#/proc/} in 1 | $$) ;; *) [ -n \"$(cat \"$p/cmdline\" 2>/dev/null | tr -d '\\000')\" ] && others=1 ;; esac\n    \
             done\n    \
             [ $others = 1 ] || break\n    \
             sleep 0.5\n  \
           done\n  \
           exit 0\n\
         }\n\
         trap down PWR TERM INT\n",
    );
    for (number, unit) in units.iter().enumerate().filter(|(_, unit)| unit.left.is_none()) {
        service(&mut out, number, unit);
    }
    // A shell that waits for nobody would spin.
    out.push_str("say ready\nwhile :; do sleep 1000000 & wait $!; done\n");
    out
}

fn service(out: &mut String, number: usize, unit: &Unit) {
    let name = quoted(&unit.name);
    // Names are quoted, and a line's end in one would end the comment.
    out.push_str(&format!("\n# {}\n", conversion::text(&unit.name)));
    let user = unit.last("User");
    let group = Some(unit.last("Group")).filter(|g| !g.is_empty()).unwrap_or(user);
    let owner = if user.is_empty() { "root" } else { user };
    out.push_str(&format!("prepare{number}() {{\n  :\n"));
    for (key, base) in [
        ("RuntimeDirectory", "/run"),
        ("StateDirectory", "/var/lib"),
        ("CacheDirectory", "/var/cache"),
        ("LogsDirectory", "/var/log"),
    ] {
        for folder in unit.all(key).iter().flat_map(|line| line.split_whitespace()) {
            let folder = quoted(&format!("{base}/{folder}"));
            let owners = quoted(&format!("{owner}:{}", if group.is_empty() { "root" } else { group }));
            out.push_str(&format!("  mkdir -p {folder} && chown {owners} {folder}\n"));
        }
    }
    out.push_str("}\n");
    let mut environment = String::new();
    for line in unit.all("Environment") {
        for word in assignments(line) {
            environment.push_str(&format!("  export {word}\n"));
        }
    }
    for file in unit.all("EnvironmentFile") {
        let file = quoted(file.trim_start_matches('-'));
        environment.push_str(&format!("  if [ -r {file} ]; then set -a; . {file}; set +a; fi\n"));
    }
    let folder = unit.last("WorkingDirectory").trim_start_matches('-');
    if folder.starts_with('/') {
        environment.push_str(&format!("  cd {} || exit 1\n", quoted(folder)));
    }
    let run = |line: &String, last: bool| {
        let words = words(line).unwrap_or_default().join(" ");
        let privileged = line.trim_start_matches(['-', '@', ':']).starts_with(['+', '!']);
        match (user.is_empty() || privileged, last) {
            (true, true) => format!("  exec {words}\n"),
            (true, false) => format!("  {words}\n"),
            (false, true) => format!("  as {} {} {words}\n", quoted(user), quoted(group)),
            (false, false) => format!("  (as {} {} {words})\n", quoted(user), quoted(group)),
        }
    };
    out.push_str(&format!("run{number}() (\n{environment}"));
    for line in unit.all("ExecStartPre") {
        let optional = line.starts_with('-');
        out.push_str(run(line, false).trim_end());
        out.push_str(if optional { " || :\n" } else { " || exit 1\n" });
    }
    let starts = unit.all("ExecStart");
    for (at, line) in starts.iter().enumerate() {
        out.push_str(&run(line, at + 1 == starts.len()));
    }
    out.push_str(")\n");
    out.push_str(&format!("prepare{number}\n"));
    let waits = matches!(unit.last("Type"), "forking" | "oneshot");
    let again = matches!(unit.last("Restart"), "always" | "on-failure" | "on-abnormal" | "on-abort");
    out.push_str(&match (waits, again) {
        (true, _) => format!("run{number} </dev/null || say {name} failed with $?\n"),
        (false, true) => format!("keep run{number} {name} </dev/null &\n"),
        (false, false) => format!("run{number} </dev/null &\n"),
    });
}

/// `A=b "C=d e"`, for the shell.
fn assignments(line: &str) -> Vec<String> {
    let words = split(line).unwrap_or_default();
    let pairs = words.iter().filter_map(|word| word.split_once('=').filter(|(name, _)| is_name(name)));
    pairs.map(|(name, value)| format!("{name}={}", quoted(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    #[test]
    fn command_lines() {
        let shell = |line: &str| words(line).map(|words| words.join(" "));
        for (line, want) in [
            (
                "/usr/sbin/nginx -g 'daemon on; master_process on;'",
                Some("'/usr/sbin/nginx' '-g' 'daemon on; master_process on;'"),
            ),
            ("-/usr/sbin/sshd -D $SSHD_OPTS", Some("'/usr/sbin/sshd' '-D' $SSHD_OPTS")),
            ("/bin/x --a=${ONE}b \"it's\"", Some(r#"'/bin/x' '--a='"${ONE}"'b' 'it'\''s'"#)),
            ("@!/bin/x", Some("'/bin/x'")),
            ("/bin/x `reboot` $(reboot) ${no such}", Some("'/bin/x' '`reboot`' '$(reboot)' '${no' 'such}'")),
            ("x y", None),
            ("/bin/x 'y", None),
            ("/bin/a ; /bin/b", None),
            ("", None),
        ] {
            assert_eq!(shell(line).as_deref(), want, "{line}");
        }
        assert_eq!(assignments("A=b \"C=d e\" 9=x"), ["A='b'", "C='d e'"]);
        assert_eq!(assignments(r"A=x\'"), [r"A='x'\'''"]);
    }

    #[test]
    fn a_machine_of_systemds() {
        let root = std::env::temp_dir().join(format!("amphi-services-{}", std::process::id()));
        let _old = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("etc/systemd/system/multi-user.target.wants")).unwrap();
        fs::create_dir_all(root.join("etc/systemd/system/web.service.d")).unwrap();
        fs::create_dir_all(root.join("lib/systemd/system")).unwrap();
        let enable = |name: &str, unit: &str| {
            if !unit.is_empty() {
                fs::write(root.join("lib/systemd/system").join(name), unit).unwrap();
            }
            let to = format!("/lib/systemd/system/{name}");
            symlink(to, root.join("etc/systemd/system/multi-user.target.wants").join(name)).unwrap();
        };
        enable("web.service", "[Service]\nType=forking\nEnvironment=\"WHO=it's me\"\nExecStart=/bin/false\n");
        fs::write(
            root.join("etc/systemd/system/web.service.d/own.conf"),
            "[Service]\nExecStart=\nExecStart=/bin/sh -c 'echo \"${WHO}\"; true' \\\n  %n\n",
        )
        .unwrap();
        enable("lvm2-monitor.service", "");
        enable("gone.service", "");
        enable("odd.service", "[Service]\nExecStart=odd\n");
        let units = of(&root);
        let left: Vec<_> = units.iter().map(|unit| (unit.name.as_str(), unit.left.is_none())).collect();
        assert_eq!(left, [("gone", false), ("lvm2-monitor", false), ("odd", false), ("web", true)]);
        let text = script(&units);
        let checked = Command::new("sh").args(["-n", "-c", &text]).status().unwrap();
        assert!(checked.success(), "{text}");
        assert!(text.contains("export WHO='it'\\''s me'"), "{text}");
        assert!(text.contains("'web.service'"), "{text}");
        fs::remove_dir_all(&root).unwrap();
    }

    /// Whatever a unit says, its words stay words.
    #[test]
    fn nothing_gets_out_of_its_quotes() {
        for evil in [
            "'; touch /tmp/amphi-evil; '",
            "$(touch /tmp/amphi-evil)",
            "`touch /tmp/amphi-evil`",
            "a\nb",
            "${x:-$(id)}",
        ] {
            let line = format!("/bin/echo \"{}\"", evil.replace('\\', "\\\\"));
            let Some(words) = words(&line) else { continue };
            let said = Command::new("sh").args(["-c", &words.join(" ")]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&said.stdout).trim_end_matches('\n'), evil);
        }
        assert!(!std::path::Path::new("/tmp/amphi-evil").exists());
    }
}
