//! `amphi set`: check a description without a server, by the server's own rules; make an instance of one, or of what a
//! Docker Compose file says.

use crate::compose::{self, Around, Size};
use crate::failure::Failure;
use crate::flags::InstanceFlags;
use crate::json_file::JsonFile;
use crate::noun::resize::Resize;
use crate::noun::{instance, rollout};
use crate::session::{Session, say};
use crate::table::clean;
use crate::yaml;
use amphi_api::FieldError;
use amphi_api::instance::{BodySpec, VmSpec};
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
    /// Make an instance of a Docker Compose file. What could not be carried over is listed on stderr, with the reason.
    Import(Box<Import>),
    /// Give a set another size, while it runs. Less than what is used is refused with the figures.
    Resize(Box<Resize>),
    /// Change the description while it runs. Members whose containers differ are replaced, one after another; when a new one
    /// fails, the former ones come back.
    Update(rollout::Update),
    /// The update under way, and the revisions that there were.
    #[command(subcommand)]
    Rollout(rollout::Command),
    /// End one member and start it again; the others stay as they are.
    Restart(rollout::Restart),
    /// One set in full: members with their readiness, restarts and last end.
    Show {
        /// Name or id.
        set: String,
    },
}

#[derive(Args)]
pub struct Import {
    /// `compose.yaml`.
    file: PathBuf,
    /// The instance's name. Default: the name of the file's folder.
    #[arg(long)]
    name: Option<String>,
    /// Print the description, and make nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    instance: InstanceFlags,
}

#[derive(Args)]
pub struct Create {
    name: String,
    /// The set description, as `amphi set check` takes it.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// Run it as containers, or as a VM with a kernel of its own: the same images, the same description.
    #[arg(long, value_enum, default_value = "set")]
    body: Body,
    #[command(flatten)]
    instance: InstanceFlags,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Body {
    Set,
    Vm,
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
            Self::Show { set } => instance::Command::Show { instance: set }.run(session).await,
            Self::Resize(resize) => resize.run(session).await,
            Self::Update(update) => update.run(session).await,
            Self::Rollout(command) => command.run(session).await,
            Self::Restart(restart) => restart.run(session).await,
            Self::Import(import) => import.run(session).await,
            Self::Create(create) => {
                let set = load(&create.file)?;
                let body = match create.body {
                    Body::Set => BodySpec::Set(set),
                    Body::Vm => BodySpec::Vm(VmSpec { set: Some(set), ..VmSpec::default() }),
                };
                let request = create.instance.request(create.name, vec![body])?;
                instance::create(session, request).await
            }
        }
    }
}

/// Largest text that becomes a member's file.
const FILE_MAX: u64 = 64 << 10;

impl Import {
    async fn run(self, session: &Session) -> Result<(), Failure> {
        let shown = self.file.display().to_string();
        let unreadable = |e: std::io::Error| Failure::new(2, format!("{shown}: cannot be read: {e}"));
        let most = amphi_api::validate::BODY_MAX as u64;
        if std::fs::metadata(&self.file).map_err(unreadable)?.len() > most {
            return Err(Failure::new(4, format!("{shown}: larger than {most} bytes")));
        }
        let source = std::fs::read_to_string(&self.file).map_err(unreadable)?;
        let full = std::fs::canonicalize(&self.file).map_err(unreadable)?;
        let folder = full.parent().unwrap_or(Path::new("/"));
        let around =
            Around { variable: &|name| std::env::var(name).ok(), file: &|path| text_of(&folder.join(path)) };
        let size = Size { vcpus: self.instance.vcpus, memory_mib: self.instance.memory };
        let refused = |why: String| Failure::new(4, format!("{shown}: {why}"));
        let imported = compose::import(&source, size, &around).map_err(refused)?;
        imported.set.check_memory(size.memory_mib)?;
        if !imported.left.is_empty() {
            eprintln!("not carried over from {shown}:");
            for left in &imported.left {
                eprintln!("  {}: {}", clean(&left.place), clean(&left.why));
            }
        }
        if self.dry_run {
            let text = serde_json::to_string_pretty(&imported.set)
                .map_err(|e| Failure::new(1, format!("cannot be printed: {e}")))?;
            return say(&text);
        }
        let name = self.name.or_else(|| Some(folder.file_name()?.to_str()?.to_owned()));
        let name = name.ok_or_else(|| Failure::new(2, "the instance needs a name: --name"))?;
        let request = self.instance.request(name, vec![BodySpec::Set(imported.set)])?;
        instance::create(session, request).await
    }
}

fn text_of(path: &Path) -> Option<String> {
    let meta = std::fs::metadata(path).ok()?;
    (meta.is_file() && meta.len() <= FILE_MAX).then(|| std::fs::read_to_string(path).ok()).flatten()
}

/// A set description out of a file, checked: JSON, or YAML by its name.
pub fn load(path: &Path) -> Result<SetSpec, Failure> {
    if path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml") {
        return load_yaml(path);
    }
    let file = JsonFile::read(path)?;
    let set: SetSpec = file.parse()?;
    set.check().map_err(|e: FieldError| file.refused(e))?;
    Ok(set)
}

fn load_yaml(path: &Path) -> Result<SetSpec, Failure> {
    let refused = |why: String, field: Option<String>| Failure {
        code: 4,
        what: format!("{}: {why}", path.display()),
        field,
        next: None,
    };
    let source = std::fs::read_to_string(path)
        .map_err(|e| Failure::new(2, format!("{}: cannot be read: {e}", path.display())))?;
    if source.len() > amphi_api::validate::BODY_MAX {
        return Err(refused(format!("larger than {} bytes", amphi_api::validate::BODY_MAX), None));
    }
    let value = yaml::read(&source).map_err(|why| refused(why, None))?;
    let set: SetSpec = serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().to_string();
        refused(error.inner().to_string(), (field != ".").then_some(field))
    })?;
    set.check().map_err(|error: FieldError| refused(error.message, Some(error.field)))?;
    Ok(set)
}
