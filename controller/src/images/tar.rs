//! Walks a tar archive whose bytes come in pieces: pure. Knows what docker, skopeo and buildx write: ustar, PAX and GNU's long
//! names. Refuses whatever is not whole or claims more than it holds; unpacks nothing.

use std::fmt;

/// Tar's unit, in bytes.
pub const BLOCK: usize = 512;
/// Most entries of one archive: a container image of 120 layers has about four per layer.
const ENTRIES_MAX: usize = 4096;
/// Longest name, in bytes (Linux's PATH_MAX).
const NAME_MAX: usize = 4096;
/// Largest header beside an entry (PAX records, long names), in bytes.
const META_MAX: u64 = 64 << 10;

/// Why it is no tar archive, in words for whoever sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoTar(pub String);

impl fmt::Display for NoTar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    /// To a path that is relative to the link's directory.
    Symlink(String),
    /// To a path of the archive.
    HardLink(String),
    /// A directory, or anything else without bytes of its own.
    Other,
}

/// What a header tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub kind: Kind,
    /// Of a file's bytes.
    pub size: u64,
}

/// What comes next. In order, the bytes of `Frame`, `Entry` and `Data` are the archive.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Bytes between files' contents.
    Frame(Vec<u8>),
    /// A file's (or another thing's) header; its data follow, if its size says so.
    Entry(Entry, Vec<u8>),
    Data(&'a [u8]),
    /// The file's bytes have come.
    End,
}

enum State {
    /// In a header, or what may be the end.
    Header(Vec<u8>),
    /// In a header's further words.
    Meta {
        kind: u8,
        left: u64,
        pad: u64,
        text: Vec<u8>,
    },
    Data {
        left: u64,
        pad: u64,
    },
    Pad {
        left: u64,
    },
    /// Behind the first block of zeros: nothing but zeros may follow.
    Tail,
}

/// What headers beside an entry say of it.
#[derive(Default)]
struct Said {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

pub struct Walk {
    state: State,
    said: Said,
    entries: usize,
}

impl Default for Walk {
    fn default() -> Self {
        Self { state: State::Header(Vec::with_capacity(BLOCK)), said: Said::default(), entries: 0 }
    }
}

impl Walk {
    /// Takes from `input` up to the next step; none: more bytes are needed.
    pub fn feed<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Step<'a>>, NoTar> {
        loop {
            match &mut self.state {
                State::Data { left: 0, pad } => {
                    self.state = State::Pad { left: *pad };
                    return Ok(Some(Step::End));
                }
                State::Pad { left: 0 } => self.state = State::Header(Vec::with_capacity(BLOCK)),
                _ if input.is_empty() => return Ok(None),
                State::Data { left, .. } => {
                    let part = cut(input, *left);
                    *left -= part.len() as u64;
                    return Ok(Some(Step::Data(part)));
                }
                State::Pad { left } => {
                    let part = cut(input, *left);
                    *left -= part.len() as u64;
                    return Ok(Some(Step::Frame(part.to_vec())));
                }
                State::Tail => {
                    let part = cut(input, u64::MAX);
                    if part.iter().any(|b| *b != 0) {
                        return Err(NoTar("something comes behind its end".into()));
                    }
                    return Ok(Some(Step::Frame(part.to_vec())));
                }
                State::Meta { left, text, .. } if *left > 0 => {
                    let part = cut(input, *left);
                    *left -= part.len() as u64;
                    text.extend_from_slice(part);
                    if *left == 0 {
                        self.end_meta()?;
                    }
                    return Ok(Some(Step::Frame(part.to_vec())));
                }
                // An empty one ends at once.
                State::Meta { .. } => self.end_meta()?,
                State::Header(block) => {
                    block.extend_from_slice(cut(input, (BLOCK - block.len()) as u64));
                    if block.len() == BLOCK {
                        let block = std::mem::take(block);
                        return self.header(block).map(Some);
                    }
                }
            }
        }
    }

    /// The input has ended.
    pub fn end(&self) -> Result<(), NoTar> {
        match &self.state {
            State::Tail | State::Pad { left: 0 } => Ok(()),
            // Without its last blocks of zeros, as some write it.
            State::Header(block) if block.is_empty() && self.entries > 0 => Ok(()),
            _ if self.entries == 0 => Err(NoTar("it is no tar archive".into())),
            _ => Err(NoTar("it ends in the middle: it was cut off".into())),
        }
    }

    fn header<'a>(&mut self, block: Vec<u8>) -> Result<Step<'a>, NoTar> {
        if block.iter().all(|b| *b == 0) {
            self.state = State::Tail;
            return Ok(Step::Frame(block));
        }
        check_sum(&block)?;
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(NoTar(format!("it has more than {ENTRIES_MAX} entries")));
        }
        let size = number(&block[124..136]).ok_or_else(|| NoTar("a header's size is no number".into()))?;
        let kind = block[156];
        if matches!(kind, b'L' | b'K' | b'x' | b'g') {
            if size > META_MAX {
                return Err(NoTar(format!("a header of {size} bytes; at most {META_MAX} are taken")));
            }
            self.state = State::Meta { kind, left: size, pad: pad_of(size), text: Vec::new() };
            return Ok(Step::Frame(block));
        }
        let said = std::mem::take(&mut self.said);
        let name = match said.name {
            Some(name) => name,
            None => {
                let prefix =
                    if &block[257..262] == b"ustar" && block[262] == 0 { &block[345..500] } else { &[] };
                let (prefix, name) = (text(prefix), text(&block[..100]));
                if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
            }
        };
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(NoTar(format!("an entry's name is empty or longer than {NAME_MAX} bytes")));
        }
        let link = || said.link.clone().unwrap_or_else(|| text(&block[157..257]));
        let (kind, size) = match kind {
            // '7' is a contiguous file: a file to everybody. Old archives write a directory as a file with a slash.
            0 | b'0' | b'7' if name.ends_with('/') => (Kind::Other, 0),
            0 | b'0' | b'7' => (Kind::File, said.size.unwrap_or(size)),
            b'1' => (Kind::HardLink(link()), 0),
            b'2' => (Kind::Symlink(link()), 0),
            b'5' => (Kind::Other, 0),
            other => {
                let shown = char::from(other).escape_default();
                return Err(NoTar(format!(
                    "entry {} is of a kind that no image has ('{shown}')",
                    shorten(&name)
                )));
            }
        };
        self.state = State::Data { left: size, pad: pad_of(size) };
        if !matches!(kind, Kind::File) {
            self.state = State::Pad { left: 0 };
        }
        Ok(Step::Entry(Entry { name, kind, size }, block))
    }

    /// A header beside an entry is complete: what it says holds for the entry that comes next.
    fn end_meta(&mut self) -> Result<(), NoTar> {
        let State::Meta { kind, pad, text: bytes, .. } = &mut self.state else { return Ok(()) };
        let (kind, pad, bytes) = (*kind, *pad, std::mem::take(bytes));
        match kind {
            b'L' => self.said.name = Some(text(&bytes)),
            b'K' => self.said.link = Some(text(&bytes)),
            b'x' => {
                for (key, value) in pax(&bytes)? {
                    match key.as_str() {
                        "path" => self.said.name = Some(value),
                        "linkpath" => self.said.link = Some(value),
                        "size" => {
                            let size = value.parse().map_err(|_| NoTar("a PAX size is no number".into()))?;
                            self.said.size = Some(size);
                        }
                        sparse if sparse.starts_with("GNU.sparse") => {
                            return Err(NoTar("it has sparse entries, which no image has".into()));
                        }
                        _ => {}
                    }
                }
            }
            // Global: times and comments; what names or sizes entries as a whole is nothing that images have.
            _ => {}
        }
        self.state = State::Pad { left: pad };
        Ok(())
    }
}

fn cut<'a>(input: &mut &'a [u8], most: u64) -> &'a [u8] {
    let (part, rest) = input.split_at(input.len().min(usize::try_from(most).unwrap_or(usize::MAX)));
    *input = rest;
    part
}

fn pad_of(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// Up to the first zero byte; what is no UTF-8 is replaced.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// A name as errors show it: names in archives are anybody's text.
pub fn shorten(name: &str) -> String {
    let shown: String = name.chars().take(100).flat_map(char::escape_default).collect();
    if name.chars().count() > 100 { format!("{shown}…") } else { shown }
}

/// Octal digits, or GNU's base 256 (the first bit is set).
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - 8);
        // Too short a field for such a number, or too large a number.
        if high.first() != Some(&0x80) || high[1..].iter().any(|b| *b != 0) {
            return None;
        }
        return low.try_into().ok().map(u64::from_be_bytes).filter(|n| *n <= i64::MAX as u64);
    }
    let digits = text(field);
    let digits = digits.trim_matches(' ');
    if digits.is_empty() {
        return Some(0);
    }
    if !digits.bytes().all(|b| matches!(b, b'0'..=b'7')) {
        return None;
    }
    u64::from_str_radix(digits, 8).ok()
}

/// The sum of all bytes, the sum's own field taken as spaces.
fn check_sum(block: &[u8]) -> Result<(), NoTar> {
    let told = number(&block[148..156]);
    let sum = |b: &[u8]| b.iter().map(|b| u64::from(*b)).sum::<u64>();
    let seen = sum(&block[..148]) + 8 * u64::from(b' ') + sum(&block[156..]);
    if told == Some(seen) {
        Ok(())
    } else {
        Err(NoTar("a header's sum is wrong: it is no tar archive".into()))
    }
}

/// Whether these bytes could begin a tar archive: a header, or the end of an empty one.
pub fn may_begin(head: &[u8]) -> bool {
    head.is_empty()
        || head.get(..BLOCK).is_some_and(|block| block.iter().all(|b| *b == 0) || check_sum(block).is_ok())
}

/// PAX records: `LENGTH KEY=VALUE\n`, where the length counts itself.
fn pax(mut bytes: &[u8]) -> Result<Vec<(String, String)>, NoTar> {
    let broken = || NoTar("a PAX header is broken".into());
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|b| *b == b' ').ok_or_else(broken)?;
        let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|n| n.parse::<usize>().ok());
        let length = length.filter(|n| *n > space + 1 && *n <= bytes.len()).ok_or_else(broken)?;
        let (record, rest) = bytes.split_at(length);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(broken)?;
        let at = record.iter().position(|b| *b == b'=').ok_or_else(broken)?;
        let lossy = |bytes| String::from_utf8_lossy(bytes).into_owned();
        found.push((lossy(&record[..at]), lossy(&record[at + 1..])));
        bytes = rest;
    }
    Ok(found)
}

#[cfg(test)]
pub mod make {
    //! Archives for tests.

    use super::*;

    pub fn header(name: &str, kind: u8, size: u64, link: &str) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..263].copy_from_slice(b"ustar\0");
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }

    pub fn file(name: &str, bytes: &[u8]) -> Vec<u8> {
        let mut all = header(name, b'0', bytes.len() as u64, "");
        all.extend_from_slice(bytes);
        all.resize(all.len().div_ceil(BLOCK) * BLOCK, 0);
        all
    }

    pub fn end() -> Vec<u8> {
        vec![0; 2 * BLOCK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, kinds and contents, and all bytes again.
    fn walk(bytes: &[u8], step: usize) -> Result<(Vec<(Entry, Vec<u8>)>, Vec<u8>), NoTar> {
        let (mut walk, mut seen, mut all) = (Walk::default(), Vec::<(Entry, Vec<u8>)>::new(), Vec::new());
        for mut part in bytes.chunks(step) {
            while let Some(step) = walk.feed(&mut part)? {
                match step {
                    Step::Frame(frame) => all.extend(frame),
                    Step::Entry(entry, header) => {
                        all.extend(header);
                        seen.push((entry, Vec::new()));
                    }
                    Step::Data(data) => {
                        all.extend_from_slice(data);
                        seen.last_mut().unwrap().1.extend_from_slice(data);
                    }
                    Step::End => {}
                }
            }
        }
        walk.end()?;
        Ok((seen, all))
    }

    #[test]
    fn archives_in_any_pieces() {
        let long = format!("{}/layer.tar", "d".repeat(200));
        let mut bytes = make::header("d/", b'5', 0, "");
        bytes.extend(make::file("d/a", b"hello"));
        bytes.extend(make::file("empty", b""));
        bytes.extend(make::header("d/l", b'2', 0, "../d/a"));
        let record = format!("path={long}\n");
        let record = format!("{} {record}", record.len() + 4);
        let mut pax = make::file("PaxHeaders/x", record.as_bytes());
        pax[156] = b'x';
        pax[148..156].fill(b' ');
        let sum: u64 = pax[..BLOCK].iter().map(|b| u64::from(*b)).sum();
        pax[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        bytes.extend(pax);
        bytes.extend(make::file("short", &[7; 600]));
        bytes.extend(make::end());
        for step in [1, 7, 511, 512, 513, 4096] {
            let (seen, all) = walk(&bytes, step).unwrap();
            assert_eq!(all, bytes, "nothing is lost, step {step}");
            let seen: Vec<_> = seen.iter().map(|(e, data)| (e.name.as_str(), &e.kind, data.len())).collect();
            assert_eq!(
                seen,
                [
                    ("d/", &Kind::Other, 0),
                    ("d/a", &Kind::File, 5),
                    ("empty", &Kind::File, 0),
                    ("d/l", &Kind::Symlink("../d/a".into()), 0),
                    (long.as_str(), &Kind::File, 600),
                ]
            );
        }
    }

    #[test]
    fn what_is_no_archive() {
        let whole = [make::file("a", b"hello"), make::end()].concat();
        let mut wrong_sum = whole.clone();
        wrong_sum[0] = b'b';
        let mut behind = whole.clone();
        behind.push(1);
        let sparse = make::header("s", b'S', 0, "");
        let huge_meta = make::header("x", b'x', 1 << 30, "");
        let many: Vec<u8> =
            (0..=ENTRIES_MAX).flat_map(|n| make::header(&format!("d{n}/"), b'5', 0, "")).collect();
        for (bytes, want) in [
            (b"this is no archive".to_vec(), "no tar archive"),
            (Vec::new(), "no tar archive"),
            (wrong_sum, "sum is wrong"),
            (whole[..600].to_vec(), "cut off"),
            (whole[..514].to_vec(), "cut off"),
            (behind, "behind its end"),
            (sparse, "of a kind"),
            (huge_meta, "at most"),
            (many, "more than 4096 entries"),
            (vec![0x1f; 512], "sum is wrong"),
        ] {
            let told = walk(&bytes, 100).unwrap_err().0;
            assert!(told.contains(want), "{told} / {want}");
        }
        assert!(walk(&whole[..1024], 9).is_ok(), "without its end");
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2048), at in 0usize..1024, with: u8) {
            let _ = walk(&bytes, 64);
            let mut near = [make::file("a", b"hello"), make::header("l", b'2', 0, "a"), make::end()].concat();
            let at = at % near.len();
            near[at] = with;
            let _ = walk(&near, 64);
        }
    }
}
