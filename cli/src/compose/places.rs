//! Volumes, configs, secrets and tmpfs of a service.

use super::text::{Tree, entries, list, str_of};
use super::words::bytes;
use super::{Around, Import};
use amphi_api::set::{ConfigFile, MemberSpec, MountSpec, TmpfsSpec};
use std::collections::BTreeMap;
use std::path::Path;

/// What the file declares for all services.
pub struct Shared<'a> {
    around: &'a Around<'a>,
    configs: BTreeMap<String, String>,
    secrets: BTreeMap<String, String>,
}

impl<'a> Shared<'a> {
    pub fn read(tree: &Tree, around: &'a Around<'a>, import: &mut Import) -> Self {
        for (name, volume) in entries(&tree["volumes"]) {
            for key in ["driver", "driver_opts", "external"] {
                if !volume[key].is_badvalue() {
                    let place = format!("volumes.{name}.{key}");
                    import.leave(place, "it becomes a directory of the set's one volume, empty at first");
                }
            }
        }
        let mut texts = |kind: &str| {
            let mut all = BTreeMap::new();
            for (name, one) in entries(&tree[kind]) {
                let text = str_of(&one["content"])
                    .or_else(|| str_of(&one["file"]).and_then(|path| (around.file)(&path)))
                    .or_else(|| str_of(&one["environment"]).and_then(|name| (around.variable)(&name)));
                match text {
                    Some(text) => drop(all.insert(name, text)),
                    None => import.leave(
                        format!("{kind}.{name}"),
                        "only text of up to 64 KiB, given or in a file beside this one, is taken in",
                    ),
                }
            }
            all
        };
        let (configs, secrets) = (texts("configs"), texts("secrets"));
        Self { around, configs, secrets }
    }
}

/// All of a service's places, into the member.
pub fn read(place: &str, service: &Tree, shared: &Shared<'_>, member: &mut MemberSpec, import: &mut Import) {
    for (at, one) in service["volumes"].as_vec().into_iter().flatten().enumerate() {
        let place = format!("{place}.volumes[{at}]");
        match Volume::read(one) {
            Some(volume) => volume.put(&place, shared, member, import),
            None => import.leave(place, "is not understood"),
        }
    }
    for (key, known, folder, mode) in
        [("configs", &shared.configs, "/", "0444"), ("secrets", &shared.secrets, "/run/secrets/", "0400")]
    {
        for (at, one) in service[key].as_vec().into_iter().flatten().enumerate() {
            let place = format!("{place}.{key}[{at}]");
            let source = str_of(one).or_else(|| str_of(&one["source"])).unwrap_or_default();
            let Some(content) = known.get(&source) else {
                import.leave(place, format!("'{source}' was not taken in"));
                continue;
            };
            let target = str_of(&one["target"]).unwrap_or_else(|| source.clone());
            let path = if target.starts_with('/') { target } else { format!("{folder}{target}") };
            let id = |key: &str| str_of(&one[key]).and_then(|id| id.parse().ok()).unwrap_or(0);
            let mode = str_of(&one["mode"]).map_or(mode.to_owned(), |mode| octal(&mode));
            let file = ConfigFile { path, content: content.clone(), mode, uid: id("uid"), gid: id("gid") };
            member.files.push(file);
        }
    }
    for one in list(&service["tmpfs"]) {
        let (path, options) = one.split_once(':').unwrap_or((&one, ""));
        let option = |name: &str| {
            options
                .split(',')
                .find_map(|option| option.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
        };
        let size = option("size").and_then(|size| bytes(&size)).map(|bytes| bytes.div_ceil(1 << 20).max(1));
        member.tmpfs.push(TmpfsSpec {
            path: path.to_owned(),
            size_mib: size.unwrap_or(64),
            mode: option("mode").map_or_else(|| "1777".to_owned(), |mode| octal(&mode)),
            exec: options.split(',').any(|option| option == "exec"),
        });
    }
}

/// Digits count as octal, with or without a zero before them; what cannot be is a number that YAML made of `0o440`.
fn octal(mode: &str) -> String {
    let digits = mode.strip_prefix("0o").unwrap_or(mode);
    match (digits.chars().all(|c| c.is_digit(8)), digits.parse::<u32>()) {
        (false, Ok(number)) => format!("{number:04o}"),
        _ => digits.to_owned(),
    }
}

struct Volume {
    kind: String,
    source: String,
    target: String,
    read_only: bool,
    sub_path: String,
}

impl Volume {
    fn read(tree: &Tree) -> Option<Volume> {
        if let Some(short) = str_of(tree) {
            let mut parts = short.split(':');
            let (first, second) = (parts.next()?.to_owned(), parts.next().map(str::to_owned));
            let options = parts.next().unwrap_or_default();
            let (source, target) = match second {
                Some(target) => (first, target),
                None => (String::new(), first),
            };
            let host = source.starts_with(['.', '/', '~']);
            let kind = if host { "bind" } else { "volume" };
            let read_only = options.split(',').any(|option| option == "ro");
            return Some(Volume {
                kind: kind.to_owned(),
                source,
                target,
                read_only,
                sub_path: String::new(),
            });
        }
        Some(Volume {
            kind: str_of(&tree["type"])?,
            source: str_of(&tree["source"]).unwrap_or_default(),
            target: str_of(&tree["target"])?,
            read_only: tree["read_only"].as_bool().unwrap_or(false),
            sub_path: str_of(&tree["volume"]["subpath"]).unwrap_or_default(),
        })
    }

    fn put(self, place: &str, shared: &Shared<'_>, member: &mut MemberSpec, import: &mut Import) {
        match self.kind.as_str() {
            "volume" => {
                let mut sub_path = match self.source.as_str() {
                    // One of its own that nobody named.
                    "" => format!("{}{}", member.name, self.target.trim_end_matches('/')),
                    name => name.to_owned(),
                };
                if !self.sub_path.is_empty() {
                    sub_path = format!("{sub_path}/{}", self.sub_path);
                }
                member.mounts.push(MountSpec { path: self.target, sub_path, read_only: self.read_only });
            }
            "tmpfs" => member.tmpfs.push(TmpfsSpec {
                path: self.target,
                size_mib: 64,
                mode: "1777".to_owned(),
                exec: false,
            }),
            "bind" if Path::new(&self.source).is_absolute() => import.leave(
                place,
                format!("{} is a path of the machine, and a set may run on any host", self.source),
            ),
            "bind" => match (shared.around.file)(&self.source) {
                Some(content) => {
                    member.files.push(ConfigFile {
                        path: self.target,
                        content,
                        mode: "0644".to_owned(),
                        uid: 0,
                        gid: 0,
                    });
                    if !self.read_only {
                        import.leave(place, "taken in as a file, which the member cannot write");
                    }
                }
                None => import.leave(
                    place,
                    format!(
                        "{} is no text file of up to 64 KiB: put it into the image or onto the volume",
                        self.source
                    ),
                ),
            },
            kind => import.leave(place, format!("a mount of type '{kind}' has no word in a set")),
        }
    }
}
