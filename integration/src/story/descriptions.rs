//! The story's cast: the descriptions of its sets and VMs. Pure.

use amphi_api::instance::{
    BodySpec, FailoverPolicy, InstanceCreate, InstanceNetwork, InstanceVolume, VmSpec,
};
use amphi_api::set::{MemberSpec, SetSpec};
use serde_json::json;

use super::guest::CGI;
use super::stage::{GROUP, NETWORK};

/// The set of the story as a newcomer writes it. Each member's very first act is to write down what it sees of its
/// network; `back` listens on a port that the security group does not let in.
pub fn web() -> String {
    let first = |member: &str| format!("ip addr show dev eth0 >/data/first-{member} 2>&1");
    let text = json!({
        "anchor": { "sysctls": { "net.core.somaxconn": "512" } },
        "members": [
            { "name": "back", "index": 2, "image": "busybox", "options": { "cpu": 40, "mem": 40 },
              "command": ["/bin/sh", "-c", format!("{}; httpd -p 8080 -h /data; trap 'exit 0' TERM INT; while :; do sleep 1000000 & wait $!; done", first("back"))] },
            { "name": "front", "index": 1, "image": "web", "options": { "cpu": 60, "mem": 50 },
              "command": ["/bin/sh", "-c", format!("{}; exec /bin/web", first("front"))] },
        ],
    });
    format!("{text:#}\n")
}

/// A set of one member, `front`: HTTP on 80, on 8080 (which the group does not let in), and a word in /data/born
/// that no other body has.
pub fn plain_set(name: &str, host: Option<&str>) -> InstanceCreate {
    let command = "cat /proc/sys/kernel/random/uuid >/data/born; httpd -p 8080 -h /data; exec /bin/web";
    let member = MemberSpec {
        name: "front".to_owned(),
        index: 1,
        image: "web".to_owned(),
        command: ["/bin/sh", "-c", command].map(str::to_owned).to_vec(),
        ..MemberSpec::default()
    };
    let set = SetSpec { anchor: Default::default(), members: vec![member], volume_mount: "/data".to_owned() };
    instance(name, host, BodySpec::Set(set), 64)
}

/// A VM that runs what its peers ask over HTTP, and writes /data/born as [`plain_set`] does.
pub fn plain_vm(name: &str, host: Option<&str>) -> InstanceCreate {
    let vm = BodySpec::Vm(VmSpec { image: "vm".to_owned(), root_gib: None, set: None });
    InstanceCreate { user_data: Some(vm_user_data()), ..instance(name, host, vm, 256) }
}

pub fn vm_user_data() -> String {
    format!(
        "#!/bin/sh\nmkdir -p /data/cgi-bin\ncat >/data/cgi-bin/run <<'CGI'\n{CGI}CGI\nchmod 755 /data/cgi-bin/run\ncat /proc/sys/kernel/random/uuid >/data/born\nhttpd -p 8080 -h /data\n"
    )
}

pub fn new_volume(size_gib: u64) -> Option<InstanceVolume> {
    Some(InstanceVolume { size_gib: Some(size_gib), name: None, id: None })
}

fn instance(name: &str, host: Option<&str>, body: BodySpec, memory_mib: u64) -> InstanceCreate {
    InstanceCreate {
        name: name.to_owned(),
        vcpus: 1,
        memory_mib,
        bodies: vec![body],
        networks: vec![InstanceNetwork {
            network: NETWORK.to_owned(),
            address: None,
            bandwidth: Default::default(),
        }],
        security_groups: vec![GROUP.to_owned()],
        volume: None,
        user_data: None,
        ssh_keys: Vec::new(),
        metadata: Default::default(),
        failover: FailoverPolicy::default(),
        failover_terms: Default::default(),
        host: host.map(str::to_owned),
        ..InstanceCreate::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cast_passes_the_rules() {
        let set: SetSpec = serde_json::from_str(&web()).unwrap();
        set.check().unwrap();
        assert_eq!(set.normalized().members[0].name, "front");
        plain_set("a", None).check().unwrap();
        plain_vm("b", Some("h1")).check().unwrap();
    }
}
