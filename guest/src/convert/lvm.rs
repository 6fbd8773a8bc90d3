//! LVM's metadata, as a physical volume holds it: label, area, text (lvm2's `format_text`), and from it what device-mapper is
//! told of each volume. Linear and striped volumes; others are named with the reason. Pure, and of bytes that anybody may
//! have written: all is bounded, nothing is believed.

use std::collections::BTreeMap;

const SECTOR: u64 = 512;
/// So much of a physical volume's beginning is read, in bytes: the area is 1 MiB unless somebody has asked for more.
pub const HEAD: usize = 4 << 20;
const DEPTH_MAX: usize = 8;
const NODES_MAX: usize = 200_000;
const SEGMENTS_MAX: usize = 4096;

/// A volume, in device-mapper's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub group: String,
    pub name: String,
    /// Or why it cannot be read.
    pub segments: Result<Vec<Segment>, String>,
}

/// In sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub start: u64,
    pub length: u64,
    /// 0: linear.
    pub chunk: u64,
    /// The physical volume's id, and where on it.
    pub stripes: Vec<(String, u64)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Number(i64),
    Text(String),
    List(Vec<Value>),
    Section(BTreeMap<String, Value>),
}

impl Value {
    fn number(&self) -> Option<u64> {
        match self {
            Self::Number(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Self::Section(map) => map.get(key),
            _ => None,
        }
    }

    fn sections(&self) -> impl Iterator<Item = (&String, &Value)> {
        let map = match self {
            Self::Section(map) => Some(map),
            _ => None,
        };
        map.into_iter().flatten().filter(|(_, value)| matches!(value, Self::Section(_)))
    }
}

fn le(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    Some(bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

/// The id of the physical volume that begins with these bytes, and its metadata's text.
pub fn metadata(head: &[u8]) -> Result<(String, String), String> {
    let sector = (0..4_usize).map(|n| n * SECTOR as usize);
    let label = sector
        .clone()
        .find(|at| head.get(*at..at + 8) == Some(b"LABELONE"))
        .ok_or("there is no label in the first four sectors")?;
    let short = || "its label is cut short".to_owned();
    let header = label + usize::try_from(le(head, label + 20, 4).ok_or_else(short)?).map_err(|_| short())?;
    let id = head.get(header..header.saturating_add(32)).ok_or_else(short)?;
    let id = String::from_utf8(id.to_vec()).map_err(|_| "its id is no text".to_owned())?;
    // Two lists of (offset, size) pairs, each ended by a pair of zeros: data, then metadata.
    let mut at = header + 40;
    let mut pair = || {
        let found = (le(head, at, 8)?, le(head, at + 8, 8)?);
        at += 16;
        Some(found)
    };
    for _ in 0..16 {
        if pair().ok_or_else(short)? == (0, 0) {
            break;
        }
    }
    let (offset, size) = pair().ok_or_else(short)?;
    if (offset, size) == (0, 0) {
        return Err("it holds no metadata".into());
    }
    let far = || "its metadata lie beyond what is read".to_owned();
    let (start, size) =
        (usize::try_from(offset).map_err(|_| far())?, usize::try_from(size).map_err(|_| far())?);
    let area = start.checked_add(size).and_then(|end| head.get(start..end)).ok_or_else(far)?;
    if area.get(4..20) != Some(b" LVM2 x[5A%r0N*>") {
        return Err("its metadata area has no magic".into());
    }
    let (from, length) = (le(area, 40, 8).ok_or_else(far)?, le(area, 48, 8).ok_or_else(far)?);
    let (from, length) =
        (usize::try_from(from).map_err(|_| far())?, usize::try_from(length).map_err(|_| far())?);
    if from == 0 {
        return Err("it is in no volume group".into());
    }
    // A ring, behind a header of one sector.
    if from < SECTOR as usize || from >= area.len() || length > area.len() - SECTOR as usize {
        return Err("its metadata point out of their area".into());
    }
    let first = length.min(area.len() - from);
    let mut text = area[from..from + first].to_vec();
    text.extend_from_slice(&area[SECTOR as usize..SECTOR as usize + length - first]);
    while text.last() == Some(&0) {
        text.pop();
    }
    Ok((id, String::from_utf8_lossy(&text).into_owned()))
}

struct Reader<'a> {
    rest: &'a str,
    nodes: usize,
}

impl Reader<'_> {
    fn skip(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            let Some(comment) = self.rest.strip_prefix('#') else { return };
            self.rest = comment.find('\n').map_or("", |end| &comment[end..]);
        }
    }

    fn take(&mut self, mark: char) -> bool {
        self.skip();
        let found = self.rest.strip_prefix(mark);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn word(&mut self) -> Result<String, String> {
        self.skip();
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_-.+/".contains(c)));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        if word.is_empty() {
            return Err(format!(
                "a name is awaited before {:?}",
                self.rest.chars().take(20).collect::<String>()
            ));
        }
        self.rest = rest;
        Ok(word.to_owned())
    }

    fn section(&mut self, depth: usize) -> Result<BTreeMap<String, Value>, String> {
        if depth > DEPTH_MAX {
            return Err("its sections are too deep".into());
        }
        let mut map = BTreeMap::new();
        loop {
            self.skip();
            if self.rest.is_empty() || self.rest.starts_with('}') {
                return Ok(map);
            }
            let key = self.word()?;
            let value = if self.take('{') {
                let inner = self.section(depth + 1)?;
                if !self.take('}') {
                    return Err(format!("section {key} has no end"));
                }
                Value::Section(inner)
            } else if self.take('=') {
                self.value(depth)?
            } else {
                return Err(format!("{key} has no value"));
            };
            self.count()?;
            map.insert(key, value);
        }
    }

    fn count(&mut self) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > NODES_MAX { Err("there is too much of it".into()) } else { Ok(()) }
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        self.count()?;
        if depth > DEPTH_MAX {
            return Err("its lists are too deep".into());
        }
        if self.take('[') {
            let mut list = Vec::new();
            loop {
                if self.take(']') {
                    return Ok(Value::List(list));
                }
                list.push(self.value(depth + 1)?);
                if !self.take(',') && !self.rest.trim_start().starts_with(']') {
                    return Err("a list has no end".into());
                }
            }
        }
        if self.take('"') {
            let mut text = String::new();
            let mut chars = self.rest.char_indices();
            while let Some((at, c)) = chars.next() {
                match c {
                    '"' => {
                        self.rest = &self.rest[at + 1..];
                        return Ok(Value::Text(text));
                    }
                    '\\' => text.extend(chars.next().map(|(_, c)| c)),
                    c => text.push(c),
                }
            }
            return Err("a text has no end".into());
        }
        let word = self.word()?;
        Ok(word.parse().map_or(Value::Text(word), Value::Number))
    }
}

/// The volumes of a group's metadata.
pub fn volumes(text: &str) -> Result<Vec<Volume>, String> {
    let mut reader = Reader { rest: text, nodes: 0 };
    let top = Value::Section(reader.section(0)?);
    if !reader.rest.trim().is_empty() {
        return Err("something follows its end".into());
    }
    let (group, vg) = top.sections().next().ok_or("it names no group")?;
    let extent =
        vg.get("extent_size").and_then(Value::number).filter(|n| *n > 0).ok_or("its extents have no size")?;
    let mut physical = BTreeMap::new();
    for (name, pv) in vg.get("physical_volumes").into_iter().flat_map(Value::sections) {
        let id = pv.get("id").and_then(Value::text).unwrap_or_default().replace('-', "");
        physical.insert(name.as_str(), (id, pv.get("pe_start").and_then(Value::number).unwrap_or(0)));
    }
    let logical = vg.get("logical_volumes").into_iter().flat_map(Value::sections);
    Ok(logical
        .map(|(name, lv)| Volume {
            group: group.clone(),
            name: name.clone(),
            segments: segments(lv, extent, &physical),
        })
        .collect())
}

fn segments(
    lv: &Value,
    extent: u64,
    physical: &BTreeMap<&str, (String, u64)>,
) -> Result<Vec<Segment>, String> {
    let mut all = Vec::new();
    let broken = || "its metadata are broken".to_owned();
    for (_, segment) in lv.sections().filter(|(name, _)| name.starts_with("segment")) {
        let number = |key: &str| segment.get(key).and_then(Value::number);
        match segment.get("type").and_then(Value::text) {
            Some("striped" | "linear") => {}
            Some(other) => return Err(format!("it is of the kind '{other}', which is not read here")),
            None => return Err(broken()),
        }
        let sectors = |extents: Option<u64>| extents.and_then(|n| n.checked_mul(extent)).ok_or_else(broken);
        let Some(Value::List(stripes)) = segment.get("stripes") else { return Err(broken()) };
        let mut on = Vec::new();
        for pair in stripes.chunks(2) {
            let [Value::Text(name), from] = pair else { return Err(broken()) };
            let (id, begin) = physical.get(name.as_str()).ok_or_else(broken)?;
            let from = sectors(from.number())?.checked_add(*begin).ok_or_else(broken)?;
            on.push((id.clone(), from));
        }
        let chunk = match on.len() {
            0 => return Err(broken()),
            1 => 0,
            _ => number("stripe_size").filter(|n| *n > 0).ok_or_else(broken)?,
        };
        let (start, length) = (sectors(number("start_extent"))?, sectors(number("extent_count"))?);
        if length == 0 || start.checked_add(length).is_none() || all.len() >= SEGMENTS_MAX {
            return Err(broken());
        }
        all.push(Segment { start, length, chunk, stripes: on });
    }
    all.sort_by_key(|segment| segment.start);
    let mut end = 0;
    for segment in &all {
        if segment.start != end {
            return Err("its segments leave holes or overlap".into());
        }
        end = segment.start + segment.length;
    }
    if all.is_empty() { Err("it has no segments".into()) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"machine {
id = "abc"
seqno = 3
status = ["RESIZEABLE", "READ", "WRITE"]
extent_size = 8192 # 4 Megabytes
physical_volumes {
 pv0 {
  id = "aaaa-bb"
  pe_start = 2048
 }
 pv1 { id = "cc" pe_start = 4096 }
}
logical_volumes {
 root {
  status = ["READ", "VISIBLE"]
  segment_count = 2
  segment1 { start_extent = 0 extent_count = 10 type = "striped" stripe_count = 1 stripes = [ "pv0", 5 ] }
  segment2 { start_extent = 10 extent_count = 2 type = "striped" stripe_count = 2 stripe_size = 128 stripes = ["pv0", 0, "pv1", 1] }
 }
 thin { segment1 { start_extent = 0 extent_count = 1 type = "thin" } }
}
}
# Generated by LVM2
contents = "Text Format Volume Group"
version = 1
"#;

    #[test]
    fn linear_and_striped_volumes() {
        let all = volumes(TEXT).unwrap();
        assert_eq!(all.len(), 2);
        let aa = |at| ("aaaabb".to_owned(), at);
        assert_eq!(
            all[0],
            Volume {
                group: "machine".into(),
                name: "root".into(),
                segments: Ok(vec![
                    Segment { start: 0, length: 81_920, chunk: 0, stripes: vec![aa(43_008)] },
                    Segment {
                        start: 81_920,
                        length: 16_384,
                        chunk: 128,
                        stripes: vec![aa(2048), ("cc".into(), 12_288)]
                    },
                ])
            }
        );
        assert!(all[1].segments.as_ref().unwrap_err().contains("'thin'"));
    }

    #[test]
    fn hostile_texts() {
        let deep = format!("{}{}", "a {".repeat(100), "}".repeat(100));
        let lists = format!("a = {}", "[".repeat(100));
        let many = format!("a {{ b = [{}] }}", "1,".repeat(NODES_MAX + 1));
        for text in
            ["", "a", "a {", "a = \"b", "}", "a = [1 2]", "a { extent_size = 0 }", &deep, &lists, &many]
        {
            assert!(volumes(text).is_err(), "{:?}", text.chars().take(30).collect::<String>());
        }
        let change = |from: &str, to: &str| {
            assert!(TEXT.contains(from));
            volumes(&TEXT.replace(from, to)).unwrap()[0].segments.clone()
        };
        for (from, to) in [
            ("extent_count = 10", "extent_count = 9223372036854775807"),
            ("extent_count = 10", "extent_count = -1"),
            ("extent_count = 10", "extent_count = 0"),
            ("start_extent = 10", "start_extent = 11"),
            ("start_extent = 10", "start_extent = 9"),
            ("\"pv0\", 5", "\"pv9\", 5"),
            ("\"pv0\", 5", "\"pv0\""),
            ("\"pv0\", 5", ""),
            ("stripe_size = 128", "stripe_size = 0"),
        ] {
            assert!(change(from, to).is_err(), "{from} -> {to}");
        }
    }

    /// A physical volume as pvcreate lays it out; the text begins at `from` in its ring.
    fn disk(text: &str, from: u64) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(512, b"LABELONE");
        put(512 + 20, &32_u32.to_le_bytes());
        put(512 + 24, b"LVM2 001");
        put(544, b"0123456789abcdef0123456789abcdef");
        put(544 + 40, &(1_u64 << 20).to_le_bytes());
        let (area, size) = (4096_usize, (1_usize << 20) - 4096);
        put(544 + 72, &(area as u64).to_le_bytes());
        put(544 + 80, &(size as u64).to_le_bytes());
        put(area + 4, b" LVM2 x[5A%r0N*>");
        put(area + 40, &from.to_le_bytes());
        put(area + 48, &(text.len() as u64).to_le_bytes());
        for (n, byte) in text.bytes().enumerate() {
            let at = from as usize + n;
            let at = if at < size { at } else { at - size + 512 };
            if at < size {
                put(area + at, &[byte]);
            }
        }
        head
    }

    #[test]
    fn the_text_is_a_ring() {
        let end = (1 << 20) - 4096 - 100;
        for from in [512, 4096, end] {
            let (id, text) = metadata(&disk(TEXT, from)).unwrap();
            assert_eq!((id.as_str(), text.as_str()), ("0123456789abcdef0123456789abcdef", TEXT), "{from}");
        }
        for from in [0, 1, 511, 1 << 20, u64::MAX] {
            let mut head = disk(TEXT, 512);
            head[4096 + 40..4096 + 48].copy_from_slice(&from.to_le_bytes());
            assert!(metadata(&head).is_err(), "{from}");
        }
        let mut head = disk(TEXT, 512);
        for length in [1 << 20, u64::MAX] {
            head[4096 + 48..4096 + 56].copy_from_slice(&u64::to_le_bytes(length));
            assert!(metadata(&head).is_err(), "{length}");
        }
        for length in [0, 511, 520, 600, 640, 5000] {
            assert!(metadata(&disk(TEXT, 512)[..length]).is_err(), "{length}");
        }
        let mut head = disk(TEXT, 512);
        head[532..536].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(metadata(&head).is_err(), "a header far away");
    }
}
