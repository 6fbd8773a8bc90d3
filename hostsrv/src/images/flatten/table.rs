//! Owns the table of names: what each layer changes of those below it. Links on the way to a name are followed in the table,
//! as the kernel would in the image's own root.

use super::read::Further;
use super::{Kind, Limits, Node, Place};
use std::collections::BTreeMap;
use std::io;
use tar::{EntryType, Header};

/// Links that are followed on the way to one name, as the kernel has it (MAXSYMLINKS).
const LINKS_MAX: usize = 40;
/// PATH_MAX and NAME_MAX of linux/limits.h.
const PATH_MAX: usize = 4096;
const NAME_MAX: usize = 255;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Begins names that aufs keeps for itself.
const AUFS: &[u8] = b".wh..wh.";

/// What there is, after the layers so far.
pub(super) struct Table {
    pub(super) limits: Limits,
    pub(super) names: BTreeMap<Vec<u8>, Place>,
    pub(super) nodes: Vec<Node>,
    /// Headers that were read.
    pub(super) entries: usize,
    bytes: usize,
}

/// The parts of a name without empty ones and `.`.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, String> {
    let shown = || String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
    if path.len() > PATH_MAX {
        return Err(format!("a name of {} bytes: {}…", path.len(), shown()));
    }
    if path.contains(&0) {
        return Err(format!("a name with a zero byte: {}", shown()));
    }
    let all: Vec<&[u8]> =
        path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if all.iter().any(|part| *part == b"..") {
        return Err(format!("'{}' leads out of its directory", shown()));
    }
    if all.iter().any(|part| part.len() > NAME_MAX) {
        return Err(format!("a part of '{}' is longer than {NAME_MAX} bytes", shown()));
    }
    Ok(all)
}

fn below(name: &[u8]) -> Vec<u8> {
    if name.is_empty() { Vec::new() } else { [name, b"/"].concat() }
}

impl Table {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, names: BTreeMap::new(), nodes: Vec::new(), entries: 0, bytes: 0 }
    }

    fn count(&mut self, bytes: usize) -> Result<(), String> {
        self.bytes += bytes;
        if self.bytes > self.limits.names {
            return Err(format!("names and attributes of more than {} bytes", self.limits.names));
        }
        Ok(())
    }

    pub(super) fn node(&self, name: &[u8]) -> Option<&Node> {
        self.names.get(name).map(|place| &self.nodes[place.node])
    }

    /// The name of the directory that these parts lead to, links on the way followed within the image, missing ones made:
    /// a layer need not name the directories that its files are in.
    fn directory(&mut self, layer: usize, parts: &[&[u8]]) -> Result<Vec<u8>, String> {
        let mut left: Vec<Vec<u8>> = parts.iter().rev().map(|part| part.to_vec()).collect();
        let mut here: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(part) = left.pop() {
            if part == b".." {
                // In a link's target; above the root is the root.
                here.truncate(here.iter().rposition(|b| *b == b'/').unwrap_or(0));
                continue;
            }
            let next = [below(&here), part].concat();
            if next.len() > PATH_MAX {
                return Err("a name that grows beyond all bounds over links".into());
            }
            match self.node(&next).map(|node| node.kind.clone()) {
                Some(Kind::Directory) => here = next,
                Some(Kind::Link { target }) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(format!(
                            "'{}' is behind more than {LINKS_MAX} links",
                            String::from_utf8_lossy(&next)
                        ));
                    }
                    if target.starts_with(b"/") {
                        here.clear();
                    }
                    let steps = target.split(|b| *b == b'/').filter(|step| !step.is_empty() && *step != b".");
                    left.extend(steps.rev().map(<[u8]>::to_vec));
                }
                Some(_) => {
                    return Err(format!(
                        "something stands below '{}', which is no directory",
                        String::from_utf8_lossy(&next)
                    ));
                }
                None => {
                    self.count(next.len())?;
                    let node = Node {
                        kind: Kind::Directory,
                        mode: 0o755,
                        uid: 0,
                        gid: 0,
                        mtime: 0,
                        xattrs: Vec::new(),
                    };
                    self.put(next.clone(), node, layer);
                    here = next;
                }
            }
        }
        Ok(here)
    }

    fn put(&mut self, name: Vec<u8>, node: Node, layer: usize) {
        self.nodes.push(node);
        self.names.insert(name, Place { node: self.nodes.len() - 1, layer });
    }

    /// Everything of lower layers at this name (`itself`) and below it goes.
    fn hide(&mut self, layer: usize, name: &[u8], itself: bool) {
        let begin = below(name);
        let lower: Vec<Vec<u8>> = self
            .names
            .range(begin.clone()..)
            .take_while(|(other, _)| other.starts_with(&begin))
            .filter(|(_, place)| place.layer < layer)
            .map(|(other, _)| other.clone())
            .collect();
        for other in lower {
            // A directory that this layer has put something into stays for its sake.
            let inside = below(&other);
            let needed = self
                .names
                .range(inside.clone()..)
                .take_while(|(name, _)| name.starts_with(&inside))
                .any(|(_, place)| place.layer >= layer);
            if !needed {
                self.names.remove(&other);
            }
        }
        if itself && self.names.get(name).is_some_and(|place| place.layer < layer) {
            self.names.remove(name);
        }
    }

    /// One entry of a layer. `at`: where its bytes begin.
    pub(super) fn apply(
        &mut self,
        layer: usize,
        header: &Header,
        further: Further,
        at: u64,
        size: u64,
    ) -> Result<(), String> {
        let path = further.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let shown = String::from_utf8_lossy(&path).into_owned();
        let wrong = |error: io::Error| format!("'{shown}': {error}");
        let parts = parts(&path)?;
        let kind = header.entry_type();
        let id = |told: Option<u64>, own: io::Result<u64>| -> Result<u64, String> {
            let id = told.map_or(own, Ok).map_err(wrong)?;
            if id > u64::from(u32::MAX) {
                Err(format!("'{shown}' has an owner of number {id}"))
            } else {
                Ok(id)
            }
        };
        let mut node = Node {
            kind: Kind::Directory,
            mode: header.mode().map_err(wrong)? & 0o7777,
            uid: id(further.uid, header.uid())?,
            gid: id(further.gid, header.gid())?,
            mtime: further.mtime.or_else(|| header.mtime().ok()).unwrap_or(0),
            xattrs: further.xattrs,
        };
        self.count(node.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum())?;
        let Some((last, parents)) = parts.split_last() else {
            if kind != EntryType::Directory {
                return Err(format!("'{shown}' would be the root, and is no directory"));
            }
            self.put(Vec::new(), node, layer);
            return Ok(());
        };
        let parent = self.directory(layer, parents)?;
        let name = [below(&parent), last.to_vec()].concat();
        if *last == OPAQUE {
            self.hide(layer, &parent, false);
            return Ok(());
        }
        if last.starts_with(AUFS) {
            return Ok(());
        }
        if let Some(hidden) = last.strip_prefix(WHITEOUT) {
            if hidden.is_empty() || hidden == b"." || hidden == b".." {
                return Err(format!("'{shown}' would hide what is no name"));
            }
            self.hide(layer, &[below(&parent), hidden.to_vec()].concat(), true);
            return Ok(());
        }
        self.count(name.len())?;
        let target = || {
            let target =
                further.link.clone().or_else(|| header.link_name_bytes().map(|target| target.into_owned()));
            target.filter(|target| !target.is_empty()).ok_or_else(|| format!("'{shown}' links to nothing"))
        };
        node.kind = match kind {
            EntryType::Regular | EntryType::Continuous => Kind::File { layer, at, size },
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => {
                let target = target()?;
                if target.len() > PATH_MAX || target.contains(&0) {
                    return Err(format!("'{shown}' has a target that no link can have"));
                }
                self.count(target.len())?;
                Kind::Link { target }
            }
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => {
                let number = |n: io::Result<Option<u32>>| n.map_err(wrong).map(|n| n.unwrap_or(0));
                let (major, minor) = (number(header.device_major())?, number(header.device_minor())?);
                if (major, minor) == (0, 0) {
                    return Err(format!("'{shown}' is a device that hides files, and no layer's whiteout"));
                }
                Kind::Device { kind, major, minor }
            }
            EntryType::Link => {
                let target = target()?;
                let steps = self::parts(&target)?;
                let (last, parents) =
                    steps.split_last().ok_or_else(|| format!("'{shown}' links to the root"))?;
                let folder = self.directory(layer, parents)?;
                let linked = [below(&folder), last.to_vec()].concat();
                let place = *self.names.get(&linked).ok_or_else(|| {
                    format!("'{shown}' links to '{}', which is not there", String::from_utf8_lossy(&linked))
                })?;
                if self.nodes[place.node].kind == Kind::Directory {
                    return Err(format!("'{shown}' links to a directory"));
                }
                if linked != name {
                    self.make_way(&name, false);
                    self.names.insert(name, Place { node: place.node, layer });
                }
                return Ok(());
            }
            EntryType::GNUSparse => return Err(format!("'{shown}' is a sparse file: layers have none")),
            other => return Err(format!("'{shown}' is of a type that layers do not have ({:?})", other)),
        };
        self.make_way(&name, node.kind == Kind::Directory);
        self.put(name, node, layer);
        Ok(())
    }

    /// What takes another's place removes it with all below, but for a directory over a directory.
    fn make_way(&mut self, name: &[u8], directory: bool) {
        let was = self.node(name).map(|node| node.kind == Kind::Directory);
        if was == Some(true) && !directory {
            let inside = below(name);
            let gone: Vec<Vec<u8>> = self
                .names
                .range(inside.clone()..)
                .take_while(|(other, _)| other.starts_with(&inside))
                .map(|(other, _)| other.clone())
                .collect();
            for other in gone {
                self.names.remove(&other);
            }
        }
    }
}
