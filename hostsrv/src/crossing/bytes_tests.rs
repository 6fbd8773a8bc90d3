use super::*;
use std::path::PathBuf;

const MIB: usize = 1 << 20;

struct Two {
    _folder: tempfile::TempDir,
    here: PathBuf,
    there: PathBuf,
}

fn two(here: &[u8], there: &[u8]) -> Two {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("here"), folder.path().join("there"));
    std::fs::write(&a, here).unwrap();
    std::fs::write(&b, there).unwrap();
    Two { _folder: folder, here: a, there: b }
}

fn last(size: u64) -> Pass {
    Pass { part: Part::Root, size, last: true, xfs: false, mark: None, after: None }
}

/// One pass; the bytes that were sent.
async fn pass(two: &Two, last: bool) -> Result<u64, PassError> {
    let size = std::fs::metadata(&two.here).unwrap().len();
    let (mut a, mut b) = tokio::io::duplex(8192);
    let here = Arc::new(Medium::open(&two.here, false).unwrap());
    let there = Arc::new(Medium::open(&two.there, true).unwrap());
    let what = Pass { part: Part::Root, size, last, xfs: false, mark: None, after: None };
    let taking = tokio::spawn(async move {
        take(&mut b, there, &what, true, std::future::pending(), async || Ok(())).await
    });
    let progress = Progress::default();
    send(&mut a, here, size, None, &progress).await?;
    taking.await.unwrap().unwrap();
    assert_eq!(progress.read.load(Ordering::Relaxed), size);
    Ok(progress.sent.load(Ordering::Relaxed))
}

fn same(two: &Two) -> bool {
    std::fs::read(&two.here).unwrap() == std::fs::read(&two.there).unwrap()
}

#[tokio::test]
async fn only_what_differs_is_sent() {
    // Three MiB and an end that fills no block: data, zeros, data; what lies there is garbage.
    let mut bytes: Vec<u8> = (0..3 * MIB + 1000).map(|n| (n / 7) as u8).collect();
    bytes[MIB..2 * MIB].fill(0);
    let two = two(&bytes, &vec![0xa5; bytes.len()]);
    assert_eq!(pass(&two, false).await.unwrap(), (2 * MIB + 1000) as u64, "all but the zeros");
    assert!(same(&two));
    assert_eq!(pass(&two, true).await.unwrap(), 0, "nothing has changed");
    bytes[5] ^= 1;
    bytes[2 * MIB + 9] ^= 1;
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    std::fs::write(&two.here, &bytes).unwrap();
    assert_eq!(pass(&two, true).await.unwrap(), (2 * BLOCK + 1000) as u64);
    assert!(same(&two));
    bytes[..BLOCK].fill(0);
    std::fs::write(&two.here, &bytes).unwrap();
    assert_eq!(pass(&two, true).await.unwrap(), 0, "zeros are named, not sent");
    assert!(same(&two));
}

#[tokio::test]
async fn a_pass_that_is_cut_short_is_made_again() {
    let bytes: Vec<u8> = (0..4 * MIB).map(|n| (n / 3) as u8).collect();
    let two = two(&bytes, &vec![0; bytes.len()]);
    let (mut a, mut b) = tokio::io::duplex(8192);
    let there = Arc::new(Medium::open(&two.there, true).unwrap());
    let what = last(bytes.len() as u64);
    let taking = tokio::spawn(async move {
        take(&mut b, there, &what, true, std::future::pending(), async || Ok(())).await
    });
    let (here, progress) = (Arc::new(Medium::open(&two.here, false).unwrap()), Progress::default());
    // What was sent last may not have arrived.
    let enough = (MIB + 4 * BLOCK) as u64;
    tokio::select! {
        _ = send(&mut a, here, bytes.len() as u64, None, &progress) => panic!("all of it went over"),
        () = async { while progress.sent.load(Ordering::Relaxed) < enough { tokio::task::yield_now().await } } => {}
    }
    drop(a);
    taking.await.unwrap().unwrap_err();
    assert!(!same(&two));
    let rest = pass(&two, true).await.unwrap();
    assert!(rest > 0 && rest <= 3 * MIB as u64, "{rest}: what had arrived is not sent again");
    assert!(same(&two));
}

/// A disk that keeps something else than it was given is found out in the last pass.
#[tokio::test]
async fn what_differs_in_the_end_is_said() {
    let here = vec![7; BLOCK];
    let two = two(&here, &vec![0; BLOCK]);
    let medium = Arc::new(Medium::open(&two.there, true).unwrap());
    let (mut a, mut b) = tokio::io::duplex(1 << 20);
    let what = last(BLOCK as u64);
    let taking = tokio::spawn(async move {
        take(&mut b, medium, &what, true, std::future::pending(), async || Ok(())).await
    });
    let mut theirs = [0; 32];
    a.read_exact(&mut theirs).await.unwrap();
    // As if the wire or the disk had turned a bit: these bytes have another name.
    let mut turned = here.clone();
    turned[9] ^= 1;
    frame(&mut a, 0, &name_of(&here), &turned).await.unwrap();
    frame(&mut a, END, &[0; 32], &[]).await.unwrap();
    assert!(matches!(verdict(&mut a).await.unwrap(), Verdict::Differ(_)));
    taking.await.unwrap().unwrap();
}

#[tokio::test]
async fn blocks_outside_are_refused() {
    let two = two(&[1; 100], &[0; 100]);
    for (index, length) in [(1, 100), (0, 99), (0, BLOCK)] {
        let medium = Arc::new(Medium::open(&two.there, true).unwrap());
        let (mut a, mut b) = tokio::io::duplex(1 << 20);
        let what = last(100);
        let taking = tokio::spawn(async move {
            take(&mut b, medium, &what, true, std::future::pending(), async || Ok(())).await
        });
        frame(&mut a, index, &[0; 32], &vec![1; length]).await.unwrap();
        taking.await.unwrap().unwrap_err();
    }
}

/// Only the named blocks are read and sent, the end of the medium among them; nothing is asked of the other end.
#[tokio::test]
async fn what_is_known_to_have_changed_is_all_that_goes() {
    let bytes: Vec<u8> = (0..3 * MIB + 1000).map(|n| (n / 7) as u8).collect();
    let mut before = bytes.clone();
    let changed: [usize; 5] = [0, 1, 17, 18, 48];
    for block in changed {
        before[block * BLOCK] ^= 1;
    }
    let two = two(&bytes, &before);
    let size = bytes.len() as u64;
    let blocks = Blocks::of(size, changed.iter().map(|block| *block as u64));
    let (mut a, mut b) = tokio::io::duplex(8192);
    let here = Arc::new(Medium::open(&two.here, false).unwrap());
    let there = Arc::new(Medium::open(&two.there, true).unwrap());
    let taking = tokio::spawn(async move {
        take(&mut b, there, &last(size), false, std::future::pending(), async || Ok(())).await
    });
    let progress = Progress::default();
    send(&mut a, here, size, Some(blocks), &progress).await.unwrap();
    taking.await.unwrap().unwrap();
    assert!(same(&two));
    let moved = (4 * BLOCK + 1000) as u64;
    assert_eq!(progress.read.load(Ordering::Relaxed), moved);
    assert_eq!(progress.sent.load(Ordering::Relaxed), moved);
}
