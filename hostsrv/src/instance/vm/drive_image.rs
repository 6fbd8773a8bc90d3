//! Owns the config drive as a disk: the files in a small FAT image labelled `config-2`. Deterministic: the same files
//! give the same bytes.

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use std::io::{self, Cursor, Write};

/// The label that cloud-init's ConfigDrive source looks for on disks, padded as FAT has it.
const LABEL: [u8; 11] = *b"config-2   ";
/// Room beside the files, for the FAT itself, folders and half-filled clusters, in bytes.
const SLACK: usize = 256 << 10;

/// The FAT image's bytes.
pub fn image(files: &[(String, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let content: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    // Whole MiB, so that every guest's partition tools are content.
    let size = (content + SLACK).div_ceil(1 << 20) << 20;
    let mut disk = Cursor::new(vec![0_u8; size]);
    // A volume id that never changes; nothing tells drives apart by it.
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat12)
        .bytes_per_cluster(cluster(size))
        .volume_id(0x616d_7068)
        .volume_label(LABEL);
    format_volume(&mut disk, options)?;
    {
        let system = FileSystem::new(&mut disk, FsOptions::new().update_accessed_date(false))?;
        for (path, bytes) in files {
            for (at, _) in path.match_indices('/') {
                system.root_dir().create_dir(&path[..at])?;
            }
            let mut file = system.root_dir().create_file(path)?;
            file.write_all(bytes)?;
            file.flush()?;
        }
        system.unmount()?;
    }
    Ok(disk.into_inner())
}

/// Clusters so large that FAT12's 4,084 of them cover the drive.
fn cluster(size: usize) -> u32 {
    let mut bytes = 512_usize;
    while size / bytes > 4000 {
        bytes *= 2;
    }
    bytes as u32
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use crate::instance::config_drive::files;
    use amphi_api::image::ImageFormat;
    use std::io::Read;

    #[test]
    fn the_image_holds_the_files_and_is_always_the_same() {
        let mut plan = sample::plan(ImageFormat::KernelInitramfs);
        for user_data in [None, Some("x".into()), Some("y".repeat(65_535)), Some("z".repeat(3 << 20))] {
            plan.user_data = user_data;
            let files = files(&plan);
            let bytes = image(&files).unwrap();
            assert_eq!(bytes, image(&files).unwrap());
            let system = FileSystem::new(Cursor::new(bytes), FsOptions::new()).unwrap();
            assert_eq!(system.volume_label(), "config-2");
            assert_eq!(system.read_volume_label_from_root_dir().unwrap().as_deref(), Some("config-2"));
            for (name, expected) in &files {
                let mut found = Vec::new();
                system.root_dir().open_file(name).unwrap().read_to_end(&mut found).unwrap();
                assert!(&found == expected, "{name}");
            }
        }
    }
}
