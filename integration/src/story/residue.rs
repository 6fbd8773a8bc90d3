//! What lies on a party of the lab that could be ours: the list that must be empty again at the end.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::CONTROLLER;
use crate::lab::Lab;

/// One line per thing, `kind name`. Images in the caches of the agent and of Docker are no residue: they are kept for
/// the next instance until room is needed. A namespace of the metadata service has no name to list: the host's end of its
/// pair stands for it, as a link, until the kernel has taken both.
const ON_HOST: &str = r#"
docker="/usr/bin/docker -H unix:///run/docker.sock"
$docker ps --all --no-trunc --format 'container {{.Names}}' || exit 1
$docker network ls --no-trunc --format '{{.Name}}' | sed -n 's/^amphi-/docker-network amphi-/p'
$docker volume ls --format 'docker-volume {{.Name}}' || exit 1
virsh --quiet --connect qemu:///system list --all --name | sed -n 's/^\(..*\)$/domain \1/p'
lvs --driverloaded n --noheadings -o lv_name amphi | sed -n 's/^ *\(..*\)$/lv \1/p'
ovs-vsctl --timeout=10 --bare --columns=name,external_ids list Interface | grep -o 'iface-id=[^ ]*' | sed 's/^/ovs-port /'
ip netns list | sed 's/^/namespace /'
ip -o link | sed -n 's/^[0-9]*: \(v[ac][0-9a-f]\{11\}\)[@:].*/link \1/p'
find /var/lib/amphi/instances /var/lib/amphi/volumes /run/amphi/instances -mindepth 1 2>/dev/null | sed 's/^/file /'
sed -n 's/^[^ ]* \(\/var\/lib\/amphi\/[^ ]*\) .*/mount \1/p' /proc/mounts
true
"#;

const ON_CONTROLLER: &str = r#"
nb="ovn-nbctl --timeout=10 --no-leader-only --bare"
for table in Logical_Switch Logical_Switch_Port Port_Group ACL DHCP_Options Address_Set Logical_Router; do
  $nb --columns=_uuid list $table | sed -n "s/^\(..*\)$/northbound $table \1/p" || exit 1
done
true
"#;

pub fn on(lab: &Lab, party: &str) -> Result<BTreeSet<String>> {
    let script = if party == CONTROLLER { ON_CONTROLLER } else { ON_HOST };
    let output = lab.exec(party, &["bash", "-c", script], Duration::from_secs(60))?;
    ensure!(output.ok(), "{party}: look for what is left: {}{}", output.stdout, output.stderr);
    Ok(super::engines::lines(&output.stdout).into_iter().collect())
}
