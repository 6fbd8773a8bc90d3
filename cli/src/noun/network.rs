//! `amphi network`.

use crate::failure::Failure;
use crate::session::Session;
use crate::table::{age, moment, pairs, rows};
use amphi_api::network::{Network, NetworkCreate, SubnetSpec};
use clap::Subcommand;
use ipnet::IpNet;
use jiff::Timestamp;
use std::net::IpAddr;

#[derive(Subcommand)]
pub enum Command {
    /// Networks and how many of their addresses are in use.
    List,
    /// One network in full.
    Show { network: String },
    /// Make a network with one subnet.
    Create {
        name: String,
        /// The subnet: `10.1.0.0/24`.
        #[arg(long, visible_alias = "subnet", value_name = "NETWORK")]
        cidr: IpNet,
        /// Default: the subnet's first address.
        #[arg(long, value_name = "ADDRESS")]
        gateway: Option<IpAddr>,
        /// Name server for guests; may be repeated.
        #[arg(long, value_name = "ADDRESS")]
        dns: Vec<IpAddr>,
        /// Do not answer DHCP.
        #[arg(long)]
        no_dhcp: bool,
        /// Largest frame payload, in bytes.
        #[arg(long)]
        mtu: Option<u32>,
    },
    /// Delete a network that has no ports.
    Delete { network: String },
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::List => {
                let networks = session.client()?.networks().await?;
                session.list("networks", &networks, |n| list(n, Timestamp::now()))
            }
            Self::Show { network } => session.show(&session.client()?.find_network(&network).await?, detail),
            Self::Create { name, cidr, gateway, dns, no_dhcp, mtu } => {
                let subnet = SubnetSpec { cidr, gateway, dns, dhcp: !no_dhcp };
                let request = NetworkCreate { name, subnet, mtu };
                request.check()?;
                session.show(&session.client()?.create_network(&request).await?, detail)
            }
            Self::Delete { network } => {
                let client = session.client()?;
                let network = client.find_network(&network).await?;
                client.delete_network(network.id).await?;
                session.note(&format!("deleted network {}", network.name))
            }
        }
    }
}

fn list(networks: &[Network], now: Timestamp) -> String {
    rows(
        &["NAME", "SUBNET", "GATEWAY", "DHCP", "MTU", "USED", "AGE", "ID"],
        networks.iter().map(|n| {
            let of = |text: &dyn Fn(&SubnetSpec) -> String| n.subnet.as_ref().map_or_else(dash, text);
            vec![
                n.name.clone(),
                of(&|s| s.cidr.to_string()),
                of(&|s| s.effective_gateway().to_string()),
                of(&|s| yes_no(s.dhcp)),
                n.mtu.to_string(),
                n.addresses_used.to_string(),
                age(n.created_at, now),
                n.id.to_string(),
            ]
        }),
    )
}

fn dash() -> String {
    "-".to_owned()
}

fn detail(n: &Network) -> String {
    let mut lines = vec![("Name", n.name.clone()), ("Id", n.id.to_string())];
    for subnet in n.subnet.iter().chain(&n.further_subnets) {
        let dns: Vec<_> = subnet.dns.iter().map(ToString::to_string).collect();
        lines.push(("Subnet", subnet.cidr.to_string()));
        lines.push(("Gateway", subnet.effective_gateway().to_string()));
        lines.push(("DNS", if dns.is_empty() { dash() } else { dns.join(", ") }));
        lines.push(("DHCP", yes_no(subnet.dhcp)));
    }
    lines.push(("MTU", n.mtu.to_string()));
    lines.push(("Used", format!("{} addresses", n.addresses_used)));
    lines.push(("Created", moment(n.created_at, Timestamp::now())));
    pairs(&lines)
}

fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}
