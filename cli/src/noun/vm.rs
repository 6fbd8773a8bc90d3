//! `amphi vm`: make an instance with a VM as its body.

use crate::failure::Failure;
use crate::flags::InstanceFlags;
use crate::noun::resize::Resize;
use crate::noun::{instance, set};
use crate::session::Session;
use amphi_api::instance::{BodySpec, VmSpec};
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum Command {
    /// Make an instance with a VM as its body.
    Create(Box<Create>),
    /// Give a VM another size: while it runs as far as it was started with room for it, else at its next start.
    Resize(Box<Resize>),
}

#[derive(Args)]
pub struct Create {
    name: String,
    /// Name or id of a disk or kernel image.
    #[arg(long)]
    image: String,
    /// Size of the root disk, in GiB, for disk images.
    #[arg(long, value_name = "GIB")]
    root_gib: Option<u64>,
    /// A set description that is acceptable as a body too.
    #[arg(long, value_name = "FILE")]
    or_set: Option<PathBuf>,
    #[command(flatten)]
    instance: InstanceFlags,
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let create = match self {
            Self::Create(create) => create,
            Self::Resize(resize) => return resize.run(session).await,
        };
        let mut bodies =
            vec![BodySpec::Vm(VmSpec { image: create.image, root_gib: create.root_gib, set: None })];
        if let Some(path) = &create.or_set {
            bodies.push(BodySpec::Set(set::load(path)?));
        }
        instance::create(session, create.instance.request(create.name, bodies)?).await
    }
}
