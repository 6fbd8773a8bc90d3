//! `amphi image`: the catalogue. `create` makes the record and uploads its blobs; a failed upload takes the record
//! away again.

use crate::failure::Failure;
use crate::progress::upload;
use crate::session::Session;
use crate::table::{age, bytes, moment, pairs, rows, word};
use amphi_api::image::{BlobRole, Image, ImageCreate, ImageFormat};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum Command {
    /// Images, their formats and sizes.
    List,
    /// One image with its digests.
    Show { image: String },
    /// The layers of a container image, the lowest first.
    Layers { image: String },
    /// Make an image out of files.
    Create(Create),
    /// Make a container image of a disk, or a disk of a container image.
    Convert(super::convert::Convert),
    /// How an image was made of another one, and what was found.
    Conversion { image: String },
    /// Delete an image that no instance needs.
    Delete { image: String },
}

#[derive(Args)]
pub struct Create {
    name: String,
    /// A container image (`docker save`) or a disk.
    #[arg(required_unless_present_any = ["kernel", "disk"], conflicts_with_all = ["kernel", "disk"])]
    file: Option<PathBuf>,
    /// A bootable disk, qcow2 or raw.
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    disk: Option<PathBuf>,
    /// A kernel; needs --initramfs.
    #[arg(long, value_name = "FILE", requires = "initramfs")]
    kernel: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initramfs: Option<PathBuf>,
    /// The kernel's command line, beside the console that Amphi sets.
    #[arg(long, default_value = "", requires = "kernel", value_name = "TEXT")]
    cmdline: String,
    /// What the file is. Default: as its first bytes say.
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    DockerArchive,
    Qcow2,
    Raw,
    KernelInitramfs,
}

impl From<Format> for ImageFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::DockerArchive => Self::DockerArchive,
            Format::Qcow2 => Self::Qcow2,
            Format::Raw => Self::Raw,
            Format::KernelInitramfs => Self::KernelInitramfs,
        }
    }
}

/// One blob to upload: its role, its file, and the file's length in bytes.
type Source = (BlobRole, PathBuf, u64);

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::List => {
                session.list("images", &session.client()?.images().await?, |i| list(i, Timestamp::now()))
            }
            Self::Show { image } => session.show(&session.client()?.find_image(&image).await?, detail),
            Self::Layers { image } => {
                let image = session.client()?.find_image(&image).await?;
                session.list("layers", &image.layers, |layers| {
                    rows(
                        &["LAYER", "SIZE", "COMPRESSION", "DIFF ID"],
                        layers.iter().map(|layer| {
                            let (own, diff) = (short(&layer.sha256), short(&layer.diff_id));
                            vec![own, bytes(layer.size), word(layer.compression), diff]
                        }),
                    )
                })
            }
            Self::Create(create) => create.run(session).await,
            Self::Convert(convert) => convert.run(session).await,
            Self::Conversion { image } => {
                let client = session.client()?;
                let image = client.find_image(&image).await?;
                session.show(&client.conversion(image.id).await?, super::convert::detail)
            }
            Self::Delete { image } => {
                let client = session.client()?;
                let image = client.find_image(&image).await?;
                client.delete_image(image.id).await?;
                session.note(&format!("deleted image {}", image.name))
            }
        }
    }
}

impl Create {
    async fn run(self, session: &Session) -> Result<(), Failure> {
        let (format, blobs) = self.blobs()?;
        let request = ImageCreate { name: self.name, format, cmdline: self.cmdline };
        request.check()?;
        let client = session.client()?;
        let image = client.create_image(&request).await?;
        for (role, path, length) in blobs {
            let progress = upload(&path.display().to_string(), length);
            if let Err(error) = client.upload_file(image.id, role, &path, progress).await {
                let mut failure = Failure::from(error);
                if let Err(left) = client.delete_image(image.id).await {
                    failure = failure
                        .next(format!("remove what is left: amphi image delete {} ({left})", image.id));
                }
                return Err(failure);
            }
        }
        session.show(&client.image(image.id).await?, detail)
    }

    /// The format, and the files with their sizes. All are opened before anything is asked of the controller.
    fn blobs(&self) -> Result<(ImageFormat, Vec<Source>), Failure> {
        if let (Some(kernel), Some(initramfs)) = (&self.kernel, &self.initramfs) {
            if self.format.is_some_and(|f| f != Format::KernelInitramfs) {
                return Err(Failure::new(2, "--kernel and --initramfs make a kernel-initramfs image"));
            }
            let blobs = vec![
                (BlobRole::Kernel, kernel.clone(), probe(kernel)?.1),
                (BlobRole::Initramfs, initramfs.clone(), probe(initramfs)?.1),
            ];
            return Ok((ImageFormat::KernelInitramfs, blobs));
        }
        let Some(path) = self.disk.as_ref().or(self.file.as_ref()) else {
            return Err(Failure::new(2, "no file given"));
        };
        let (head, length) = probe(path)?;
        let format = match (self.format, sniff(&head)) {
            (Some(Format::KernelInitramfs), _) => {
                return Err(Failure::new(2, "a kernel-initramfs image needs --kernel and --initramfs"));
            }
            (Some(format), _) => format,
            (None, Some(format)) => format,
            (None, None) if self.disk.is_some() => Format::Raw,
            (None, None) => {
                let text = format!("{}: neither a tar archive nor qcow2", path.display());
                return Err(Failure::new(2, text).next("say what it is: --format docker-archive|qcow2|raw"));
            }
        };
        if self.disk.is_some() && format == Format::DockerArchive {
            return Err(Failure::new(2, format!("{}: a tar archive is no disk", path.display())));
        }
        let format = ImageFormat::from(format);
        Ok((format, format.roles().iter().map(|role| (*role, path.clone(), length)).collect()))
    }
}

/// A file's first bytes and its length.
fn probe(path: &Path) -> Result<(Vec<u8>, u64), Failure> {
    let unreadable = |why: String| Failure::new(2, format!("{}: {why}", path.display()));
    let file = File::open(path).map_err(|e| unreadable(format!("cannot be read: {e}")))?;
    let metadata = file.metadata().map_err(|e| unreadable(format!("cannot be read: {e}")))?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Err(unreadable("not a file, or empty".to_owned()));
    }
    let mut head = Vec::new();
    file.take(512).read_to_end(&mut head).map_err(|e| unreadable(format!("cannot be read: {e}")))?;
    Ok((head, metadata.len()))
}

/// What the first bytes say: qcow2's magic (docs/interop/qcow2.txt), or tar's `ustar` at 257.
fn sniff(head: &[u8]) -> Option<Format> {
    if head.starts_with(b"QFI\xfb") {
        Some(Format::Qcow2)
    } else if head.get(257..262) == Some(b"ustar") {
        Some(Format::DockerArchive)
    } else {
        None
    }
}

/// A digest's beginning, as Docker shows ids.
fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

fn list(images: &[Image], now: Timestamp) -> String {
    rows(
        &["NAME", "FORMAT", "STATE", "SIZE", "AGE", "ID"],
        images.iter().map(|i| {
            vec![
                i.name.clone(),
                word(i.format),
                word(i.state),
                bytes(i.size()),
                age(i.created_at, now),
                i.id.to_string(),
            ]
        }),
    )
}

fn detail(image: &Image) -> String {
    let mut lines = vec![
        ("Name", image.name.clone()),
        ("Id", image.id.to_string()),
        ("Format", word(image.format)),
        ("State", word(image.state)),
    ];
    if !image.cmdline.is_empty() {
        lines.push(("Cmdline", image.cmdline.clone()));
    }
    let blobs: Vec<_> = image
        .blobs
        .iter()
        .map(|(role, blob)| format!("{} {} sha256:{}", word(role), bytes(blob.size), blob.sha256))
        .collect();
    lines.push(("Blobs", if blobs.is_empty() { "-".to_owned() } else { blobs.join("\n") }));
    if !image.layers.is_empty() {
        lines.push(("Layers", image.layers.len().to_string()));
    }
    lines.push(("Created", moment(image.created_at, Timestamp::now())));
    pairs(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_format() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(sniff(&tar), Some(Format::DockerArchive));
        assert_eq!(sniff(b"QFI\xfb\0\0\0\x03"), Some(Format::Qcow2));
        assert_eq!(sniff(b"x"), None);
        assert_eq!(sniff(b""), None);
    }
}
