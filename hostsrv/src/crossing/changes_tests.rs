use super::*;

#[test]
fn events_tell_which_sectors_were_written() {
    let table = [
        ("block_bio_queue: 7,5 WS 2048 + 8 [dd]", Some((2048, 8))),
        ("block_bio_queue: 7,5 R 2048 + 8 [dd]", None),
        ("block_bio_queue: 7,5 RAM 2048 + 8 [dd]", None),
        ("block_bio_queue: 7,5 FWFSM 6144 + 16 [a + 9 b]", Some((6144, 16))),
        ("block_bio_queue: 7,5 FF 0 + 0 [dd]", None),
        ("block_bio_queue: 7,5 D 128 + 1024 [fstrim]", Some((128, 1024))),
        ("block_bio_queue: 7,5 N 128 + 1024 [zeroes]", Some((128, 1024))),
        ("block_rq_complete: 7,5 WS () 2048 + 8 none,0,0 [0]", Some((2048, 8))),
        ("block_rq_complete: 7,5 W () 2048 + 8 [0]", Some((2048, 8))),
        ("block_bio_complete: 253,0 WS 18446744073709551615 + 8 [0]", Some((u64::MAX, 8))),
        ("block_bio_complete: 253,0 W 64 + 0 [0]", None),
    ];
    for (line, expected) in table {
        assert_eq!(written(line), expected, "{line}");
    }
}

#[test]
fn sectors_lie_in_blocks() {
    let mut blocks = Blocks::none((BLOCK * 3 + 512) as u64);
    for (sector, count) in [(127, 1), (0, 1), (255, 2), (384, 1), (u64::MAX, 8), (100_000, 8)] {
        blocks.add(sector, count);
    }
    assert_eq!(blocks.iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(blocks.count(), 4);
    assert_eq!(Blocks::none(1 << 30).iter().count(), 0);
}

#[test]
fn lines_come_in_pieces_and_with_names_of_programs() {
    let pipe = File::open("/dev/null").unwrap();
    let mut reader = Reader { pipe, rest: Vec::new(), blocks: Blocks::none(1 << 30), lost: false };
    reader.take(b"block_bio_queue: 7,5 WS 0 +");
    assert_eq!(reader.blocks.count(), 0);
    reader.take(b" 8 [a\nb]\nblock_bio_queue: 7,5 W 128 + 8 [x]\nblock");
    assert_eq!(reader.blocks.iter().collect::<Vec<_>>(), [0, 1]);
    assert!(!reader.lost);
    reader.take(b"_x\nCPU:1 [LOST 7 EVENTS]\n");
    assert!(reader.lost);
}

#[test]
fn a_trace_that_has_ended_is_a_loss() {
    // Whose reading ends at once.
    let pipe = File::open("/dev/null").unwrap();
    let mut reader = Reader { pipe, rest: Vec::new(), blocks: Blocks::none(1 << 30), lost: false };
    reader.look().unwrap_err();
}

#[test]
fn every_count_of_lost_events_counts() {
    let stats = |overrun: u32, commit: u32, dropped: u32| {
        format!(
            "entries: 7\noverrun: {overrun}\ncommit overrun: {commit}\nbytes: 9\ndropped events: {dropped}\nread events: 3\n"
        )
    };
    for (overrun, commit, dropped) in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)] {
        assert_eq!(
            has_lost(&stats(overrun, commit, dropped)),
            overrun + commit + dropped > 0,
            "{overrun} {commit} {dropped}"
        );
    }
}

#[test]
fn all_of_a_trace_has_to_be_on() {
    let trace = tempfile::tempdir().unwrap();
    let files: Vec<_> = std::iter::once("tracing_on".to_owned())
        .chain(EVENTS.map(|event| format!("events/block/{event}/enable")))
        .map(|file| trace.path().join(file))
        .collect();
    assert!(!is_on(trace.path()), "there is none");
    for file in &files {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "1\n").unwrap();
    }
    assert!(is_on(trace.path()));
    for file in &files {
        std::fs::write(file, "0\n").unwrap();
        assert!(!is_on(trace.path()), "{}", file.display());
        std::fs::write(file, "1\n").unwrap();
    }
}

#[test]
fn device_mapper_is_told_apart() {
    let devices = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(devices.path().join("253:0/dm")).unwrap();
    std::fs::create_dir(devices.path().join("7:5")).unwrap();
    let number = nix::sys::stat::makedev;
    assert!(is_mapped(devices.path(), number(253, 0)).unwrap());
    assert!(!is_mapped(devices.path(), number(7, 5)).unwrap());
    is_mapped(devices.path(), number(7, 6)).unwrap_err();
    number_of(Path::new("/dev/null")).unwrap_err();
}

/// On a real device: what is written to while it is followed is told, and nothing else. Needs root and loop devices.
#[test]
fn writes_to_a_device_are_told() {
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        println!("not root, or no loop devices: not tried");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bytes");
    let size = 64 << 20;
    File::create(&file).unwrap().set_len(size).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let done = std::process::Command::new(program).args(arguments).output().unwrap();
        assert!(done.status.success(), "{program} {arguments:?}: {done:?}");
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    };
    let device = run("losetup", &["--find", "--show", file.to_str().unwrap()]);
    let mark = folder.path().join("vol-test");
    std::fs::write(&mark, b"").unwrap();
    let changes = Changes::follow(folder.path(), mark.clone(), Path::new(&device), size);
    let told = changes.map(|changes| {
        let write = |at: u64, length: usize| {
            use std::os::unix::fs::FileExt;
            let file = OpenOptions::new().write(true).open(&device).unwrap();
            file.write_all_at(&vec![7; length], at).unwrap();
            file.sync_all().unwrap();
        };
        assert_eq!(changes.take().unwrap().count(), 0);
        write(BLOCK as u64 * 9, 512);
        write(BLOCK as u64 * 20 - 1, 2);
        let first: Vec<u64> = changes.take().unwrap().iter().collect();
        write(size - 1, 1);
        let second: Vec<u64> = changes.take().unwrap().iter().collect();
        std::fs::remove_file(&mark).unwrap();
        let after_opened_anew = changes.take();
        (first, second, after_opened_anew)
    });
    run("losetup", &["--detach", &device]);
    let own = folder.path().join("tracing");
    let clean = || {
        // The trace is removed beside; a mount of ours stays until that is over.
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while own.exists() && nix::mount::umount(&own).is_err() && own.join("instances").exists() {
            assert!(std::time::Instant::now() < deadline, "tracefs stays mounted");
            std::thread::park_timeout(LOOK);
        }
    };
    clean();
    let (first, second, after) = told.expect("a kernel with block events");
    assert_eq!(first, [9, 19, 20]);
    assert_eq!(second, [size / BLOCK as u64 - 1]);
    assert_eq!(after, None, "nobody followed what came then");
}
