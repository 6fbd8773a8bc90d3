//! Layers, good and hostile, and what becomes of them.

use super::*;
use std::io::Cursor;
use tar::Header;

/// One entry of a layer that is written by hand: kind, name, target or content.
type E<'a> = (char, &'a str, &'a str);

fn header(kind: EntryType, name: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o750 } else { 0o644 });
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(9);
    header.set_size(size);
    // By hand: the crate refuses the names that matter here.
    header.as_mut_bytes()[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
    header
}

fn layer(entries: &[E<'_>]) -> Cursor<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, text) in entries {
        let link = |kind| {
            let mut header = header(kind, name, 0);
            header.as_mut_bytes()[157..157 + text.len()].copy_from_slice(text.as_bytes());
            header
        };
        let (mut header, data) = match kind {
            'd' => (header(EntryType::Directory, name, 0), ""),
            'f' => (header(EntryType::Regular, name, text.len() as u64), *text),
            'l' => (link(EntryType::Symlink), ""),
            'h' => (link(EntryType::Link), ""),
            'p' => (header(EntryType::Fifo, name, 0), ""),
            'c' => {
                let mut header = header(EntryType::Char, name, 0);
                let (major, minor) = text.split_once(':').unwrap();
                header.set_device_major(major.parse().unwrap()).unwrap();
                header.set_device_minor(minor.parse().unwrap()).unwrap();
                (header, "")
            }
            's' => (header(EntryType::GNUSparse, name, text.len() as u64), *text),
            // An extended header for the next entry.
            'x' => (header(EntryType::XHeader, name, text.len() as u64), *text),
            'N' => (header(EntryType::GNULongName, name, text.len() as u64), *text),
            other => panic!("{other}"),
        };
        header.set_cksum();
        tar.append(&header, data.as_bytes()).unwrap();
    }
    Cursor::new(tar.into_inner().unwrap())
}

/// `KIND NAME -> TARGET` or `KIND NAME = CONTENT`, one a line.
fn listed(layers: &[&[E<'_>]]) -> Result<Vec<String>, String> {
    let mut layers: Vec<_> = layers.iter().map(|entries| layer(entries)).collect();
    let mut out = Vec::new();
    flatten(&mut layers, &mut out, Limits::default()).map_err(|error| error.to_string())?;
    let mut archive = tar::Archive::new(out.as_slice());
    let mut lines = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let link = entry.link_name_bytes().map(|target| String::from_utf8_lossy(&target).into_owned());
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        lines.push(match entry.header().entry_type() {
            EntryType::Directory => format!("d {name}"),
            EntryType::Regular => format!("f {name} = {text}"),
            EntryType::Symlink => format!("l {name} -> {}", link.unwrap()),
            EntryType::Link => format!("h {name} -> {}", link.unwrap()),
            EntryType::Char => format!("c {name}"),
            EntryType::Fifo => format!("p {name}"),
            other => format!("{other:?} {name}"),
        });
    }
    assert_eq!(lines.remove(0), "d ./");
    Ok(lines)
}

#[test]
fn layers_lie_on_each_other() {
    type Case<'a> = (&'a str, &'a [&'a [E<'a>]], &'a [&'a str]);
    let table: &[Case<'_>] = &[
        ("nothing", &[], &[]),
        ("names are cleaned", &[&[('f', "./a//b", "1"), ('f', "/c", "2")]], &["d a", "f a/b = 1", "f c = 2"]),
        ("the later wins", &[&[('f', "a", "1"), ('f', "a", "2")], &[('f', "a", "3")]], &["f a = 3"]),
        (
            "a whiteout",
            &[&[('d', "d", ""), ('f', "d/a", "1"), ('f', "d/b", "2")], &[('f', "d/.wh.a", "")]],
            &["d d", "f d/b = 2"],
        ),
        (
            "a whiteout of a directory",
            &[&[('f', "d/e/a", "1"), ('f', "d-e", "2")], &[('f', ".wh.d", "")]],
            &["f d-e = 2"],
        ),
        (
            "a whiteout hides lower layers alone",
            &[&[('f', "a", "1")], &[('f', "a", "2"), ('f', ".wh.a", "")]],
            &["f a = 2"],
        ),
        ("a whiteout of nothing", &[&[('f', "a", "1")], &[('f', ".wh.b", "")]], &["f a = 1"]),
        (
            "an opaque directory, wherever it is said",
            &[
                &[('f', "d/a", "1"), ('f', "d/s/b", "2")],
                &[('f', "d/c", "3"), ('f', "d/.wh..wh..opq", ""), ('f', "d/s/n", "4")],
            ],
            &["d d", "f d/c = 3", "d d/s", "f d/s/n = 4"],
        ),
        ("what aufs keeps", &[&[('d', ".wh..wh.plnk", ""), ('f', ".wh..wh.aufs", "")]], &[]),
        ("a file over a directory", &[&[('f', "d/a", "1")], &[('f', "d", "2")]], &["f d = 2"]),
        (
            "a directory over a file",
            &[&[('f', "d", "1")], &[('d', "d", ""), ('f', "d/a", "2")]],
            &["d d", "f d/a = 2"],
        ),
        ("a directory over a directory", &[&[('f', "d/a", "1")], &[('d', "d", "")]], &["d d", "f d/a = 1"]),
        (
            "hard links within and over layers, though one name goes",
            &[&[('f', "a", "1"), ('h', "b", "a")], &[('h', "c", "/b"), ('f', ".wh.a", "")]],
            &["f b = 1", "h c -> b"],
        ),
        (
            "a hard link keeps the old bytes",
            &[&[('f', "a", "1"), ('h', "b", "a"), ('f', "a", "2")]],
            &["f a = 2", "f b = 1"],
        ),
        ("a link to itself", &[&[('f', "a", "1"), ('h', "a", "./a")]], &["f a = 1"]),
        ("a hard link to a link", &[&[('l', "a", "x"), ('h', "b", "a")]], &["l a -> x", "h b -> a"]),
        (
            "below a link to a directory",
            &[
                &[('d', "usr/lib", ""), ('l', "lib", "usr/lib")],
                &[('f', "lib/x", "1"), ('f', "lib/.wh.y", "")],
            ],
            &["l lib -> usr/lib", "d usr", "d usr/lib", "f usr/lib/x = 1"],
        ),
        (
            "links that lead out lead to the image's own root",
            &[&[
                ('l', "up", "../../../etc"),
                ('l', "abs", "/etc/../tmp"),
                ('f', "up/x", "1"),
                ('f', "abs/y", "2"),
            ]],
            &["l abs -> /etc/../tmp", "d etc", "f etc/x = 1", "d tmp", "f tmp/y = 2", "l up -> ../../../etc"],
        ),
        ("nodes", &[&[('p', "p", ""), ('c', "null", "1:3")]], &["c null", "p p"]),
        (
            "a long name",
            &[&[('N', "././@LongLink", "long/name\0"), ('f', "long", "1")]],
            &["d long", "f long/name = 1"],
        ),
        (
            "a name of an extended header",
            &[&[('x', "x", "14 path=p/ath\n"), ('f', "q", "1")]],
            &["d p", "f p/ath = 1"],
        ),
    ];
    for (case, layers, expected) in table {
        assert_eq!(listed(layers).unwrap_or_else(|e| panic!("{case}: {e}")), *expected, "{case}");
    }
}

#[test]
fn hostile_layers_are_refused_with_the_reason() {
    let table: &[(&[E<'_>], &str)] = &[
        (&[('f', "../a", "")], "leads out"),
        (&[('f', "a/../../b", "")], "leads out"),
        (&[('f', "/..", "")], "leads out"),
        (&[('f', "a", ""), ('f', "a/b", "")], "below 'a', which is no directory"),
        (&[('p', "a", ""), ('f', "a/b/c", "")], "no directory"),
        (&[('l', "a", "b"), ('l', "b", "a"), ('f', "a/x", "")], "more than 40 links"),
        (&[('l', "a", "a/a"), ('f', "a/x", "")], "more than 40 links"),
        (&[('h', "a", "../etc/shadow")], "leads out"),
        (&[('h', "a", "etc/shadow")], "not there"),
        (&[('d', "d", ""), ('h', "a", "d")], "links to a directory"),
        (&[('h', "a", "/")], "links to the root"),
        (&[('l', "a", "")], "links to nothing"),
        (&[('f', ".wh.", "")], "no name"),
        (&[('f', ".wh..", "")], "no name"),
        (&[('f', ".wh...", "")], "no name"),
        (&[('f', "/", "")], "would be the root"),
        (&[('c', "w", "0:0")], "hides files"),
        (&[('s', "s", "")], "sparse"),
        (&[('x', "x", "26 GNU.sparse.realsize=99\n"), ('f', "a", "")], "sparse"),
        (&[('x', "x", "99 path=a\n"), ('f', "a", "")], "broken"),
        (&[('x', "x", "3 a"), ('f', "a", "")], "broken"),
        (&[('x', "x", "18446744073709551617 a=b\n"), ('f', "a", "")], "broken"),
        (&[('x', "x", "11 path=\0a\n"), ('f', "a", "")], "zero byte"),
        (&[('x', "x", "20 uid=99999999999\n\n"), ('f', "a", "")], "broken"),
        (&[('x', "x", "19 uid=99999999999\n"), ('f', "a", "")], "owner of number"),
        (&[('x', "x", "29 size=18446744073709551615\n"), ('f', "a", "")], "cut off"),
    ];
    for (entries, says) in table {
        let said = listed(&[entries]).expect_err(&format!("{entries:?}"));
        assert!(said.contains(says), "{entries:?}: wanted {says:?} in {said:?}");
    }
    let part = "p".repeat(256);
    let record = format!("{} path={part}\n", 256 + 10);
    assert!(listed(&[&[('x', "x", &record), ('f', "a", "")]]).unwrap_err().contains("longer than 255"));
    let long = "p/".repeat(2049);
    let record = format!("{} path={long}\n", long.len() + 11);
    assert!(listed(&[&[('x', "x", &record), ('f', "a", "")]]).unwrap_err().contains("4098 bytes"));
}

#[test]
fn what_is_cut_off_or_changed_is_told() {
    let whole = layer(&[('f', "a", &"x".repeat(5000))]).into_inner();
    for (length, says) in [(100, "middle of a header"), (512, "cut off"), (5000, "cut off")] {
        let mut layers = [Cursor::new(whole[..length].to_vec())];
        let said = flatten(&mut layers, io::sink(), Limits::default()).unwrap_err().to_string();
        assert!(said.starts_with("layer 0: ") && said.contains(says), "{length}: {said}");
    }
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    let said = flatten(&mut [Cursor::new(flipped)], io::sink(), Limits::default()).unwrap_err().to_string();
    assert!(said.contains("checksum"), "{said}");
    // Without the blocks at the end, and without the filling before them.
    let done =
        flatten(&mut [Cursor::new(whole[..512 + 5000].to_vec())], io::sink(), Limits::default()).unwrap();
    assert_eq!(done, Flattened { entries: 1, bytes: 5000 });
}

#[test]
fn bounds_hold() {
    let small = Limits { entries: 3, names: 100, header: 64 };
    let run = |entries: &[E<'_>]| {
        flatten(&mut [layer(entries)], io::sink(), small).map_err(|error| error.to_string())
    };
    assert!(run(&[('f', "a", ""); 3]).is_ok());
    assert!(run(&[('f', "a", ""); 4]).unwrap_err().contains("more than 3 entries"));
    let name = "n".repeat(60);
    assert!(run(&[('f', &name, ""), ('l', "l", &name)]).unwrap_err().contains("more than 100 bytes"));
    assert!(
        run(&[('N', "l", &"n".repeat(65)), ('f', "a", "")])
            .unwrap_err()
            .contains("extended header of 65 bytes")
    );
}

#[test]
fn owners_modes_and_attributes_are_kept_and_those_that_steer_are_not() {
    let record = |key: &str, value: &str| {
        let body = format!(" SCHILY.xattr.{key}={value}\n");
        let length = (body.len() + 2).to_string();
        format!("{length}{body}")
    };
    let text = [
        record("user.note", "kept"),
        record("security.capability", "caps"),
        record("trusted.overlay.opaque", "y"),
        record("user.overlay.redirect", "/x"),
        record("security.selinux", "z"),
    ]
    .concat();
    let mut layers = [layer(&[('x', "x", &text), ('f', "a", "1")])];
    let mut out = Vec::new();
    flatten(&mut layers, &mut out, Limits::default()).unwrap();
    let mut archive = tar::Archive::new(out.as_slice());
    let mut entry = archive.entries().unwrap().nth(1).unwrap().unwrap();
    let found: Vec<(String, String)> = entry
        .pax_extensions()
        .unwrap()
        .unwrap()
        .map(|pair| {
            pair.map(|pair| (pair.key().unwrap().to_owned(), pair.value().unwrap().to_owned())).unwrap()
        })
        .collect();
    let pair = |key: &str, value: &str| (format!("SCHILY.xattr.{key}"), value.to_owned());
    assert_eq!(found, [pair("user.note", "kept"), pair("security.capability", "caps")]);
    let header = entry.header();
    let (mode, uid, gid, mtime) = (header.mode(), header.uid(), header.gid(), header.mtime());
    assert_eq!((mode.unwrap(), uid.unwrap(), gid.unwrap(), mtime.unwrap()), (0o644, 7, 8, 9));
}

proptest::proptest! {
    /// Whatever the bytes are, there is an answer, and a layer that is taken makes a tar that is taken.
    #[test]
    fn no_bytes_do_harm(
        seed in proptest::collection::vec((0usize..4000, proptest::prelude::any::<u8>()), 0..20),
    ) {
        let mut bytes = layer(&[
            ('d', "d", ""), ('f', "d/a", "text"), ('h', "b", "d/a"), ('l', "l", "d"), ('f', "l/c", "more"), ('f', ".wh.x", ""),
        ]).into_inner();
        for (at, value) in seed {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let mut out = Vec::new();
        if flatten(&mut [Cursor::new(bytes)], &mut out, Limits::default()).is_ok() {
            flatten(&mut [Cursor::new(out)], std::io::sink(), Limits::default()).unwrap();
        }
    }
}
