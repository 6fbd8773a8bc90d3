use super::*;
use crate::peer_wire::{read, write};
use std::os::unix::fs::PermissionsExt;

#[tokio::test]
async fn lines_are_whole_and_bounded() {
    let knock = Knock {
        instance: InstanceId::new(),
        epoch: 4,
        folder: "/run/amphi/crossing/x".into(),
        to: Door::Disks,
        pass: None,
    };
    let mut bytes = Vec::new();
    write(&mut bytes, &knock).await.unwrap();
    write(&mut bytes, &Answer::Err("no".into())).await.unwrap();
    let mut stream = bytes.as_slice();
    assert_eq!(read::<Knock>(&mut stream, LINE_MAX).await.unwrap(), knock);
    assert_eq!(read::<Answer>(&mut stream, LINE_MAX).await.unwrap(), Err("no".into()));
    read::<Answer>(&mut stream, LINE_MAX).await.unwrap_err();
    let long = vec![b' '; LINE_MAX as usize + 1];
    read::<Answer>(&mut long.as_slice(), LINE_MAX).await.unwrap_err();
}

#[test]
fn the_folder_is_new_and_open_to_the_engine() {
    let run_dir = tempfile::tempdir().unwrap();
    let folder = folder_of(run_dir.path(), InstanceId::new());
    make_folder(&folder).unwrap();
    std::fs::write(folder.join("memory"), "stale").unwrap();
    make_folder(&folder).unwrap();
    assert!(!folder.join("memory").exists());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(folder.parent().unwrap())), (0o777, 0o711));
}

#[test]
fn the_engines_socket() {
    let named = engine_socket("qemu+unix:///system?socket=/run/x/sock&mode=direct");
    assert_eq!(named, Path::new("/run/x/sock"));
    assert!(engine_socket("qemu:///system").starts_with("/run/libvirt"));
}
