//! `amphi vm`: make an instance with a VM as its body.

use crate::failure::Failure;
use crate::flags::InstanceFlags;
use crate::noun::resize::Resize;
use crate::noun::{instance, set};
use crate::session::Session;
use amphi_api::instance::{BodySpec, VmSpec};
use amphi_api::set::{HttpProbe, Probe, Probes, TcpProbe};
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
    /// How it is asked whether it can take work: `tcp:PORT` or `http:PORT[/PATH]`, at its first IPv4 address.
    #[arg(long, value_name = "PROBE", value_parser = probe)]
    readiness: Option<Probe>,
    /// How it is asked whether it is worth keeping; one that fails is stopped and started again.
    #[arg(long, value_name = "PROBE", value_parser = probe)]
    liveness: Option<Probe>,
    /// How it is asked first, until it answers once; the others begin after it.
    #[arg(long, value_name = "PROBE", value_parser = probe)]
    startup: Option<Probe>,
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
        let probes =
            Probes { startup: create.startup, readiness: create.readiness, liveness: create.liveness };
        let vm = VmSpec { probes, ..VmSpec::new(create.image, create.root_gib) };
        let mut bodies = vec![BodySpec::Vm(vm)];
        if let Some(path) = &create.or_set {
            bodies.push(BodySpec::Set(set::load(path)?));
        }
        instance::create(session, create.instance.request(create.name, bodies)?).await
    }
}

/// `tcp:PORT` or `http:PORT[/PATH]`; how often it is asked is the default.
fn probe(text: &str) -> Result<Probe, String> {
    let bad = || "must be tcp:PORT or http:PORT[/PATH]".to_owned();
    let (kind, rest) = text.split_once(':').ok_or_else(bad)?;
    let (port, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(bad)?;
    match kind {
        "tcp" if !rest.contains('/') => {
            Ok(Probe { tcp: Some(TcpProbe { port, address: None }), ..Probe::default() })
        }
        "http" => {
            let http = HttpProbe { port, path: path.to_owned(), address: None };
            Ok(Probe { http: Some(http), ..Probe::default() })
        }
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::probe;

    #[test]
    fn probes_in_short() {
        let http = |text: &str| probe(text).unwrap().http.map(|h| (h.port, h.path)).unwrap();
        assert_eq!(probe("tcp:22").unwrap().tcp.unwrap().port, 22);
        assert_eq!(http("http:80"), (80, "/".into()));
        assert_eq!(http("http:8080/up?x=1"), (8080, "/up?x=1".into()));
        for bad in ["", "tcp", "tcp:", "tcp:0", "tcp:99999", "tcp:22/x", "exec:ls", "http:/x"] {
            assert!(probe(bad).is_err(), "{bad}");
        }
    }
}
