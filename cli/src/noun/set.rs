//! `amphi set`: check a description without a server, by the server's own rules; make an instance of one.

use crate::failure::Failure;
use crate::flags::InstanceFlags;
use crate::json_file::JsonFile;
use crate::noun::instance;
use crate::session::{Session, say};
use amphi_api::FieldError;
use amphi_api::instance::BodySpec;
use amphi_api::set::SetSpec;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum Command {
    /// Check a set description, without a controller. Prints it as it would be kept: names, order and shares decided.
    Check {
        /// A file, or `-` for standard input.
        file: PathBuf,
    },
    /// Make an instance with a set as its body.
    Create(Box<Create>),
}

#[derive(Args)]
pub struct Create {
    name: String,
    /// The set description, as `amphi set check` takes it.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    instance: InstanceFlags,
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::Check { file } => {
                let set = load(&file)?.normalized();
                let text = serde_json::to_string_pretty(&set)
                    .map_err(|e| Failure::new(1, format!("cannot be printed: {e}")))?;
                say(&text)
            }
            Self::Create(create) => {
                let set = load(&create.file)?;
                let request = create.instance.request(create.name, vec![BodySpec::Set(set)])?;
                instance::create(session, request).await
            }
        }
    }
}

/// A set description out of a file, checked.
pub fn load(path: &Path) -> Result<SetSpec, Failure> {
    let file = JsonFile::read(path)?;
    let set: SetSpec = file.parse()?;
    set.check().map_err(|e: FieldError| file.refused(e))?;
    Ok(set)
}
