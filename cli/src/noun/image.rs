//! `amphi image`: the catalogue. `create` makes the record and uploads its blobs; a failed upload takes the record
//! away again.

mod parts;

use super::{prepull, replication};
use crate::failure::Failure;
use crate::progress::upload;
use crate::session::Session;
use crate::table::{age, bytes, mib, moment, or_dash, pairs, rows, word};
use amphi_api::client::Client;
use amphi_api::disk;
use amphi_api::image::{
    BlobRole, Image, ImageCreate, ImageDetail, ImageEdit, ImageFormat, ImageLimit, ImageVisibility,
    LayerImage, MarketImage,
};
use amphi_api::{ImageId, ProjectId};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::json;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum Command {
    /// Images, their formats and sizes.
    List {
        /// Container images' layers, too: each is an image with a parent.
        #[arg(long)]
        layers: bool,
    },
    /// One image with its digests.
    Show { image: String },
    /// The layers of a container image, the lowest first.
    Layers { image: String },
    /// Make an image out of files.
    Create(Create),
    /// Have hosts fetch an image before anything starts from it; without an order, show which hosts have it.
    Prepull(prepull::Prepull),
    /// Bring an image to another region.
    Replicate(replication::Replicate),
    /// Fetch an image from another region.
    Fetch(replication::Fetch),
    /// Say something else of an image; what is not named stays.
    Set(Set),
    /// Images of other projects that everybody may start from.
    Market(Market),
    /// How much of the image store the project may have, and has.
    Usage {
        /// Let a project have so many MiB; -1: any. For administrators.
        #[arg(long, value_name = "MIB", allow_negative_numbers = true, requires = "project")]
        limit: Option<i64>,
        /// The project's id.
        #[arg(long, value_name = "ID", requires = "limit")]
        project: Option<ProjectId>,
    },
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
    /// A bootable disk: qcow2, raw, vmdk of one file, vhd or vhdx.
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
    #[command(flatten)]
    said: Said,
}

/// What is said of an image.
#[derive(Args, Default)]
struct Said {
    /// For those who look for an image; '' takes it away.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// As its maker counts; '' takes it away.
    #[arg(long, value_name = "TEXT")]
    image_version: Option<String>,
    /// Who sees it. Only administrators make images public.
    #[arg(long, value_enum)]
    visibility: Option<Visibility>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Visibility {
    Public,
    Community,
    Shared,
    Private,
}

impl From<Visibility> for ImageVisibility {
    fn from(word: Visibility) -> Self {
        match word {
            Visibility::Public => Self::Public,
            Visibility::Community => Self::Community,
            Visibility::Shared => Self::Shared,
            Visibility::Private => Self::Private,
        }
    }
}

impl Said {
    fn edit(self, name: Option<String>) -> ImageEdit {
        let visibility = self.visibility.map(ImageVisibility::from);
        ImageEdit { name, description: self.description, version: self.image_version, visibility }
    }
}

#[derive(Args)]
pub struct Set {
    image: String,
    /// Another name.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    said: Said,
}

#[derive(Args)]
pub struct Market {
    /// What stands in the name or the description.
    search: Option<String>,
    /// The name or id of the project that offers it.
    #[arg(long, value_name = "PROJECT")]
    owner: Option<String>,
    /// Images of the community, too.
    #[arg(long)]
    community: bool,
    /// At most so many.
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    /// Only what comes after this one.
    #[arg(long, value_name = "ID")]
    after: Option<ImageId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    DockerArchive,
    Qcow2,
    Raw,
    Vmdk,
    Vhd,
    Vhdx,
    KernelInitramfs,
}

impl From<Format> for ImageFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::DockerArchive => Self::DockerArchive,
            Format::Qcow2 => Self::Qcow2,
            Format::Raw => Self::Raw,
            Format::Vmdk => Self::Vmdk,
            Format::Vhd => Self::Vhd,
            Format::Vhdx => Self::Vhdx,
            Format::KernelInitramfs => Self::KernelInitramfs,
        }
    }
}

/// One blob to upload: its role, its file, and the file's length in bytes.
type Source = (BlobRole, PathBuf, u64);

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::List { layers: false } => {
                session.list("images", &session.client()?.images().await?, |i| list(i, Timestamp::now()))
            }
            Self::Prepull(prepull) => prepull.run(session).await,
            Self::Replicate(replicate) => replicate.run(session).await,
            Self::Fetch(fetch) => fetch.run(session).await,
            Self::List { layers: true } => {
                let client = session.client()?;
                let (images, below) = (client.images().await?, client.all_layers().await?);
                match session.is_json() {
                    true => session.show(&json!({ "images": images, "layers": below }), |_| String::new()),
                    false => session.show(&images, |images| family(images, &below)),
                }
            }
            Self::Show { image } => {
                let client = session.client()?;
                let id = client.find_image(&image).await?.id;
                // Which host has what is the administrator's to see.
                let hosts = client.image_on_hosts(id).await.ok();
                let told = |image: &ImageDetail| detail(image) + &prepull::summary(hosts.as_ref());
                session.show(&client.image_detail(id).await?, told)
            }
            Self::Layers { image } => {
                let client = session.client()?;
                let image = client.find_image(&image).await?;
                session.list("layers", &client.image_layers(image.id).await?, |layers| {
                    rows(
                        &["LAYER", "SIZE", "COMPRESSION", "DIFF ID", "ID", "PARENT"],
                        layers.iter().map(|one| {
                            let (own, diff) = (short(&one.layer.sha256), short(&one.layer.diff_id));
                            let (id, parent) = (one.id.to_string(), or_dash(one.parent));
                            vec![own, bytes(one.layer.size), word(one.layer.compression), diff, id, parent]
                        }),
                    )
                })
            }
            Self::Create(create) => create.run(session).await,
            Self::Set(set) => {
                let client = session.client()?;
                let image = client.find_image(&set.image).await?;
                let edit = set.said.edit(set.name);
                edit.check()?;
                session.show(&client.edit_image(image.id, &edit).await?, detail)
            }
            Self::Market(market) => {
                let query = [
                    ("search", market.search),
                    ("owner", market.owner),
                    ("community", market.community.then(|| "true".to_owned())),
                    ("limit", market.limit.map(|n| n.to_string())),
                    ("marker", market.after.map(|id| id.to_string())),
                ];
                let query: Vec<_> =
                    query.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
                session.list("images", &session.client()?.market(&query).await?, offered)
            }
            Self::Usage { limit, project } => {
                let client = session.client()?;
                let usage = match (limit, project) {
                    (Some(limit_mib), Some(project)) => {
                        client.limit_images(project, ImageLimit { limit_mib }).await?
                    }
                    _ => client.image_usage().await?,
                };
                session.show(&usage, |usage| {
                    let most = u64::try_from(usage.limit_mib).map_or("any".to_owned(), mib);
                    pairs(&[("Used", bytes(usage.used_bytes)), ("Limit", most)])
                })
            }
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
        let edit = self.said.edit(None);
        edit.check()?;
        let client = session.client()?;
        let image = client.create_image(&request).await?;
        if let Err(mut failure) = send(client, image.id, &blobs, &edit).await {
            if let Err(left) = client.delete_image(image.id).await {
                failure =
                    failure.next(format!("remove what is left: amphi image delete {} ({left})", image.id));
            }
            return Err(failure);
        }
        session.show(&client.image_detail(image.id).await?, detail)
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
                let text =
                    format!("{}: neither a tar archive nor a disk that says its format", path.display());
                return Err(Failure::new(2, text)
                    .next("say what it is: --format docker-archive|qcow2|raw|vmdk|vhd|vhdx"));
            }
        };
        if self.disk.is_some() && format == Format::DockerArchive {
            return Err(Failure::new(2, format!("{}: a tar archive is no disk", path.display())));
        }
        let format = ImageFormat::from(format);
        Ok((format, format.roles().iter().map(|role| (*role, path.clone(), length)).collect()))
    }
}

/// Sends an image's blobs and what is said of it.
async fn send(client: &Client, id: ImageId, blobs: &[Source], edit: &ImageEdit) -> Result<(), Failure> {
    for (role, path, length) in blobs {
        if *role == BlobRole::Archive && parts::send(client, id, path).await? {
            continue;
        }
        let progress = upload(&path.display().to_string(), *length);
        client.upload_file(id, *role, path, progress).await?;
    }
    if *edit != ImageEdit::default() {
        client.edit_image(id, edit).await?;
    }
    Ok(())
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

/// What the first bytes say: a disk's magic, or tar's `ustar` at 257.
fn sniff(head: &[u8]) -> Option<Format> {
    match disk::sniff(head) {
        Some("qcow2") => Some(Format::Qcow2),
        Some("vmdk") => Some(Format::Vmdk),
        Some("vhd") => Some(Format::Vhd),
        Some("vhdx") => Some(Format::Vhdx),
        _ => (head.get(257..262) == Some(b"ustar")).then_some(Format::DockerArchive),
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

/// Images with the layers that they are made of: what has a parent is its child.
fn family(images: &[Image], layers: &[LayerImage]) -> String {
    let parent = |image: &Image| layers.iter().rfind(|one| one.images.contains(&image.id)).map(|one| one.id);
    let layer = |one: &LayerImage| {
        let used = format!("of {} image{}", one.images.len(), if one.images.len() == 1 { "" } else { "s" });
        vec![used, "layer".to_owned(), bytes(one.layer.size), one.id.to_string(), or_dash(one.parent)]
    };
    let image = |i: &Image| {
        vec![i.name.clone(), word(i.format), bytes(i.size()), i.id.to_string(), or_dash(parent(i))]
    };
    rows(
        &["NAME", "FORMAT", "SIZE", "ID", "PARENT"],
        images.iter().map(image).chain(layers.iter().map(layer)),
    )
}

fn offered(images: &[MarketImage]) -> String {
    rows(
        &["NAME", "VERSION", "OWNER", "FORMAT", "SIZE", "ID", "DESCRIPTION"],
        images.iter().map(|offer| {
            let (image, said) = (&offer.detail.image, &offer.detail.said);
            let first = said.description.as_deref().unwrap_or("-").lines().next().unwrap_or("-");
            vec![
                image.name.clone(),
                or_dash(said.version.as_ref()),
                offer.owner.clone(),
                word(image.format),
                bytes(offer.size),
                image.id.to_string(),
                first.chars().take(60).collect(),
            ]
        }),
    )
}

fn detail(detail: &ImageDetail) -> String {
    let (image, said) = (&detail.image, &detail.said);
    let mut lines = vec![
        ("Name", image.name.clone()),
        ("Id", image.id.to_string()),
        ("Format", word(image.format)),
        ("State", word(image.state)),
        ("Visibility", word(said.visibility)),
    ];
    for (name, text) in
        [("Description", &said.description), ("Version", &said.version), ("From", &said.origin)]
    {
        lines.extend(text.as_ref().map(|text| (name, text.clone())));
    }
    if let Some(config) = image.blobs.get(&BlobRole::Config) {
        lines.push(("Docker id", format!("sha256:{}", config.sha256)));
    }
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
        assert_eq!(sniff(b"# Disk DescriptorFile\n"), Some(Format::Vmdk));
        assert_eq!(sniff(b"vhdxfile"), Some(Format::Vhdx));
        assert_eq!(sniff(b"x"), None);
        assert_eq!(sniff(b""), None);
    }
}
