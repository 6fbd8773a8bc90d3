//! `amphi tools`: a command of another image beside a set's member, on this terminal.

use super::looking_in::{Play, exit_as, play};
use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{Escape, size};
use amphi_api::streams::ExecSpec;
use std::io::{IsTerminal, stdin};

#[derive(clap::Args)]
#[command(after_help = "It sees the member's processes, its network, and its files below /proc/1/root.\n\
    Exit code: the command's. With -t, `~.` on a fresh line leaves, and ends the command.")]
pub struct Tools {
    /// Give it this terminal's input.
    #[arg(short = 'i', long)]
    interactive: bool,
    /// With a terminal.
    #[arg(short = 't', long)]
    tty: bool,
    /// The set's member; default: its first.
    #[arg(short, long)]
    member: Option<String>,
    /// The container image that its programs come from.
    #[arg(long)]
    image: String,
    /// NAME=VALUE.
    #[arg(short, long)]
    env: Vec<String>,
    /// `user`, `user:group` or ids.
    #[arg(short, long)]
    user: Option<String>,
    instance: String,
    /// The program and its arguments.
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

impl Tools {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let terminal = self.tty && stdin().is_terminal();
        let spec = ExecSpec {
            member: self.member,
            command: self.command,
            env: match std::env::var("TERM") {
                Ok(kind) if self.tty => [vec![format!("TERM={kind}")], self.env].concat(),
                _ => self.env,
            },
            user: self.user,
            tty: self.tty,
            stdin: self.interactive,
            size: self.tty.then(size).flatten(),
            ..ExecSpec::default()
        };
        spec.check()?;
        let instance = client.find_instance(&self.instance).await?;
        let stream = client.tools(instance.id, &self.image, &spec).await?;
        let escape = if terminal { Escape::Tilde } else { Escape::Never };
        exit_as(play(stream, Play { input: self.interactive, raw: terminal, escape }).await?)
    }
}
