//! `amphi set resize`, `amphi vm resize`: another size for what is there, and the wait until its body is held to it.

use crate::failure::Failure;
use crate::flags::{bandwidth, memory};
use crate::noun::instance::GRACE;
use crate::noun::instance_view::detail;
use crate::session::Session;
use amphi_api::instance::{Instance, InstanceState};
use amphi_api::resize::{InstanceResize, NetworkBandwidth, REFUSED};
use amphi_api::set::MemberOptions;
use clap::Args;
use jiff::Timestamp;
use std::time::Instant;

#[derive(Args)]
pub struct Resize {
    /// Name or id.
    instance: String,
    /// Virtual CPUs.
    #[arg(long, alias = "cpu")]
    vcpus: Option<u32>,
    /// Memory: `512`, `512MiB`, `4GiB`.
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory: Option<u64>,
    /// Size of its own volume, in GiB. It only grows.
    #[arg(long, alias = "volume", value_name = "GIB")]
    volume_gib: Option<u64>,
    /// A member's options, in place of its present ones: `web={"cpu": 60, "pids": 256}`; may be repeated.
    #[arg(long, value_name = "MEMBER=JSON", value_parser = options)]
    options: Vec<(String, MemberOptions)>,
    /// Most kbit/s towards it and from it, of one of its networks: `lan=10000/5000`; `lan=/` takes the limits away.
    #[arg(long, value_name = "NETWORK=IN/OUT", value_parser = bandwidth)]
    bandwidth: Vec<NetworkBandwidth>,
}

fn options(text: &str) -> Result<(String, MemberOptions), String> {
    let (member, options) = text.split_once('=').ok_or("not MEMBER=JSON, as web={\"pids\": 256}")?;
    let options = serde_json::from_str(options).map_err(|error| error.to_string())?;
    Ok((member.to_owned(), options))
}

impl Resize {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let request = InstanceResize {
            vcpus: self.vcpus,
            memory_mib: self.memory,
            volume_gib: self.volume_gib,
            members: self.options.into_iter().collect(),
            networks: self.bandwidth,
        };
        request.check()?;
        let client = session.client()?;
        let instance = client.find_instance(&self.instance).await?;
        let ordered = client.resize_instance(instance.id, &request).await?;
        let instance = match session.wait() {
            None => ordered,
            Some(deadline) => {
                let waiting = session.waiting(format!("instance {}", ordered.name));
                let mut bad_since: Option<Instant> = None;
                let ended = |i: &Instance| {
                    let bad = i.state == InstanceState::Error || refused(i).is_some();
                    bad_since = bad.then(|| bad_since.unwrap_or_else(Instant::now));
                    !i.resizing || bad_since.is_some_and(|since| since.elapsed() >= GRACE)
                };
                let told = |i: &Instance| waiting.state(if i.resizing { "resizing" } else { "resized" });
                let seen = client.wait_instance(ordered.id, ended, deadline, told).await?;
                drop(waiting);
                if seen.resizing {
                    let why = refused(&seen).or(seen.fault.as_ref().map(|f| f.message.as_str()));
                    let why = why.unwrap_or("its host has not carried it out").to_owned();
                    return Err(Failure::new(
                        1,
                        format!("instance {} keeps its former limits: {why}", seen.name),
                    ));
                }
                seen
            }
        };
        session.show(&instance, |i| detail(i, Timestamp::now()))
    }
}

fn refused(instance: &Instance) -> Option<&str> {
    instance.conditions.iter().find(|c| c.code == REFUSED).map(|c| c.message.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_limits() {
        let (member, limits) = options(r#"web={"pids": 64, "cpu": 30}"#).expect("options");
        assert_eq!((member.as_str(), limits.pids, limits.cpu), ("web", Some(64), Some(30)));
        assert!(options("web").is_err() && options("web={").is_err() && options(r#"web={"x": 1}"#).is_err());
        let lan = bandwidth("lan=10000/").expect("a bandwidth");
        assert_eq!((lan.bandwidth.ingress_kbps, lan.bandwidth.egress_kbps), (Some(10_000), None));
        assert_eq!(bandwidth("lan=/").expect("none").bandwidth, Default::default());
        assert!(bandwidth("lan").is_err() && bandwidth("lan=5").is_err() && bandwidth("lan=a/b").is_err());
    }
}
